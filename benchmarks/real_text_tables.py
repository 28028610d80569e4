"""Figures and tables of `real_text.py`, made of its finished pipelines."""

from __future__ import annotations

import itertools
import math
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from real_text_data import BUDGETS, Bank
from surefoot.forecast.evaluate import Resampling
from surefoot.forecast.policies import policies_at_budgets
from surefoot.maths.objectives import weights
from surefoot.metrics.intervals import bootstrap_mean, brown_forsythe, risk, spread

__all__ = ["of_methods", "of_setting", "show"]


def of_setting(bank: Bank, parts: list[dict[str, Any]]) -> dict[str, Any]:
    """What the proxies and their variances are like, and what the variance alone is worth as a reward."""
    reward, variance = (np.array([part[name] for part in parts]) for name in ("reward", "variance"))
    freed = [trend_taken_out(bank, part) for part in parts]
    rhos = [
        np.corrcoef(np.log(variance[k]), np.log(np.delete(reward, k, axis=0).var(axis=0, ddof=1)))[0, 1]
        for k in range(len(parts) if len(parts) > 9 else 0)
    ]
    return {
        "agreement": float(np.mean([part["agreement"] for part in parts])),
        "noise": float(reward.var(axis=0, ddof=1).mean() / (reward**2).mean()),
        "rho": float(np.mean(rhos)) if rhos else None,
        "reliability": median([part["notes"].get("reliability") for part in parts]),
        "weight_cv": float(np.mean([part["notes"]["weight_cv"] for part in parts])),
        "variance_factor": float(np.median([part["variance_factor"] for part in parts])),
        "seconds": float(np.mean([part["seconds"] for part in parts])),
        "by_variance": [over_pipelines(each) for each in zip(*map(partial(by_variance, bank), parts), strict=True)],
        "trend_taken_out": {
            method: [over_pipelines(each) for each in zip(*(one[method] for one in freed), strict=True)]
            for method in ("weighted", "pessimistic", "both")
        },
    }


def by_variance(bank: Bank, part: dict[str, Any]) -> list[float]:
    """Gain at each budget of the policy that is made from minus the standard deviation, without any reward."""
    truth, _, deviation = seen(bank, part)
    if float(deviation.var()) < 1e-12 * float(deviation.mean()) ** 2:
        return [math.nan] * len(BUDGETS)
    return gains(-deviation, None, truth)


def trend_taken_out(bank: Bank, part: dict[str, Any]) -> dict[str, list[float]]:
    """Gain over plain at each budget, by a gold whose linear trend in the standard deviation is taken out.

    So nothing is won by avoiding what is uncertain merely because gold likes it less.
    """
    truth, reward, deviation = seen(bank, part)
    away = deviation - deviation.mean(dim=1, keepdim=True)
    truth = truth - (truth * away).sum() / away.square().sum() * away
    weight = weights(deviation.square(), float(deviation.square().mean()))
    found = {
        "plain": gains(reward, None, truth),
        "weighted": gains(reward, weight, truth),
        "pessimistic": gains(reward - 2 * deviation, None, truth),
        "both": gains(reward - 2 * deviation, weight, truth),
    }
    return {method: [a - b for a, b in zip(found[method], found["plain"], strict=True)] for method in found}


def seen(bank: Bank, part: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """(prompts, candidates) gold, reward and standard deviation."""
    truth = bank.truth[bank.texts.places]
    reward, variance = (
        torch.tensor(part[name], dtype=torch.float64).view_as(truth) for name in ("reward", "variance")
    )
    return truth - truth.mean(dim=1, keepdim=True), reward, variance.sqrt()


def gains(reward: Tensor, weight: Tensor | None, truth: Tensor) -> list[float]:
    uniform = torch.full_like(truth, -math.log(truth.shape[1]))
    policy = policies_at_budgets(reward, weight, uniform, BUDGETS).policy
    return ((policy - uniform.exp()) * truth).sum(dim=2).mean(dim=1).tolist()


def median(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.median(known)) if known else None


def of_methods(parts: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Figures of every method at every budget, over pipelines."""
    rows = []
    for (place, budget), method in itertools.product(enumerate(BUDGETS), parts[0]["gains"]):
        judged, plain = (np.array([part["gains"][name][place] for part in parts]) for name in (method, "plain"))
        told = [part["told"][method][place] - part["told"]["plain"][place] for part in parts if method in part["told"]]
        means, versus = judged.mean(axis=1), judged - plain
        row = {
            "gain": over_pipelines(means),
            "spread": spread(means),
            "spread_p": brown_forsythe(means, plain.mean(axis=1)),
            "below": risk(means).to_dict(),
            "prompt_risk": over_pipelines((judged < 0).mean(axis=1)),
            "versus": over_pipelines(versus.mean(axis=1)),
            "everywhere": Resampling(*versus.shape).mean(versus).to_dict(),
            "told": over_pipelines(told) if len(told) > 1 else None,
        }
        rows.append({"budget": budget, "method": method} | row)
    return rows


def over_pipelines(values: Any) -> dict[str, Any]:
    return bootstrap_mean(values, np.random.default_rng(0)).to_dict()


def show(settings: list[dict[str, Any]], rows: list[dict[str, Any]]) -> None:
    for held in settings:
        print({name: round(value, 3) if isinstance(value, float) else value for name, value in held.items()})
    columns = ("gain", "below", "prompt_risk", "versus", "everywhere", "told")
    print("| kind | pool | labels | N | budget | method | spread | " + " | ".join(columns) + " |")
    for row in rows:
        cells = [str(row[name]) for name in ("kind", "pool", "labels", "n", "budget", "method")]
        print("| " + " | ".join([*cells, f"{row['spread']:.3f}", *(interval(row[name]) for name in columns)]) + " |")


def interval(held: dict[str, Any] | None) -> str:
    return "" if held is None else f"{held['value']:.3f} [{held['low']:.3f}, {held['high']:.3f}]"
