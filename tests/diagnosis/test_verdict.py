"""The verdict follows its stated rules: each is switched by the one figure it is about."""

from typing import Any

import pytest

from surefoot.diagnosis.verdict import judge


def interval(value: float, half: float = 0.02, n: int = 400) -> dict[str, Any]:
    return {"value": value, "low": value - half, "high": value + half, "n": n}


def figures() -> dict[str, Any]:
    """A source that sees mistakes and distance, and whose variance differs and is precise."""
    far = {
        kind: {"label": kind, "auroc": interval(0.8), "mean": -1.0, "preferred": interval(0.2)}
        for kind in ("shuffled", "constant", "short")
    }
    return {
        "accuracy": {"overall": interval(0.64)},
        "heterogeneity": {"variation": 0.7, "prior_freedom": 4.0, "has_prior": True, "reliability": 0.9},
        "usefulness": {
            "auroc": {"variance": interval(0.6), "sd_over_margin": interval(0.7), "margin": interval(0.62)},
            "above_baseline": {"variance": interval(-0.02), "sd_over_margin": interval(0.08)},
        },
        "far": far,
        "disagreement": {"offset_per_prompt": 0.4, "tau": 0.5},
        "calibration": {"factor": 1.1},
    }


def blind_to_mistakes(found: dict[str, Any]) -> None:
    found["usefulness"]["above_baseline"]["sd_over_margin"] = interval(0.01)
    found["usefulness"]["auroc"]["variance"] = interval(0.51)


def blind_to_distance(found: dict[str, Any]) -> None:
    for kind in ("shuffled", "constant"):
        found["far"][kind]["auroc"] = interval(0.51)


def test_a_source_that_sees_everything() -> None:
    verdict = judge(figures())
    assert verdict.weighting == "likely"
    assert verdict.advice == []
    assert "0.64 [0.62, 0.66] of 400 pairs" in verdict.lines[0]
    assert "larger, beyond chance, on 3 of 3 kinds" in " ".join(verdict.lines)


@pytest.mark.parametrize("blind", [blind_to_mistakes, blind_to_distance])
def test_what_it_cannot_see_is_said_and_advised_on_but_does_not_count(blind: Any) -> None:
    """Neither foretold gains (docs/results/forecast.md)."""
    found = figures()
    blind(found)
    verdict = judge(found)
    assert verdict.weighting == "likely"
    assert verdict.lines != judge(figures()).lines
    assert len(verdict.advice) == 1


def test_the_variance_alone_is_enough_to_see_mistakes() -> None:
    found = figures()
    found["usefulness"]["above_baseline"]["sd_over_margin"] = interval(-0.1)
    assert any("The variance predicts mistakes" in line for line in judge(found).lines)  # its own AUROC is .60 ± .02


@pytest.mark.parametrize("change", [{"variation": 0.09}, {"prior_freedom": None}, {"variation": None}])
def test_nothing_to_work_with(change: dict[str, Any]) -> None:
    found = figures()
    found["heterogeneity"] |= change
    verdict = judge(found)
    assert verdict.weighting == "nothing"
    assert any("bootstrap" in line for line in verdict.advice)


def test_a_noisy_variance() -> None:
    """Below .6 weighting is unlikely to help whatever else the source sees, and the advice says what would."""
    found = figures()
    found["heterogeneity"]["reliability"] = 0.59
    verdict = judge(found)
    assert verdict.weighting == "unlikely"
    assert "weights made of it are mostly noise" in verdict.lines[1]
    assert "reliability of the variance is 0.59 (1 at most), below 0.60" in verdict.lines[2]
    (advice,) = verdict.advice
    for word in ("kind: linear", "members: 50", "variance: smoothed"):
        assert word in advice
    found["heterogeneity"]["reliability"] = 0.61
    assert judge(found).weighting == "likely"
    assert judge(found).advice == []


def test_an_unknown_reliability_is_said_and_promises_less() -> None:
    found = figures()
    found["heterogeneity"]["reliability"] = 1.0
    assert judge(found).weighting == "likely"
    found["heterogeneity"]["reliability"] = None
    verdict = judge(found)
    assert verdict.weighting == "possible"
    assert "its precision is unknown" in verdict.lines[1]
    assert "reliability of the variance is unknown" in verdict.lines[2]


def test_noisy_and_even_at_once_is_nothing() -> None:
    found = figures()
    found["heterogeneity"] |= {"reliability": 0.1, "prior_freedom": None}
    verdict = judge(found)
    assert verdict.weighting == "nothing"
    assert any("kind: linear" in line for line in verdict.advice)
    assert any("bootstrap" in line for line in verdict.advice)


def test_a_source_without_members_has_no_prior_to_be_infinite() -> None:
    found = figures()
    found["heterogeneity"] |= {"prior_freedom": None, "has_prior": False}
    found["disagreement"] = None
    assert judge(found).weighting == "likely"


def test_fooled_and_unaware() -> None:
    found = figures()
    found["far"]["constant"] |= {"auroc": interval(0.4), "preferred": interval(0.9)}
    verdict = judge(found)
    assert any("It prefers one constant answer to the ordinary replies" in line for line in verdict.lines)
    assert any("rejected sides" in line for line in verdict.advice)
    found["far"]["constant"]["auroc"] = interval(0.9)  # fooled, but it knows
    assert not any("prefers" in line for line in judge(found).lines)


def test_advice_follows_its_figure() -> None:
    found = figures()
    found["accuracy"]["overall"] = interval(0.51)
    assert any("more or better preferences" in line for line in judge(found).advice)
    found = figures()
    found["disagreement"]["tau"] = 0.9
    assert any("nearly one model (τ 0.90)" in line for line in judge(found).advice)
    found = figures()
    found["calibration"]["factor"] = 20.0
    assert any("off by a factor of 20" in line for line in judge(found).advice)


def test_unknown_figures_are_said_to_be_unknown() -> None:
    found = figures()
    unknown = {"value": None, "low": None, "high": None, "n": 400}
    found["usefulness"] = {
        "auroc": dict.fromkeys(("variance", "sd_over_margin", "margin"), unknown),
        "above_baseline": dict.fromkeys(("variance", "sd_over_margin"), unknown),
    }
    found["far"] = {}
    verdict = judge(found)
    assert verdict.weighting == "likely"  # by its reliability alone
    assert any("Whether the variance predicts mistakes is unknown" in line for line in verdict.lines)
    assert any("Far texts were not scored" in line for line in verdict.lines)
    assert not any("doesn't predict" in line for line in verdict.lines)


def test_a_share_that_is_estimated_below_nothing_is_none_of_it() -> None:
    found = figures()
    found["disagreement"]["offset_per_prompt"] = -0.004
    assert judge(found).lines[-1].startswith("0% of the members' raw variance")
    found["disagreement"]["offset_per_prompt"] = None
    assert not any("raw variance" in line for line in judge(found).lines)
