"""The tables of `surefoot theory`: the guarantee holds, the reference figures come back, words follow numbers."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from surefoot.cli.main import main
from surefoot.reports.theory import theory_tables, theory_words
from surefoot.reports.theory_figures import theory_figures
from surefoot.theory.tables.closed_form import closed_form_table
from surefoot.theory.tables.correlated import correlated_table
from surefoot.theory.tables.estimated_variance import estimated_variance_table, smallest_members
from surefoot.theory.tables.frontier import METHODS, frontier_table, pessimism_table
from surefoot.theory.tables.problems import generator, moderated_variance, normal
from surefoot.theory.tables.theorem import theorem_table

Row = dict[str, Any]


@pytest.fixture(scope="module")
def estimated() -> list[Row]:
    return estimated_variance_table(0)


@pytest.fixture(scope="module")
def frontier() -> list[Row]:
    return frontier_table(0, problems=150)


def test_simulation_agrees_with_the_closed_form() -> None:
    rows = closed_form_table(0, problems=5, draws=2000)
    z = torch.tensor([(row["simulated"] - row["closed"]) / row["error"] for row in rows])
    assert len(rows) == 2 * 4 * 4 * 5
    assert float(z.abs().max()) < 4.5
    assert 0.6 < float(z.std()) < 1.3  # errors of the stated size, not merely errors that are small


def test_the_theorem_holds_in_ten_thousand_problems() -> None:
    total, rows = theorem_table(0, problems=10_000)
    assert total["problems"] >= 10_000
    assert total["violations"] == 0
    assert total["largest_excess"] < 1e-12
    strict = [row for row in rows if row["hetero"] > 0 and row["actions"] > 2 and row["kind"] == "gaussian"]
    assert all(row["median_variance_aware_risk"] < row["median_vanilla_risk"] for row in strict)


def test_with_two_actions_no_metric_changes_the_direction() -> None:
    _, rows = theorem_table(0, problems=800)
    two = [row for row in rows if row["actions"] == 2]
    assert all(row["median_variance_aware_risk"] == pytest.approx(row["median_vanilla_risk"]) for row in two)


REFERENCE = {
    (0.0, 2): (0.104, 0.351, 0.112),
    (0.0, 3): (0.062, 0.237, 0.066),
    (0.0, 5): (0.029, 0.094, 0.030),
    (0.0, 10): (0.005, 0.011, 0.005),
    (1.0, 3): (0.065, 0.015, 0.003),
    (1.0, 5): (0.026, 0.000, 0.000),
}
"""docs/method.md 3.2: ignored, raw, moderated; 4,000 draws each."""


@pytest.mark.parametrize("key", REFERENCE)
def test_the_reference_figures_come_back(estimated: list[Row], key: tuple[float, int]) -> None:
    (row,) = (row for row in estimated if (row["hetero"], row["K"]) == key)
    for name, reference in zip(("ignored", "raw", "moderated"), REFERENCE[key], strict=True):
        # Both are simulations of 4,000 draws; the smallest error is that of two draws in 4,000.
        error = math.sqrt(2) * max(row[f"{name}_error"], math.sqrt(2) / 4000)
        assert abs(row[name] - reference) < 3.5 * error + 0.0005, name


def test_raw_variance_can_be_worse_than_none_and_moderated_is_not(estimated: list[Row]) -> None:
    for row in estimated:
        if row["hetero"] == 0 and row["K"] <= 5:
            assert row["raw_minus_ignored"] > 5 * row["raw_minus_ignored_error"]
        assert row["moderated_minus_ignored"] < 0.01


def test_smallest_members_by_hand() -> None:
    def row(members: int, raw: float) -> Row:
        names = {"raw_minus_ignored": raw, "moderated_minus_ignored": -0.1, "known_minus_ignored": 0.0}
        return {"hetero": 0.5, "K": members} | names | {f"{name}_error": 0.01 for name in names}

    rows = [row(2, 0.2), row(3, -0.2), row(5, 0.2), row(10, -0.2), row(30, -0.001)]
    assert smallest_members(rows) == [{"hetero": 0.5, "raw": 10, "moderated": 2, "known": None}]


def test_moderation_in_batches_is_moderation_one_by_one() -> None:
    from surefoot.maths.ensemble import estimate

    members = normal(generator(0, 9), 4, 60, 5) * torch.tensor([0.2, 3.0], dtype=torch.float64).repeat(30)[:, None]
    one_by_one = torch.stack([estimate(one, one.mean(dim=0).expand_as(one)).variance for one in members])
    centred = members - members.mean(dim=1, keepdim=True)
    torch.testing.assert_close(moderated_variance(centred), one_by_one, rtol=1e-10, atol=0)


def test_the_frontier_compares_the_same_problems(frontier: list[Row]) -> None:
    keys = {(row["hetero"], row["reward_sd"], row["kl"]) for row in frontier}
    for key in keys:
        here = [row for row in frontier if (row["hetero"], row["reward_sd"], row["kl"]) == key]
        assert {row["method"] for row in here} == {*METHODS, "variance_aware_known"}
        assert len({row["problems"] for row in here}) == 1
        (ours,) = (row for row in here if row["method"] == "variance_aware")
        assert ours["gain_over_ours"] == 0
        (mean,) = (row for row in here if row["method"] == "mean")
        assert mean["gain"] - ours["gain"] == pytest.approx(mean["gain_over_ours"])


def test_weighting_lowers_risk_near_the_reference_where_variances_differ(frontier: list[Row]) -> None:
    for row in frontier:
        if (row["method"], row["hetero"], row["reward_sd"], row["kl"]) == ("mean", 1.0, 0.125, 0.3):
            assert row["risk_over_ours"] > 3 * row["risk_over_ours_error"]
            return
    raise AssertionError("no such row")


def test_with_the_true_equal_variances_weighting_is_the_mean(frontier: list[Row]) -> None:
    equal = [row for row in frontier if row["hetero"] == 0]
    mean = [row["gain"] for row in equal if row["method"] == "mean"]
    known = [row["gain"] for row in equal if row["method"] == "variance_aware_known"]
    assert mean == pytest.approx(known, rel=1e-8)


def test_losses_are_listed() -> None:
    def row(method: str, gain: float, risk: float) -> Row:
        place = {"hetero": 1.0, "reward_sd": 0.5, "kl": 1.0, "method": method}
        return place | {
            "gain_over_ours": gain, "gain_over_ours_error": 0.1, "risk_over_ours": risk, "risk_over_ours_error": 0.1
        }  # fmt: skip

    rows = [row("variance_aware", 0, 0), row("uwo", 0.3, 0.3), row("wco", 0.1, -0.3), row("mean", -0.3, 0.0)]
    (found,) = pessimism_table(rows)
    assert (found["larger_gain"], found["smaller_risk"]) == (["uwo"], ["wco"])


def test_uncorrelated_errors_keep_the_guarantee_and_correlated_ones_may_not() -> None:
    rows = correlated_table(0, problems=200)
    for row in rows:
        assert row["full_covariance"] <= row["vanilla"] + 1e-12
        assert row["full_covariance"] <= row["variance_aware"] + 1e-12
        if row["correlation"] == 0:
            assert row["worse"] == 0
            assert row["variance_aware"] == pytest.approx(row["full_covariance"], rel=1e-8)
    assert max(row["worse"] for row in rows) > 0.05


@pytest.mark.slow
def test_the_command_writes_what_it_prints(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["theory", "--output_dir", str(tmp_path / "out")]) == 0
    found = json.loads((tmp_path / "out" / "theory.json").read_text())
    assert found["theorem"]["problems"] >= 10_000
    assert found["theorem"]["violations"] == 0
    assert {"problem", "closed", "simulated", "error"} <= found["closed_form"][0].keys()
    assert {"hetero", "K", "ignored", "raw", "moderated", "known", "draws"} <= found["estimated_variance"][0].keys()
    assert {"hetero", "kl", "method", "risk", "spread", "gain"} <= found["frontier"][0].keys()
    assert {path.stem for path in (tmp_path / "out").glob("*.svg")} == theory_figures(found).keys()
    assert len(theory_tables(found)) == 5
    printed = " ".join(capsys.readouterr().out.split())
    assert all(" ".join(line.split()) in printed for line in theory_words(found))
    assert "was above the vanilla one in 0" in printed
