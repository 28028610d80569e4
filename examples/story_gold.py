"""A transparent true reward of small stories: kind words are good, repetition is bad. Policies are judged by it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

KIND = """
happy smiled smile laughed laugh fun love loved friend friends kind nice help helped share shared hug hugged play
played thank thanked good proud together
"""
UNKIND = "sad cried cry scared angry mad hurt bad mean lost afraid broke broken dark alone"


def true_reward(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """Different kind words less different unkind ones, each worth 1, less 8 times the share of repeated word pairs.

    A word counts once, so saying it again brings nothing and costs as repetition.
    """
    return [_reward(text) for text in completions]


def _reward(text: str) -> float:
    words = re.findall(r"[a-z]+", text.lower())
    pairs = list(pairwise(words))
    repeated = 1 - len(set(pairs)) / len(pairs) if pairs else 0.0
    said = set(words)
    return len(said & set(KIND.split())) - len(said & set(UNKIND.split())) - 8.0 * repeated
