"""What training against a reward would give, before any training (docs/forecast.md)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from surefoot.forecast.candidates import group_texts
from surefoot.forecast.compute import forecast_scores
from surefoot.forecast.run import ForecastArguments, run_forecast
from surefoot.rewards.source import RewardSource
from surefoot.types import Text

__all__ = ["ForecastArguments", "forecast", "forecast_scores", "forecast_source", "run_forecast"]


def forecast_source(
    source: RewardSource,
    prompts: Sequence[Text],
    completions: Sequence[Text],
    *,
    gold: Sequence[float] | None = None,
    **settings: Any,
) -> dict[str, Any]:
    """What each objective would give at each KL budget, from completions of the reference policy, before any training.

    The source scores the completions, and is calibrated on them.

    Args:
        prompts, completions: one of each for each row, at least eight of a prompt; rows of one prompt in any order.
        gold: true rewards of the rows, NaN where unknown.
        settings: `objectives`, `kl_budgets`, `draws`, `runs`, `seed` of `forecast_scores`.

    Returns:
        `rows` (an objective at a budget each; budgets in nats, gains in the unit of the reward that judges),
        `best_of_n`, `recommendation`, and what they rest on; plain values.

    Raises:
        ConfigError, DataError, VarianceError: see `forecast_scores`.
    """
    texts = group_texts(prompts, completions)
    scores = source.score(texts.prompts, texts.completions)
    true = None if gold is None else torch.tensor(list(gold), dtype=torch.float64)[texts.order]
    return forecast_scores(source, texts, scores, gold=true, **settings)


forecast = forecast_source
"""Its name in earlier versions."""
