"""Answers of ratings and of simulated annotators."""

import math

import pytest

from surefoot.errors import ConfigError
from surefoot.feedback.automatic import rated_answers, simulated_answers
from surefoot.feedback.pairs import Pair, pair_id


def pairs(count: int) -> list[Pair]:
    return [Pair(pair_id("p", f"a{i}", f"b{i}"), "p", f"a{i}", f"b{i}") for i in range(count)]


def test_ratings_become_preferences_ties_and_skips() -> None:
    found = rated_answers(pairs(4), [2.0, 1.0, 1.0, math.nan], [1.0, 1.5, 3.0, 0.0], "judge", tie_margin=0.5)
    assert [answer.choice for answer in found] == ["a", "tie", "b", "skip"]
    assert {answer.annotator for answer in found} == {"judge"}


def test_simulated_labels_have_the_stated_probability() -> None:
    """Of 4,000: ε + (1 − 2ε)σ(1) = .639 prefer a, within 4 standard errors."""
    found = simulated_answers(pairs(4000), [2.0] * 4000, [1.0] * 4000, "gold", flips=0.2)
    share = sum(answer.choice == "a" for answer in found) / 4000
    expected = 0.2 + 0.6 / (1 + math.exp(-1))
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / 4000)


def test_a_label_depends_on_its_pair_and_seed_alone() -> None:
    many = pairs(50)
    whole = {a.pair: a.choice for a in simulated_answers(many, [0.0] * 50, [0.3] * 50, "gold", seed=3)}
    part = {a.pair: a.choice for a in simulated_answers(many[40:10:-1], [0.0] * 30, [0.3] * 30, "gold", seed=3)}
    assert part == {pair: whole[pair] for pair in part}
    other = {a.pair: a.choice for a in simulated_answers(many, [0.0] * 50, [0.3] * 50, "gold", seed=4)}
    assert other != whole


def test_swapping_the_completions_swaps_the_label() -> None:
    many = pairs(50)
    turned = [Pair(pair.id, pair.prompt, pair.b, pair.a) for pair in many]
    straight = simulated_answers(many, [0.2] * 50, [0.0] * 50, "gold", flips=0.1)
    swapped = simulated_answers(turned, [0.0] * 50, [0.2] * 50, "gold", flips=0.1)
    assert [{"a": "b", "b": "a"}[answer.choice] for answer in straight] == [answer.choice for answer in swapped]
    assert {answer.choice for answer in straight} == {"a", "b"}


def test_without_noise_the_better_completion_wins() -> None:
    found = simulated_answers(pairs(3), [1.0, 0.0, 2.0], [0.9, 0.0, math.nan], "gold", temperature=0.0)
    assert [answer.choice for answer in found] == ["a", "tie", "skip"]


@pytest.mark.parametrize("keywords", [{"temperature": -1.0}, {"temperature": math.nan}, {"flips": 0.6}])
def test_noise_out_of_range(keywords: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"simulated labels|reversed labels"):
        simulated_answers(pairs(1), [1.0], [0.0], "gold", **keywords)  # type: ignore[arg-type]
