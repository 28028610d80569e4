"""Synthetic studies on disk, in the format of `surefoot study`: true gains are known, so figures can be checked."""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from surefoot.files import read_json, write_json

GAINS = {
    "vanilla": (0.35, 0.35),
    "mean": (0.5, 0.25),
    "lcb": (0.6, 0.2),
    "uwo": (0.55, 0.22),
    "wco": (0.5, 0.24),
    "variance_aware": (0.68, 0.18),
    "variance_aware_one": (0.45, 0.3),
    "variance_aware_lcb": (0.7, 0.17),
    "literal": (0.6, 0.2),
}
"""Mean and standard deviation over seeds of each method's true gain."""
SHIFTS = (-0.4, -0.2, 0.0, 0.2, 0.4)
"""A run's gain on each of five evaluation prompts, less its mean gain."""
PROMPTS = ("Tell me about the sea.", "Why do cats purr?", "A short story about a lost key:", "How do I boil an egg?")


def place_of(setting: str, source: str, method: str, budget: float | None, seed: int) -> dict[str, Any]:
    key = f"{setting}-{source}-{method}-{budget}-{seed}"
    return {"key": key, "setting": setting, "source": source, "method": method, "kl_budget": budget, "seed": seed}


def cell_of(place: dict[str, Any], gain: float, steps: int = 60, batch_noise: float = 0.15) -> dict[str, Any]:
    """One finished cell: KL grows to the budget, and the true reward to `gain` over the reference."""
    rng = random.Random(place["key"])
    budget = place["kl_budget"] or 8.0
    reach = budget * (1 + 0.06 * rng.gauss(0, 1))
    path = []
    for step in range(1, steps + 1):
        share = min(1.0, 1.3 * step / steps)
        peak = share * (2 - share) * gain + (0.15 * (1 - share) * share if gain < 0.4 else 0.0)
        path.append({
            "step": step, "kl": max(0.0, reach * share + 0.05 * rng.gauss(0, 1)), "proxy": 1.2 * share,
            "gold": 1.02 + peak + batch_noise * rng.gauss(0, 1),
            "variance": None if place["method"] == "vanilla" else 0.4 - 0.1 * share, "weight": 1.0, "beta": 0.2,
        })  # fmt: skip
    ensemble = place["method"] not in ("vanilla", "variance_aware_one")
    cpu = 60 * (1 + 0.1 * rng.random()) * (1.25 if ensemble else 1.0)
    gains = [gain + shift for shift in SHIFTS]
    metrics = {
        "prompt_risk": sum(one < 0 for one in gains) / len(gains),
        "gold_reference": 1.0, "gold_reference_train": 1.02, "gold_final": 1.0 + gain, "gold_gain": gain,
        "kl_final": reach, "proxy_reference": 0.0, "proxy_final": 1.2, "beta_final": 0.2, "seconds": 1.1 * cpu,
        "cpu_seconds": cpu, "source_cpu_seconds": 70.0 if ensemble else 16.0, "peak_memory_mb": 800.0,
    }  # fmt: skip
    return place | {
        "kind": "cell",
        "created": "2026-01-01T00:00:00+00:00",
        "config": {"place": place},
        "data_hash": "0",
        "commit": None,
        "versions": {"surefoot": "0.1.0"},
        "metrics": metrics,
        "anchor": "reference",
        "anchor_completions": 4,
        "trajectory": path,
        "samples": samples_of(place, gain),
        "prompt_gains": gains,
        "prompt_completions": [10] * len(gains),
    }


def samples_of(place: dict[str, Any], gain: float) -> list[dict[str, Any]]:
    return [
        {
            "prompt": prompt,
            "reference": f"The reference answers: {prompt.lower()} That is hard to say, but here is a thought.",
            "completion": f"{place['method']} answers with a few more words about it, seed {place['seed']}.",
            "proxy": 1.0 + gain,
            "variance": None if place["method"] == "vanilla" else 0.3,
            "gold": 1.0 + gain,
            "gold_reference": 1.0 if number else None,
        }
        for number, prompt in enumerate(PROMPTS)
    ]


