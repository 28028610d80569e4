"""Krippendorff's α and κ against their authors' worked examples, by hand, and under changes that must not matter."""

import math
import random

import numpy as np
import pytest

from surefoot.feedback.agreement import cohen_kappa, fleiss_kappa, krippendorff_alpha, summary
from surefoot.feedback.answers import Answer

# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability", section C: four observers, twelve units, missing
# values; the paper gives α = .743 for nominal and .815 for ordinal data.
EXAMPLE = [
    [1, 1, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4],
    [4, 4, 4, 4], [1, 1, 2, 1], [2, 2, 2, 2], [5, 5, 5], [1, 1], [3],
]  # fmt: skip


def test_the_authors_worked_example() -> None:
    assert krippendorff_alpha(EXAMPLE, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(EXAMPLE, "ordinal") == pytest.approx(0.815, abs=5e-4)


def test_two_units_by_hand() -> None:
    """o₀₁ + o₁₀ = 2; n₀ = n₁ = 3: α = 1 − (n − 1)·2/(2·n₀·n₁) = 1 − 5·2/18."""
    assert krippendorff_alpha([[0, 0], [1, 1], [0, 1]]) == pytest.approx(1 - 10 / 18)


def test_perfect_agreement_is_one_chance_is_zero_and_nothing_is_unknown() -> None:
    assert krippendorff_alpha([[0, 0, 0], [1, 1], [2, 2]]) == 1.0
    stream = random.Random(0)
    chance = [[stream.randrange(3) for _ in range(2)] for _ in range(4000)]
    assert abs(krippendorff_alpha(chance)) < 0.064  # four standard errors: 1/√4,000 each
    for units in ([], [[1], [2]], [[1, 1], [1, 1]]):
        assert math.isnan(krippendorff_alpha(units))


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
def test_order_of_units_and_annotators_spacing_and_direction_don_t_matter(level: str) -> None:
    alpha = krippendorff_alpha(EXAMPLE, level)  # type: ignore[arg-type]
    stream = random.Random(1)
    shuffled = [stream.sample(unit, len(unit)) for unit in stream.sample(EXAMPLE, len(EXAMPLE))]
    for other in (
        shuffled,
        [[10.0**value for value in unit] for unit in EXAMPLE],  # ordinal: the order alone counts
        [[-value for value in unit] for unit in EXAMPLE],
        [*EXAMPLE, [7], [9], []],  # single values don't count
    ):
        assert krippendorff_alpha(other, level) == pytest.approx(alpha, abs=1e-12)  # type: ignore[arg-type]


def test_nominal_alpha_ignores_what_the_values_are_and_ordinal_doesn_t() -> None:
    renamed = [[{1: 4, 4: 1}.get(value, value) for value in unit] for unit in EXAMPLE]
    assert krippendorff_alpha(renamed) == pytest.approx(krippendorff_alpha(EXAMPLE), abs=1e-12)
    assert abs(krippendorff_alpha(renamed, "ordinal") - krippendorff_alpha(EXAMPLE, "ordinal")) > 0.01


def test_summary_counts_times_and_sides() -> None:
    answers = [
        Answer("1", "ann", "a", "a", 1, 2.0), Answer("1", "bob", "a", "b", 2, 4.0),
        Answer("2", "ann", "tie", "a", 0, 3.0),
        Answer("2", "bob", "b", "b", 1, 5.0), Answer("3", "ann", "skip", "a", 0, 90.0),
    ]  # fmt: skip
    told = summary(answers)
    assert (told["pairs"], told["pairs_with_two"], told["answers"]) == (2, 2, 5)
    assert told["choices"] == {"a": 2, "b": 1, "skip": 1, "tie": 1}
    assert told["median_seconds"] == 3.5  # a skip's time is no label's
    assert told["left_share"] == pytest.approx(2 / 3)
    assert told["annotators"]["ann"]["median_seconds"] == 2.5
    assert told["alpha"]["nominal"] == pytest.approx(krippendorff_alpha([[1, 1], [0, -1]]))
    assert summary(answers[:1])["alpha"] == {"nominal": None, "ordinal": None}


# Fleiss 1971, "Measuring nominal scale agreement among many raters", as reprinted on Wikipedia: ten units, fourteen
# raters, how many gave each of five values; κ = .210.
FLEISS = [
    [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
    [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
]  # fmt: skip


def test_fleiss_kappa_of_a_worked_example() -> None:
    """A unit's pairs of raters: n_i n_j of different values, n_i (n_i − 1)/2 of one value."""
    tables = np.zeros((5, 5))
    for unit in np.array(FLEISS, dtype=float):
        tables += np.triu(np.outer(unit, unit), 1) + np.diag(unit * (unit - 1) / 2)
    assert fleiss_kappa(tables) == pytest.approx(0.210, abs=5e-4)


def test_kappas_of_two_raters() -> None:
    """Cohen counts a rater's leaning as chance, so that raters who lean apart agree more beyond it than by Fleiss."""
    table = np.array([[45.0, 15.0], [25.0, 15.0]])
    assert cohen_kappa(table) == pytest.approx((0.6 - 0.54) / 0.46)
    assert fleiss_kappa(table) == pytest.approx((0.6 - 0.545) / 0.455)
    assert cohen_kappa(table.T) == pytest.approx(cohen_kappa(table))
    assert cohen_kappa(np.diag([3.0, 4.0])) == 1.0
    assert cohen_kappa(np.outer([3.0, 4.0], [2.0, 5.0])) == pytest.approx(0, abs=1e-12)
    for nothing in (np.zeros((2, 2)), np.diag([7.0, 0.0])):
        assert math.isnan(cohen_kappa(nothing))
        assert math.isnan(fleiss_kappa(nothing))
    several = np.stack([table, np.diag([3.0, 4.0])])
    assert cohen_kappa(several).tolist() == [float(cohen_kappa(each)) for each in several]
