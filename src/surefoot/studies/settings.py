"""Build a setting of a study: its reference policy, prompts, true reward, and the preferences of each seed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from datasets import Dataset
from scipy.special import expit
from transformers import AutoTokenizer
from trl import ModelConfig

from surefoot.data.messages import plain_text
from surefoot.data.preferences import load_preferences, load_prompts
from surefoot.data.world import VARIANTS, build_world
from surefoot.data.world.export import HELD_OUT_SEED
from surefoot.errors import ConfigError, DataError
from surefoot.files import fingerprint
from surefoot.ranges import check_ranges
from surefoot.rewards.gold import Gold, load_gold
from surefoot.setting_types import check_nested
from surefoot.studies.config import check_keys, file_hashes
from surefoot.training.run_online import load_policy_tokenizer
from surefoot.training.sampling import load_policy, sample_completions
from surefoot.types import Text

__all__ = ["EVALUATION_SEED", "WORLD", "Setting", "as_texts", "build_setting"]

EVALUATION_SEED = 990_001
"""Every policy is judged on completions drawn with this seed, from prompts that no training saw."""
WORLD = "world"
"""Folder of the offline world in that of a study."""
_WORLD_KEYS = ("world", "pairs", "held_out_pairs")
_MODEL_KEYS = ("model", "prompts", "evaluation_prompts", "gold", "preferences", "pairs", "held_out_pairs", "draw")


@dataclass(frozen=True)
class Setting:
    """What all pipelines of one setting share.

    Args:
        policy: directory or hub name of the reference policy.
        train_prompts, evaluation_prompts: policies are trained on the former and judged on the latter.
        gold: the true reward.
        device: where the reference policy is sampled; the first accelerator, or the CPU where there is none, if None.
        draws: gives the preferences of a seed.
        identity: of its lines in the config and the files that they name; what is kept of it is kept under this.
    """

    policy: str
    train_prompts: list[Text]
    evaluation_prompts: list[Text]
    gold: Gold
    draws: Draws
    identity: str
    device: torch.device | None = None

    def preferences(self, seed: int) -> tuple[Dataset, Dataset]:
        """The seed's pairs: to train on, and held out."""
        return self.draws(seed)


class Draws(Protocol):
    """Gives the preferences of a seed: to train on, and held out."""

    def __call__(self, seed: int) -> tuple[Dataset, Dataset]: ...


def build_setting(spec: dict[str, Any], folder: Path) -> Setting:
    """A setting from its lines in the config.

    Args:
        spec: either `world: uneven | even | shared_bias` with `pairs` and `held_out_pairs`; or `model`, `prompts`,
            `gold`, and preferences: a file of which every seed takes `pairs` (`preferences`), or pairs drawn from the
            model itself and labelled by gold (`draw`).
        folder: of the study; the world's policy is kept there.

    Raises:
        ConfigError, DataError, ModelError: what is wrong, before any training.
    """
    _check_counts(spec)
    if "world" in spec:
        return _world(spec, folder)
    check_keys(spec, _MODEL_KEYS, "a setting")
    missing = [name for name in ("model", "prompts", "gold") if name not in spec]
    if missing or ("preferences" in spec) == ("draw" in spec):
        raise ConfigError(
            f"a setting needs world, or model, prompts, gold and one of preferences and draw; missing: "
            f"{', '.join(missing) or 'exactly one of preferences and draw'}"
        )
    return _model(spec)


def _check_counts(spec: dict[str, Any]) -> None:
    for name in ("pairs", "held_out_pairs"):
        value = spec.get(name, 1)
        if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**31:
            raise ConfigError(f"{name} of a setting must be a whole number from 0 to 2³¹ − 1, got {value!r}")
    if "world" in spec and 0 in (spec.get("pairs"), spec.get("held_out_pairs")):
        raise ConfigError("pairs and held_out_pairs of a setting on the offline world must be at least 1")


def _world(spec: dict[str, Any], folder: Path) -> Setting:
    check_keys(spec, _WORLD_KEYS, "a setting on the offline world")
    variant = str(spec["world"])
    if variant not in VARIANTS:
        raise ConfigError(f"unknown world '{variant}' (known: {', '.join(VARIANTS)})")
    pairs, held_out = int(spec.get("pairs", 3000)), int(spec.get("held_out_pairs", 500))
    world = build_world(folder / WORLD)

    def draws(seed: int) -> tuple[Dataset, Dataset]:
        return (
            world.draw_preferences(variant, pairs, seed),
            world.draw_preferences(variant, held_out, seed + HELD_OUT_SEED),
        )

    def gold(prompts: Sequence[Text], completions: Sequence[Text]) -> list[float]:
        return world.true_reward(as_texts(prompts), as_texts(completions))

    train: list[Text] = [*world.prompts("train")]
    test: list[Text] = [*world.prompts("test")]
    return Setting(str(world.policy_path), train, test, gold, draws, _identity(spec), torch.device("cpu"))


def _model(spec: dict[str, Any]) -> Setting:
    prompts: list[Text] = list(load_prompts(str(spec["prompts"]))["prompt"])
    if "evaluation_prompts" in spec:
        evaluation = list(load_prompts(str(spec["evaluation_prompts"]))["prompt"])
    else:
        prompts, evaluation = _thirds(prompts)
    load_policy_tokenizer(ModelConfig(model_name_or_path=str(spec["model"])))  # says at once if it isn't there
    gold = load_gold(spec["gold"])
    draws: Draws
    if "preferences" in spec:
        draws = FromFile(str(spec["preferences"]), int(spec.get("pairs", 0)), int(spec.get("held_out_pairs", 200)))
    else:
        draws = FromPolicy(str(spec["model"]), prompts, gold, **_draw_settings(spec))
    return Setting(str(spec["model"]), prompts, evaluation, gold, draws, _identity(spec))