def disagreement_of(setting: str, source: str, seed: int) -> dict[str, Any]:
    shift = random.Random(seed).gauss(0, 0.02)

    def around(value: float, n: int = 500) -> dict[str, Any]:
        return {"value": value + shift, "low": value + shift - 0.06, "high": value + shift + 0.06, "n": n}

    known = {
        "completions": 512, "variance_cv": 0.5 + shift, "prior_freedom": 6.0, "spearman": around(0.3, 512),
        "mean_correlation": 0.55 + shift, "member_correlation": 0.45 + shift, "reliability": 0.5 + 0.1 * (seed % 2),
    }  # fmt: skip
    return {
        "setting": setting,
        "source": source,
        "seed": seed,
        "pairs": 500,
        "members": 5,
        "accuracy_of_members": [around(0.66 + 0.01 * k) for k in range(5)],
        "accuracy_of_mean": around(0.71),
        "split": around(0.4),
        "minority": 0.27,
        "agreement": 0.8 + shift,
        "tau": 0.6 + shift,
        "offset_overall": 0.1,
        "offset_per_prompt": 0.5,
        "margin_sd": [0.1, 0.2, 0.3],
        "prior_freedom": None if seed == 0 else 5.0 + shift,
        "variance_cv": 0.4 + shift,
        "error_auroc": {
            "variance": around(0.6),
            "sd_over_margin": {"value": None, "low": None, "high": None, "n": 500},
            "margin": around(0.66),
        },
        "verdict": ["First finding.", "Second <b>finding</b>."],
        "known_errors": known,
    }


def write_study(
    folder: Path,
    *,
    methods: Sequence[str] = ("vanilla", "mean", "variance_aware"),
    settings: Sequence[str] = ("uneven",),
    sources: Sequence[str] = ("heads",),
    budgets: Sequence[float | None] = (6.0,),
    seeds: int = 12,
    gains: dict[str, Sequence[float]] | None = None,
    steps: int = 60,
) -> Path:
    """A finished study in `folder`.

    Args:
        gains: method to its runs' true gains; drawn from GAINS around an effect of the seed if None.
    """
    places = [place_of(*one) for one in itertools.product(settings, sources, methods, budgets, range(seeds))]
    for place in places:
        gain = _gain(place) if gains is None else gains[place["method"]][place["seed"]]
        write_json(folder / "cells" / f"{place['key']}.json", cell_of(place, gain, steps))
    for setting, source, seed in itertools.product(settings, sources, range(seeds)):
        found = disagreement_of(setting, source, seed)
        write_json(folder / "disagreement" / f"{setting}-{source}-{seed}.json", found)
    grid = {
        "kind": "study", "title": "a <study>", "config": {"settings": {name: {"world": name} for name in settings},
        "methods": list(methods), "seeds": seeds, "policy": {"learning_rate": 5e-4}}, "settings": list(settings),
        "sources": list(sources), "methods": list(methods), "kl_budgets": list(budgets), "seeds": list(range(seeds)),
        "cells": places, "versions": {"surefoot": "0.1.0", "torch": "2"}, "commit": "0123456789" * 4 + "+changes",
    }  # fmt: skip
    write_json(folder / "study.json", grid)
    return folder


def _gain(place: dict[str, Any]) -> float:
    mean, sd = GAINS[place["method"]]
    shared = random.Random(f"{place['setting']}{place['seed']}").gauss(0, 1)
    own = random.Random(place["key"]).gauss(0, 1)
    scale = 0.4 if place["setting"] == "even" else 1.0
    return scale * mean + sd * (0.6 * shared + 0.8 * own)


def as_an_earlier_version_wrote_it(folder: Path) -> None:
    """Take out of the records what cells and sources didn't hold at first."""
    for path in (folder / "cells").glob("*.json"):
        cell = read_json(path)
        for name in ("prompt_gains", "prompt_completions", "anchor", "anchor_completions"):
            del cell[name]
        del cell["metrics"]["prompt_risk"]
        write_json(path, cell)
    for path in (folder / "disagreement").glob("*.json"):
        found = read_json(path)
        del found["known_errors"]["reliability"]
        write_json(path, found)


def edit_cell(folder: Path, place: dict[str, Any], **metrics: Any) -> None:
    """Change figures of one cell's metrics."""
    path = folder / "cells" / f"{place['key']}.json"
    cell = read_json(path)
    cell["metrics"] |= metrics
    write_json(path, cell)
