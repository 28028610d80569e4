"""Does PPO with a critic, through verl, reach the weighted objective's exact optimum? One-token completions, on a CPU.

    python benchmarks/verl_optimum.py OUT --steps 80

In the environment of `make engines`. Two prompts, a vocabulary of ten tokens: every completion has a known reward and
weight, so that π* = π₀ exp((r − ν)/(βw)) is known (docs/method.md 9.1). verl trains from π₀ by `surefoot verl`; the
policies of its checkpoints are compared with π*, and with the optimum for weights of 1, by their total variation.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from surefoot.theory.exact import weighted_optimum

EXAMPLE = Path(__file__).parents[1] / "examples" / "verl"
WORDS = ["<pad>", "<eos>", "one", "two", "three", "four", "five", "six", "seven", "eight"]
PROMPTS = ["one ", "two "]
BETA = 0.5
REWARD_FUNCTION = '''"""Reward and weight of a prompt's completion, from the tables beside this file."""

import json
from pathlib import Path

TABLES = json.loads(Path(__file__).with_name("tables.json").read_text())


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):
    row, column = extra_info["index"] % len(TABLES["reward"]), TABLES["words"].index(solution_str.strip() or "<pad>")
    return {"score": TABLES["reward"][row][column], "surefoot_weight": TABLES["weight"][row][column]}
'''


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=80)
    args = parser.parse_args()
    folder = args.out.resolve()
    reward, weight = write_problem(folder)
    start = time.monotonic()
    train(folder, args.steps)
    before = log_policy(folder / "policy")
    best = weighted_optimum(reward, before, weight, BETA).policy
    unweighted = weighted_optimum(reward, before, torch.ones_like(weight), BETA).policy
    steps = sorted(int(path.name.rpartition("_")[2]) for path in (folder / "verl").glob("global_step_*"))
    for step in [0, *steps]:
        place = folder / "policy" if step == 0 else folder / "verl" / f"global_step_{step}" / "actor" / "huggingface"
        policy = log_policy(place).exp()
        found = {"step": step, "to_optimum": distance(policy, best), "to_unweighted": distance(policy, unweighted)}
        print(json.dumps(found))
    apart = distance(best, unweighted)
    print(json.dumps({"optimum_to_unweighted": apart, "seconds": round(time.monotonic() - start)}))


def write_problem(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Write policy, prompts and tables; returns rewards and weights, (prompts, tokens), float64."""
    folder.mkdir(parents=True, exist_ok=True)
    inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<eos>").save_pretrained(
        folder / "policy"
    )
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "max_position_embeddings": 128}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 4, "tie_word_embeddings": False}
    tokens = {"vocab_size": len(WORDS), "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, **tokens)).save_pretrained(folder / "policy")
    reward = torch.randn(len(PROMPTS), len(WORDS), dtype=torch.float64)
    weight = 0.25 * 12 ** torch.rand(len(PROMPTS), len(WORDS), dtype=torch.float64)
    reward[:, 1], weight[:, 1] = reward[:, 0], weight[:, 0]  # <pad> and <eos> both decode to no text
    tables = {"words": WORDS, "reward": reward.tolist(), "weight": weight.tolist()}
    (folder / "tables.json").write_text(json.dumps(tables))
    (folder / "reward.py").write_text(REWARD_FUNCTION)
    rows = [
        {
            "data_source": "tables",
            "prompt": [{"role": "user", "content": PROMPTS[i % len(PROMPTS)]}],
            "reward_model": {"style": "rule", "ground_truth": ""},
            "extra_info": {"index": i},
        }
        for i in range(320)
    ]
    Dataset.from_list(rows).to_parquet(folder / "train.parquet")
    return reward, weight


def train(folder: Path, steps: int) -> None:
    settings = {
        "reward.reward_manager.name": "naive",
        "reward.custom_reward_function.path": folder / "reward.py",
        "data.train_files": folder / "train.parquet",
        "data.val_files": folder / "train.parquet",
        "data.train_batch_size": 32,
        "data.max_prompt_length": 4,
        "data.max_response_length": 1,
        "algorithm.kl_ctrl.kl_coef": BETA,
        "actor_rollout_ref.model.path": folder / "policy",
        "actor_rollout_ref.rollout.n": 4,
        "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu": 128,
        "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu": 128,
        "actor_rollout_ref.actor.ppo_mini_batch_size": 32,
        "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu": 128,
        "actor_rollout_ref.actor.ppo_epochs": 2,
        "actor_rollout_ref.actor.optim.lr": 2e-3,
        "actor_rollout_ref.actor.optim.lr_scheduler_type": "cosine",
        "actor_rollout_ref.actor.checkpoint.save_contents": "[model,optimizer,extra,hf_model]",
        "critic.model.path": folder / "policy",
        "critic.ppo_mini_batch_size": 32,
        "critic.ppo_micro_batch_size_per_gpu": 128,
        "critic.optim.lr": 1e-2,
        "trainer.total_training_steps": steps,
        "trainer.total_epochs": steps,
        "trainer.save_freq": 20,
        "trainer.default_local_dir": folder / "verl",
    }
    command = [
        sys.executable,
        "-m",
        "surefoot.cli.main",
        "verl",
        "--config-path",
        str(EXAMPLE),
        "--config-name",
        "cpu",
    ]
    paths = os.pathsep.join([str(EXAMPLE), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {"VERL_USE_EXTERNAL_MODULES": "cpu_platform", "PYTHONPATH": paths, "PWD": str(folder)}
    with (folder / "log.txt").open("w") as log:
        words = [*command, *(f"++{name}={value}" for name, value in settings.items())]
        subprocess.run(words, cwd=folder, env=os.environ | environment, stdout=log, stderr=log, check=True)


@torch.no_grad()
def log_policy(path: Path) -> torch.Tensor:
    """(prompts, tokens) ln π of a completion's one token, float64."""
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()
    ids = torch.tensor([[WORDS.index(prompt.strip())] for prompt in PROMPTS])
    return torch.log_softmax(model(ids).logits[:, -1].double(), dim=-1)


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Largest total variation over the prompts."""
    return round(float(0.5 * (one - other).abs().sum(dim=1).max()), 4)


if __name__ == "__main__":
    main()