def _identity(spec: dict[str, Any]) -> str:
    return fingerprint([spec, file_hashes(spec)])


def _thirds(prompts: list[Text]) -> tuple[list[Text], list[Text]]:
    """(two thirds to train on, every third to judge on)."""
    if len(prompts) < 3:
        raise DataError(f"{len(prompts)} prompts can't be split for training and judging; give evaluation_prompts")
    return [p for i, p in enumerate(prompts) if i % 3], prompts[::3]


def _draw_settings(spec: dict[str, Any]) -> dict[str, Any]:
    draw = dict(spec["draw"])
    check_nested(draw, (FromPolicy,), "draw")
    check_ranges(draw, "draw.")
    check_keys(draw, tuple(FromPolicy.__dataclass_fields__.keys() - {"model", "prompts", "gold"}), "draw")
    return draw


@dataclass
class FromFile:
    """A preference dataset of which every seed takes its own rows: `pairs` to train on (0 for all but the held-out
    ones), and other ones held out."""

    path: str
    pairs: int
    held_out_pairs: int
    table: Dataset = field(init=False)

    def __post_init__(self) -> None:
        self.table = load_preferences(self.path)
        needed = max(self.pairs, 1) + self.held_out_pairs
        if len(self.table) < needed:
            raise DataError(f"{self.path} has {len(self.table)} pairs; a seed needs {needed}")

    def __call__(self, seed: int) -> tuple[Dataset, Dataset]:
        order = np.random.default_rng(seed).permutation(len(self.table))
        aside, rest = order[: self.held_out_pairs], order[self.held_out_pairs :]
        return self.table.select(rest[: self.pairs or None]), self.table.select(aside)


@dataclass
class FromPolicy:
    """Two completions of the reference policy for each pair; gold prefers one with Bradley–Terry's probability.

    Args:
        pairs, held_out_pairs: to train on, and to measure on.
        temperature: of the labels: P(first preferred) = σ((g₁ − g₂) / temperature); large is noisy.
        skew: prompt number i is asked with probability ∝ (i + 1)^−skew, in an order of the seed's own; 0 covers all
            prompts alike, 1 and more leaves most of them nearly unseen. Held-out pairs cover all alike.
        max_new_tokens: of a completion.
    """

    model: str
    prompts: list[Text]
    gold: Gold
    pairs: int = 500
    held_out_pairs: int = 200
    temperature: float = 1.0
    skew: float = 0.0
    max_new_tokens: int = 48

    def __post_init__(self) -> None:
        if min(self.pairs, self.held_out_pairs) < 2 or not self.temperature > 0 or self.skew < 0:
            raise ConfigError(
                "draw needs pairs and held_out_pairs of at least 2, a positive temperature and a skew of at least 0"
            )

    def __call__(self, seed: int) -> tuple[Dataset, Dataset]:
        return self._draw(self.pairs, self.skew, seed), self._draw(self.held_out_pairs, 0.0, seed + HELD_OUT_SEED)

    def _draw(self, pairs: int, skew: float, seed: int) -> Dataset:
        rng = np.random.default_rng(seed)
        mass = rng.permutation(np.arange(1, len(self.prompts) + 1, dtype=np.float64) ** -skew)
        model = load_policy(self.model)
        tokenizer = AutoTokenizer.from_pretrained(self.model, trust_remote_code=False)
        rows: list[dict[str, Text]] = []
        while len(rows) < pairs:
            asked = rng.choice(len(self.prompts), size=pairs - len(rows), p=mass / mass.sum())
            prompts = [self.prompts[i] for i in asked]
            first, second = (
                sample_completions(
                    model, tokenizer, prompts, max_new_tokens=self.max_new_tokens, seed=int(rng.integers(2**31))
                )
                for _ in range(2)
            )
            rows += self._labelled(prompts, first, second, rng)
        return Dataset.from_list(rows)

    def _labelled(
        self, prompts: list[Text], first: list[Text], second: list[Text], rng: np.random.Generator
    ) -> list[dict[str, Text]]:
        """Pairs of two different texts that aren't empty."""
        better = (np.array(self.gold(prompts, first)) - np.array(self.gold(prompts, second))) / self.temperature
        wins = rng.random(len(prompts)) < expit(better)
        usable = [
            a != b and all(text.strip() for text in as_texts([a, b])) for a, b in zip(first, second, strict=True)
        ]
        return [
            {"prompt": p, "chosen": a if win else b, "rejected": b if win else a}
            for p, a, b, win, fit in zip(prompts, first, second, wins, usable, strict=True)
            if fit
        ]


def as_texts(rows: Sequence[Text]) -> list[str]:
    """Plain text for records and pages; messages are joined."""
    return [plain_text(row) for row in rows]


def prompt_groups(prompts: Sequence[Text]) -> list[int]:
    """A number for each distinct prompt."""
    index: dict[str, int] = {}
    return [index.setdefault(json.dumps(prompt), len(index)) for prompt in prompts]
