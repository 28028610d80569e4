"""Make what lies in this folder, with the last version before reward kinds and studies moved to other modules.

It runs with that version alone, commit 34f838f, because it names that version's modules:

    git worktree add /tmp/before 34f838f
    cd tests/saved_before
    PYTHONPATH=/tmp/before/src:/tmp/before OMP_NUM_THREADS=1 python make.py FOLDER

FOLDER then holds `sources`, `judge.sqlite`, `study`, `rloo` and the rest, with paths relative to itself. Never make
them anew to mend a test of `test_saved_before.py`: users have files like these.

`judge_questions.json` was added later: for each completion, the hashes of the questions that this version's judge
asked, under which `judge.sqlite` has the replies.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import torch
import yaml
from surefoot.rewards.borrowed import BorrowedVariance
from surefoot.rewards.laplace import LaplaceConfig, fit_laplace
from tests.models import WORDS
from tests.rewards.judge.servers import Act, JudgeServer, Request, rated
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForSequenceClassification, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from surefoot import RewardSource, group_anchors, load_source
from surefoot.cli.main import main as surefoot
from surefoot.data.preferences import load_preferences

PROMPTS = ["the red", "a blue", "the red", "a blue", "the red", "a blue"]
COMPLETIONS = ["cat runs", "dog and the cat", "dog", "cat sleeps", "a cat and a dog", "runs"]
GROUPS = [0, 1, 0, 1, 0, 1]
FIT = {"learning_rate": 0.01, "epochs": 3, "batch_size": 8}
KINDS: dict[str, dict[str, Any]] = {
    "linear": {"layer": 0},
    "heads": {"members": 4, "layer": 0, **FIT},
    "independent": {"members": 3, "rank": 2, **FIT},
    "lora": {"members": 3, "rank": 2, **FIT},
    "dropout": {"model_name_or_path": "reward_model", "members": 4, "rate": 0.2},
    "distilled": {"teacher": "runs/heads/source", "layer": 0, **FIT},
    "smoothed": {"kind": "heads", "variance": "smoothed", "members": 4, "layer": 0, **FIT},
    "mixed": {"model_name_or_path": "runs/heads/source", "other_models": ["runs/linear/source"], "max_length": None},
    "judge": {
        "model_name_or_path": "a-judge", "samples": 2, "wordings": 2, "structured": "none", "retries": 0,
        "timeout_s": 5.0, "deadline_s": 5.0, "cache": "judge.sqlite", "max_length": None,
    },
}  # fmt: skip
"""Settings of `surefoot reward`, by the kind of the source that is saved."""


def save_policy(folder: Path) -> None:
    """The random policy of `tests/models.py`, eight numbers wide."""
    vocabulary = {word: i for i, word in enumerate(["<pad>", "<eos>", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>")
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(vocabulary), hidden_size=8, intermediate_size=12, num_hidden_layers=2,
            num_attention_heads=2, num_key_value_heads=2, max_position_embeddings=64, pad_token_id=0, eos_token_id=1,
            bos_token_id=None, tie_word_embeddings=False,
        )
    )  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def save_reward_model(policy: Path, folder: Path) -> None:
    """A classifier with one output on the policy's trunk."""
    torch.manual_seed(1)
    model = AutoModelForSequenceClassification.from_pretrained(policy, num_labels=1)
    model.score.weight.data = torch.randn(1, 8)
    model.save_pretrained(folder)
    PreTrainedTokenizerFast.from_pretrained(policy).save_pretrained(folder)


def write_data() -> None:
    rows = [
        {
            "prompt": f"{('the', 'a')[i % 2]} {WORDS[i % 3]}",
            "chosen": f" cat {WORDS[i % 7]} {WORDS[i % 5]}",
            "rejected": f" dog {WORDS[(i + 3) % 7]}",
        }
        for i in range(40)
    ]
    prompts = [{"prompt": prompt} for prompt in sorted({row["prompt"] for row in rows})]
    for name, held in (("pairs", rows), ("prompts", prompts)):
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))


