"""Texts of `labels.py`: what may be asked, what is held out, what policies are judged on; features and gold of all."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from real_text_data import BASE, made_bank
from surefoot.data.preferences import load_prompts
from surefoot.data.world import build_world
from surefoot.feedback.pairs import candidate_pairs, prompt_numbers
from surefoot.files import whole_file
from surefoot.forecast.candidates import Texts, draw_candidates, group_texts, read_candidates
from surefoot.rewards.gold import load_gold
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.loading import load_encoder, load_trunk

__all__ = ["Bank", "bank_of"]


@dataclass(frozen=True)
class Bank:
    """The texts of a setting. Those that may be asked about come first.

    Args:
        features, gold: of every text.
        prompts: number of the prompt of each text that may be asked about.
        pool: (pairs, 2) what may be asked.
        held_out: (pairs, 2) of other prompts; their golds differ.
        judged: places of the candidates, in the order of `texts`.
        truth: gold of the candidates in standard deviations within a prompt.
    """

    features: Tensor
    gold: Tensor
    prompts: Tensor
    pool: Tensor
    held_out: Tensor
    judged: Tensor
    texts: Texts
    truth: Tensor


def bank_of(name: str, spec: dict[str, Any], config: dict[str, Any], options: argparse.Namespace) -> Bank:
    """The texts of a setting; they are drawn and read once and kept in `options.out`."""
    make = {"hh": _hh, "hh_policy": _hh}.get(name, _drawn)
    return make(name, spec, config, options)


def _drawn(name: str, spec: dict[str, Any], config: dict[str, Any], options: argparse.Namespace) -> Bank:
    """Completions that are drawn for the benchmark: of the world, or of the small model of stories."""
    world = name.startswith("world")
    asked, judged, gold, model = (_world if world else _stories)(name, spec, config["bank_seed"], options)
    prompts, completions = asked[0] + judged[0], asked[1] + judged[1]
    path = options.out / f"{name}.safetensors"
    if not path.exists():
        read: dict[str, Any] = (
            {"base": model, "layer": 0, "length": 128} if world else {"base": BASE, "layer": -1, "length": 128}
        )
        values = torch.tensor(gold(prompts, completions), dtype=torch.float64)
        with whole_file(path) as temporary:
            save_file({"features": features_of(prompts, completions, **read), "gold": values}, temporary)
    held = load_file(path)
    pool = _pairs(asked, 10**9, config["bank_seed"])
    numbers = prompt_numbers(asked[0])
    return _bank(held["features"], held["gold"], numbers, pool, judged, len(asked[0]), config)


def features_of(prompts: list[str], completions: list[str], base: str, layer: int, length: int) -> Tensor:
    """Mean-pooled hidden states, as `fit_linear` reads them."""
    trunk = load_trunk(base, torch.device("cpu"))
    encoder = load_encoder(base, trunk, length)
    pad = encoder.tokenizer.pad_token_id
    return compute_features(trunk, encoder(prompts, completions), pooling="mean", layer=layer, pad_token_id=pad)


Rows = tuple[list[str], list[str]]
"""(prompts, completions)."""


def _world(
    name: str, spec: dict[str, Any], seed: int, options: argparse.Namespace
) -> tuple[Rows, Rows, Callable[..., Any], str]:
    world = build_world(options.out / "world")
    policy, folder = str(world.policy_path), options.out / name
    judged = _replies(policy, world.prompts("test"), spec["judged"], options.out / "world_judged", seed)
    if name == "world_policy":
        asked = _replies(policy, world.prompts("train"), spec["completions"], folder, seed + 1)
        return asked, judged, world.true_reward, policy
    train, own = set(world.prompts("train")), dict[str, list[str]]()
    for row in world.draw_preferences("uneven", 120 * spec["completions"], seed):  # 40 pairs a prompt, for 24
        if row["prompt"] in train:
            own.setdefault(row["prompt"], []).extend([row["chosen"], row["rejected"]])
    count = spec["completions"]
    prompts = [prompt for prompt in own for _ in range(count)]
    return (prompts, [c for texts in own.values() for c in texts[:count]]), judged, world.true_reward, policy


def _stories(
    name: str, spec: dict[str, Any], seed: int, options: argparse.Namespace
) -> tuple[Rows, Rows, Callable[..., Any], str]:
    prompts = list(load_prompts("examples/story_prompts.jsonl")["prompt"])
    train, test = [p for i, p in enumerate(prompts) if i % 3], prompts[::3]
    asked = _replies(options.stories, train, spec["completions"], options.out / name, seed, 40)
    judged = _replies(options.stories, test, spec["judged"], options.out / f"{name}_judged", seed + 1, 40)
    return asked, judged, load_gold({"function": "examples/story_gold.py:true_reward"}), options.stories


def _replies(model: str, prompts: list[str], count: int, folder: Path, seed: int, tokens: int = 24) -> Rows:
    file = draw_candidates(model, prompts, count, folder, max_completion_length=tokens, seed=seed)
    read = read_candidates(str(file))
    return [str(p) for p in read[0]], [str(c) for c in read[1]]


def _pairs(rows: Rows, most: int, seed: int) -> Tensor:
    return candidate_pairs(prompt_numbers(rows[0]), rows[1], most, seed)[0]


def _bank(
    features: Tensor, gold: Tensor, numbers: Tensor, pool: Tensor, judged: Rows, first: int, config: dict[str, Any]
) -> Bank:
    """Put a bank together whose judged texts begin at `first`, and whose held-out pairs are of these."""
    texts = group_texts(*judged)
    places = first + texts.order
    truth = gold[places]
    deviation = truth[texts.places].var(dim=1, correction=0).mean().sqrt()
    pairs = first + _pairs(judged, 4 * config["held_out_pairs"], config["bank_seed"])
    return Bank(features, gold, numbers, pool, _told_apart(pairs, gold, config), places, texts, truth / deviation)


def _told_apart(pairs: Tensor, gold: Tensor, config: dict[str, Any]) -> Tensor:
    """So many pairs as are held out, drawn of those whose golds differ."""
    known = pairs[gold[pairs[:, 0]] != gold[pairs[:, 1]]]
    order = np.random.default_rng(config["bank_seed"]).permutation(len(known))[: config["held_out_pairs"]]
    return known[torch.from_numpy(order)]


def _hh(name: str, spec: dict[str, Any], config: dict[str, Any], options: argparse.Namespace) -> Bank:
    """The texts of `real_text.py`: pairs of hh a fifth of which is held out, or replies to half of its prompts."""
    options = argparse.Namespace(**{**vars(options), "out": options.real_text})
    real, _ = made_bank(options)
    if name == "hh":
        order = torch.from_numpy(np.random.default_rng(config["bank_seed"]).permutation(len(real.pools["hh"])))
        pairs, aside = real.pools["hh"][order], len(order) // 5
        texts = int(real.pools["hh"].max()) + 1
        numbers = prompt_numbers(real.prompts[:texts])
        held_out = _told_apart(pairs[:aside], real.gold, config)
        return Bank(real.features, real.gold, numbers, pairs[aside:], held_out, real.judged, real.texts, real.truth)
    half = len(real.texts.places) // 2 * real.texts.places.shape[1]
    asked, rest = real.judged[:half], real.judged[half:]
    order = torch.cat([asked, rest])
    rows = [([real.prompts[i] for i in p.tolist()], [real.completions[i] for i in p.tolist()]) for p in (asked, rest)]
    pool = _pairs(rows[0], 10**9, config["bank_seed"])
    return _bank(real.features[order], real.gold[order], prompt_numbers(rows[0][0]), pool, rows[1], half, config)
