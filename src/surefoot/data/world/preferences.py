"""Draw labelled preference pairs of the offline world, with simulated annotators."""

from __future__ import annotations

import math
from typing import Literal, get_args

import numpy as np
from datasets import Dataset

from surefoot.data.world.language import STYLES, all_prompts, complete
from surefoot.data.world.truth import haste, true_reward
from surefoot.errors import ConfigError

__all__ = ["VARIANTS", "Variant", "draw_preferences"]

Variant = Literal["uneven", "even", "shared_bias"]
VARIANTS: tuple[str, ...] = get_args(Variant)

_COVERAGE: dict[str, tuple[float, ...]] = {
    "uneven": (0.47, 0.47, 0.015, 0.015, 0.015, 0.015),
    "even": (1 / 6,) * 6,
    "shared_bias": (1 / 6,) * 6,
}
"""Share of each style among the annotated completions. The reference policy uses all six alike."""

_SHARPNESS = 1.5
"""Log-odds of preferring the better completion, per unit of reward (Bradley-Terry)."""
_FLIPPED = 0.2
"""Share of labels that are flipped at random; accuracies are then about .6, as on real preferences."""
_BIAS = 1.5
"""Reward that annotators of `shared_bias` add for each hasty adverb; the true reward doesn't."""


def draw_preferences(variant: str, pairs: int, seed: int) -> Dataset:
    """Draw labelled pairs with columns `prompt`, `chosen`, `rejected`, `region` (the style of the chosen side).

    Both completions of a pair answer one prompt, in styles drawn by the variant's coverage. Labels follow
    Bradley-Terry on the true reward (plus the bias, for `shared_bias`), then 20% of them are flipped.

    Raises:
        ConfigError: unknown variant.
    """
    if variant not in VARIANTS:
        raise ConfigError(f"unknown variant '{variant}' of the offline world; known: {', '.join(VARIANTS)}")
    rng = np.random.default_rng([seed, VARIANTS.index(variant)])
    prompts = all_prompts()
    rows: dict[str, list[str]] = {"prompt": [], "chosen": [], "rejected": [], "region": []}
    for _ in range(pairs):
        prompt, topic, thing = prompts[rng.integers(len(prompts))]
        styles = [STYLES[i] for i in rng.choice(len(STYLES), size=2, p=_COVERAGE[variant])]
        texts = [complete(topic, thing, style, rng) for style in styles]
        first = _prefers_first(variant, prompt, texts, rng)
        better, worse = (0, 1) if first else (1, 0)
        for column, value in zip(rows, (prompt, texts[better], texts[worse], styles[better].name), strict=True):
            rows[column].append(value)
    return Dataset.from_dict(rows)


def _prefers_first(variant: str, prompt: str, texts: list[str], rng: np.random.Generator) -> bool:
    seen = [true_reward(prompt, text) + (_BIAS * haste(text) if variant == "shared_bias" else 0.0) for text in texts]
    preferred = bool(rng.random() < 1 / (1 + math.exp(-_SHARPNESS * (seen[0] - seen[1]))))
    return preferred != bool(rng.random() < _FLIPPED)
