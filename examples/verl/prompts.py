"""Write prompts as verl reads them: python prompts.py PROMPTS.jsonl OUT.parquet [MOST]. Each line has a `prompt`."""

import json
import sys
from pathlib import Path

from datasets import Dataset


def rows(path: Path, most: int | None) -> list[dict[str, object]]:
    """One row for each prompt; plain text becomes a message of the user."""
    made = []
    for i, line in enumerate(path.read_text(encoding="utf-8").splitlines()[:most]):
        prompt = json.loads(line)["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        about = {"reward_model": {"style": "model", "ground_truth": ""}, "extra_info": {"index": i}}
        made.append({"data_source": path.stem, "prompt": messages, **about})
    return made


if __name__ == "__main__":
    source, target, *most = sys.argv[1:]
    Dataset.from_list(rows(Path(source), int(most[0]) if most else None)).to_parquet(target)
