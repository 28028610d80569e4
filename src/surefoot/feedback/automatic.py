"""Answers that no person gives: of a judge's two ratings, or simulated from gold with label noise."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from surefoot.errors import ConfigError
from surefoot.feedback.answers import Answer, Choice
from surefoot.feedback.pairs import Pair

__all__ = ["rated_answers", "simulated_answers"]


def rated_answers(
    pairs: Sequence[Pair], a: Sequence[float], b: Sequence[float], annotator: str, tie_margin: float = 0.0
) -> list[Answer]:
    """The answers of someone who rates both completions of each pair.

    Args:
        a, b: ratings of the pairs' completions; a pair with an unknown rating (NaN) is skipped.
        tie_margin: ratings that differ by no more are a tie, in units of the rating.
    """
    return [
        _answer(pair, annotator, _preferred(first - second, tie_margin))
        for pair, first, second in zip(pairs, a, b, strict=True)
    ]


def _preferred(margin: float, tie_margin: float) -> Choice:
    if math.isnan(margin):
        return "skip"
    if abs(margin) <= tie_margin:
        return "tie"
    return "a" if margin > 0 else "b"


def simulated_answers(
    pairs: Sequence[Pair],
    a: Sequence[float],
    b: Sequence[float],
    annotator: str,
    *,
    temperature: float = 1.0,
    flips: float = 0.0,
    seed: int = 0,
) -> list[Answer]:
    """The answers of an annotator who follows gold with noise.

    `a` is preferred with probability σ((gold_a − gold_b)/temperature); then a share of the answers is reversed. An
    answer depends on the seed and the pair alone, not on which other pairs are asked, or in which order.

    Args:
        a, b: gold of the pairs' completions; a pair whose gold is unknown (NaN) is skipped.
        temperature: 0 takes the better completion always, and a tie where both are equal.
        flips: share of the answers that are reversed, in [0, ½].

    Raises:
        ConfigError: a temperature or share out of range.
    """
    if not (temperature >= 0 and math.isfinite(temperature)):
        raise ConfigError(f"the temperature of simulated labels must be at least 0, got {temperature}")
    if not 0 <= flips <= 0.5:
        raise ConfigError(f"the share of reversed labels must be between 0 and 0.5, got {flips}")
    answers = []
    for pair, first, second in zip(pairs, a, b, strict=True):
        preferring, reversing = np.random.default_rng([seed, int(pair.id, 16)]).random(2)
        choice = _preferred(first - second, 0.0)
        if temperature > 0 and choice != "skip":
            # pair.a and pair.b may be swapped in another file of the same pair; the order of the texts may not matter.
            choice = _drawn((first - second) / temperature, preferring, _ordered(pair))
        if choice in ("a", "b") and reversing < flips:
            choice = "b" if choice == "a" else "a"
        answers.append(_answer(pair, annotator, choice))
    return answers


def _ordered(pair: Pair) -> bool:
    return str(pair.a) < str(pair.b)


def _drawn(log_odds: float, uniform: float, ordered: bool) -> Choice:
    """A preference drawn by its log-odds; `ordered` turns the draw, so that swapping the completions swaps it."""
    p = 0.5 * (1 + math.tanh(0.5 * log_odds))
    return "a" if (uniform < p if ordered else 1 - uniform < p) else "b"


def _answer(pair: Pair, annotator: str, choice: Choice) -> Answer:
    return Answer(pair.id, annotator, choice, strength=1 if choice in ("a", "b") else 0)
