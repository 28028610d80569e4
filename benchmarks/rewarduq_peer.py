"""RewardUQ's own models beside a plain reward model, in its own environment; run by benchmarks/reward_sources.py.

    python -m venv peer && peer/bin/pip install rewarduq transformers==4.57.3 trl==0.23.0
    python benchmarks/reward_sources.py --rewarduq peer/bin/python --json docs/results/reward_costs.json

Imports nothing of surefoot. Prints one line of JSON: scoring CPU time over the plain model's, on the same batches.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, TaskType, get_peft_model
from rewarduq.methods.lora_ensemble.lora_ensemble_model import LoraEnsembleModel, LoraEnsembleModelConfig
from rewarduq.methods.mlp_head_ensemble.mlp_head_ensemble_model import MLPHeadEnsembleModel, MLPHeadEnsembleModelConfig
from transformers import AutoModelForSequenceClassification

CHANGES = {
    "tokenizer_class": "PreTrainedTokenizerFast",
    "chat_template": "{% for message in messages %}{{ message['content'] }}{% endfor %}",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", required=True)
    parser.add_argument(
        "--batches", type=Path, required=True, help="JSON: a list of batches of token ids, padded with 0"
    )
    parser.add_argument("--members", type=int, required=True)
    parser.add_argument("--turns", type=int, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    batches = [torch.tensor(batch) for batch in json.loads(options.batches.read_text())]
    plain = AutoModelForSequenceClassification.from_pretrained(options.base, num_labels=1).eval()
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        base = readable(Path(options.base), Path(folder) / "base")
        for name, model in (
            ("rewarduq_heads", heads(base, options.members)),
            ("rewarduq_lora", adapters(base, options.members, Path(folder))),
        ):
            turns = [
                cpu(lambda m=model: score(m, batches)) / cpu(lambda: score(plain, batches))
                for _ in range(options.turns)
            ]
            low, _, high = statistics.quantiles(turns, n=4, method="inclusive")
            found[name] = {"median": statistics.median(turns), "q25": low, "q75": high, "turns": options.turns}
    print(json.dumps(found))


def readable(base: Path, copy: Path) -> str:
    """The model with a tokenizer that transformers 4 knows by name, and the chat template that RewardUQ insists on."""
    shutil.copytree(base, copy)
    path = copy / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | CHANGES))
    return str(copy)


def heads(base: str, members: int) -> Any:
    return MLPHeadEnsembleModel(MLPHeadEnsembleModelConfig(base_model_name_or_path=base, num_heads=members)).eval()


def adapters(base: str, members: int, folder: Path) -> Any:
    """K adapters on q_proj and v_proj of every layer, rank 8, as surefoot's default."""
    paths = []
    for k in range(members):
        torch.manual_seed(k)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        config = LoraConfig(r=8, lora_alpha=16, target_modules=["q_proj", "v_proj"], task_type=TaskType.SEQ_CLS)
        get_peft_model(model, config).save_pretrained(folder / str(k))
        paths.append(str(folder / str(k)))
    config = LoraEnsembleModelConfig(
        base_model_name_or_path=base,
        base_model_init_kwargs={"num_labels": 1},
        peft_config={"r": 8},
        adapter_paths=paths,
    )
    return LoraEnsembleModel(config).eval()


@torch.no_grad()
def score(model: Any, batches: list[torch.Tensor]) -> None:
    for ids in batches:
        model(input_ids=ids, attention_mask=(ids != 0).long())


def cpu(function: Callable[[], Any]) -> float:
    start = time.process_time()
    function()
    return time.process_time() - start


if __name__ == "__main__":
    main()
