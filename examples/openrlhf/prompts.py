"""Write prompts with the chat template applied: python prompts.py MODEL PROMPTS.jsonl OUT.jsonl.

Each line has a `prompt`. `surefoot anchors` and OpenRLHF (without --data.apply_chat_template) then read the same text,
so anchors are found.
"""

import json
import sys
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer


def templated(tokenizer: Any, lines: list[str]) -> list[str]:
    """JSON lines of prompts as text; plain text is taken as a message of the user."""
    made = []
    for line in lines:
        prompt = json.loads(line)["prompt"]
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        made.append(json.dumps({"prompt": text}, ensure_ascii=False))
    return made


if __name__ == "__main__":
    model, source, target = sys.argv[1:]
    lines = Path(source).read_text(encoding="utf-8").splitlines()
    text = "\n".join(templated(AutoTokenizer.from_pretrained(model), lines)) + "\n"
    Path(target).write_text(text, encoding="utf-8")
