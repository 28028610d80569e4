"""The true reward of the saved study: how many cats a completion has more than dogs."""

from collections.abc import Sequence


def cats(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    return [float(text.split().count("cat") - text.split().count("dog")) for text in completions]