def run(command: str, name: str, settings: dict[str, Any]) -> None:
    """Run a command with its settings in `name.yaml`."""
    Path(f"{name}.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
    assert surefoot([command, "--config", f"{name}.yaml"]) == 0, name


def make_source(kind: str, changes: dict[str, Any]) -> None:
    usual = {
        "kind": kind, "model_name_or_path": "policy", "dataset_name": "pairs.jsonl", "held_out": 0.3, "max_length": 16,
        "output_dir": f"runs/{kind}",
    }  # fmt: skip
    run("reward", f"reward-{kind}", {k: v for k, v in (usual | changes).items() if v is not None})
    shutil.copytree(f"runs/{kind}/source", f"sources/{kind}")


def save_others() -> None:
    """Kinds that the command can't make, or not so small."""
    few = LaplaceConfig(distance=1.0, distance_layer=1, distance_features=8, max_length=16)
    others: dict[str, RewardSource] = {
        "borrowed": BorrowedVariance(load_source("sources/linear"), load_source("sources/heads")),
        "laplace": fit_laplace(load_preferences("pairs.jsonl"), "reward_model", few),
    }
    for kind, source in others.items():
        rows = source.score(PROMPTS, COMPLETIONS)
        source.calibrate(rows, group_anchors(rows, torch.tensor(GROUPS)))
        source.save(f"sources/{kind}")


def expected(source: RewardSource) -> dict[str, Any]:
    """What a source makes of `COMPLETIONS`: rows, rewards with and without anchors, margins of the first three."""
    rows = source.score(PROMPTS, COMPLETIONS)
    anchors = group_anchors(rows, torch.tensor(GROUPS))
    margins = source.margins(rows[:3], rows[3:])
    found = {"plain": source.estimate(rows), "anchored": source.estimate(rows, anchors), "margins": margins}
    return {
        "rows": rows.tolist(),
        "anchors": anchors.rows.tolist(),
        **{name: {"mean": one.mean.tolist(), "variance": one.variance.tolist()} for name, one in found.items()},
    }


def rating(request: Request) -> Act:
    """One to nine, by the answer, the wording and the sample."""
    answer = request.texts["ANSWER"]
    return rated(1 + (3 * answer.count("cat") + len(answer) + len(request.wording) % 3 + request.sample) % 9)


def make_sources() -> None:
    with JudgeServer(rating) as server:
        KINDS["judge"]["endpoint"] = server.endpoint
        os.environ["SUREFOOT_JUDGE_ENDPOINT"] = server.endpoint
        os.environ["SUREFOOT_JUDGE_CACHE"] = "judge.sqlite"
        for kind, changes in KINDS.items():
            make_source(kind, changes)
        save_others()
        held = {path.name: expected(load_source(path)) for path in sorted(Path("sources").iterdir())}
    text = {"prompts": PROMPTS, "completions": COMPLETIONS, "endpoint": server.endpoint, "sources": held}
    Path("expected.json").write_text(json.dumps(text, indent=1) + "\n")


def make_study() -> None:
    settings = {
        "output_dir": "study",
        "settings": {
            "tiny": {
                "model": "policy", "prompts": "prompts.jsonl", "preferences": "pairs.jsonl", "held_out_pairs": 10,
                "gold": {"function": "gold.py:cats"},
            }
        },
        "sources": {"heads": {"kind": "heads", "members": 3, "layer": 0, "max_length": 16, **FIT}},
        "methods": ["vanilla", "variance_aware", "variance_aware_one"],
        "kl_budgets": [2.0],
        "seeds": 1,
        "policy": {
            "max_steps": 2, "learning_rate": 0.05, "calibration_prompts": 4, "per_device_train_batch_size": 8,
            "num_generations": 4, "max_completion_length": 6, "anchor_completions": 4, "use_cpu": True,
        },
        "evaluation_completions": 8,
        "samples_kept": 2,
        "workers": 1,
    }  # fmt: skip
    run("study", "study", settings)
    for name in ("report.html", "summary.json", "summary.csv", "cells.csv"):  # `surefoot report` writes them
        Path("study", name).unlink()
    for path in Path("study").rglob("features"):
        shutil.rmtree(path)


def make_checkpoint() -> None:
    """A run of four steps; its first checkpoint and its last weights are kept."""
    settings = {
        "model_name_or_path": "policy", "dataset_name": "prompts.jsonl", "reward_source": "sources/linear",
        "output_dir": "rloo", "per_device_train_batch_size": 8, "num_generations": 4, "max_completion_length": 6,
        "max_steps": 4, "save_steps": 2, "beta": 0.1, "learning_rate": 0.01, "calibration_prompts": 4,
        "anchor_completions": 4, "gradient_checkpointing": False, "report_to": "none", "use_cpu": True,
    }  # fmt: skip
    run("rloo", "rloo", settings)
    shutil.copy("rloo/model.safetensors", "rloo-final.safetensors")
    for path in Path("rloo").iterdir():
        if path.name == "checkpoint-4":
            shutil.rmtree(path)
        elif path.is_file() and path.name != "run.json":
            path.unlink()


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    shutil.copy(Path(__file__).with_name("gold.py"), folder)
    os.chdir(folder)
    save_policy(Path("policy"))
    save_reward_model(Path("policy"), Path("reward_model"))
    write_data()
    make_sources()
    make_study()
    make_checkpoint()
    for folder in map(Path, ("runs", "reward_model")):
        shutil.rmtree(folder)
    for path in Path().glob("reward-*.yaml"):
        path.unlink()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
