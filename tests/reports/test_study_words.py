"""The summary in plain words: sure only where the rules say so, honest where nothing is certain."""

from pathlib import Path

import pytest

from surefoot.files import read_json, write_json
from surefoot.reports.records import read_study
from surefoot.reports.study_words import group_words, proof, study_words, verdicts
from surefoot.reports.summary import summarise, summarise_group
from tests.reports.synthetic import edit_cell, place_of, write_study


def words(folder: Path) -> dict[str, str]:
    (group,) = read_study(folder).groups
    return dict(group_words(summarise_group(group)))


def study(folder: Path, **gains: list[float]) -> Path:
    return write_study(folder, methods=tuple(gains), gains=gains, seeds=len(next(iter(gains.values()))), steps=20)


def test_three_runs_are_never_sure(tmp_path: Path) -> None:
    found = words(study(tmp_path, vanilla=[-0.5, 0.25, 0.25], mean=[0.5] * 3, variance_aware=[0.5, 0.75, 1.0]))
    assert found["Which method"] == (
        "Variance-aware gained most: 0.75 [0.50, 1.00] in true reward over the reference, against 0.00 [−0.50, 0.25] "
        "of one reward model."
    )
    assert (
        "more in 3 of 3 (sign test p = 0.25, 0.50 adjusted for 2 methods). Not beyond chance: with 3 pairs no"
        in found["How sure"]
    )
    assert "The difference is not beyond chance (exact McNemar p = 1.00)" in found["Risk"]
    assert "even one to 0" in found["Risk"]
    assert found["Beyond averaging"].endswith("not beyond chance.")


def test_six_pairs_suffice_for_one_method_and_not_for_two(tmp_path: Path) -> None:
    """Six of six: p = 1/32, times two after Holm."""
    one = words(study(tmp_path / "one", vanilla=[0.0] * 6, mean=[0.5, 0.6, 0.7, 0.5, 0.6, 0.7]))
    assert one["How sure"].endswith("): beyond chance.")
    assert "biased" not in one["How sure"]  # nothing was picked
    two = words(study(tmp_path / "two", vanilla=[0.0] * 6, lcb=[0.1] * 6, mean=[0.5, 0.6, 0.7, 0.5, 0.6, 0.7]))
    assert "Not beyond chance: with 6 pairs no result can pass that test" in two["How sure"]


def test_a_sure_difference_and_a_sure_risk(tmp_path: Path) -> None:
    found = words(study(tmp_path, vanilla=[-0.1] * 8, mean=[0.2] * 8, lcb=[0.3] * 8))
    assert "beyond chance. It is the largest of 2 observed differences" in found["How sure"]
    assert found["Risk"].startswith("LCB ended below the reference in 0 of 8 runs, one reward model in 8 of 8 runs")
    assert "beyond chance (exact McNemar p = 0.008)" in found["Risk"]
    assert found["Beyond averaging"].startswith("Against the plain mean of members it gained +0.10 [+0.10, +0.10]")
    assert found["Beyond averaging"].endswith("beyond chance.")
    assert found["Cost"].endswith("the CPU time of one reward model, training of the reward source included.")


def test_an_undecided_difference_names_what_could_be_found(tmp_path: Path) -> None:
    gains = {"vanilla": [0.0] * 10, "mean": [0.3, -0.2, 0.4, -0.1, 0.2, 0.3, -0.3, 0.1, 0.2, -0.1]}
    found = words(study(tmp_path, **gains))
    assert "Not beyond chance: so many runs detect a difference of 0.2" in found["How sure"]


def test_a_baseline_that_never_lost_leaves_nothing_to_find(tmp_path: Path) -> None:
    found = words(study(tmp_path, vanilla=[0.1] * 3, mean=[0.2] * 3))
    assert found["Risk"] == (
        "Mean of members ended below the reference in 0 of 3 runs, one reward model in 0 of 3 runs: these runs can't "
        "show a lower risk. That of one reward model may be as high as 56% (95% interval)."
    )


def test_when_the_baseline_leads(tmp_path: Path) -> None:
    found = words(study(tmp_path, vanilla=[0.5] * 12, mean=[0.2] * 12))
    assert found["Which method"].startswith("No method gained more than one reward model: 0.50")
    assert "Mean of members gained less beyond chance." in found["Which method"]
    assert found["Risk"] == (
        "One reward model ended below the reference in 0 of 12 runs; its risk may be as high as 24% (95% interval)."
    )


def test_without_any_true_reward(tmp_path: Path) -> None:
    folder = study(tmp_path, vanilla=[0.5] * 2, mean=[0.2] * 2)
    for method in ("vanilla", "mean"):
        for seed in range(2):
            edit_cell(folder, place_of("uneven", "heads", method, 6.0, seed), gold_gain=None)
    assert words(folder)["Which method"] == "No run has a true reward, so risk and gain are unknown."


def test_over_several_groups(tmp_path: Path) -> None:
    gains = {"vanilla": [-0.1] * 8, "mean": [0.2] * 8}
    folder = write_study(tmp_path, methods=("vanilla", "mean"), gains=gains, seeds=8, budgets=(2.0, 4.0), steps=20)
    read = read_study(folder)
    found = dict(study_words(read, [summarise_group(group) for group in read.groups]))
    assert found["Mean of members"].startswith("Better than the baseline beyond chance in 2 of 2 groups, worse in 0")
    assert found["Mean of members"].endswith(
        "Ended below the reference in 0 of 16 runs, and answered 20% of the prompts worse."
    )
    assert found["One reward model"] == (
        "The baseline. Ended below the reference in 16 of 16 runs, and answered 60% of the prompts worse."
    )
    assert "not over the 2 groups" in found["How sure"]


def test_a_method_is_likely_better_only_if_every_group_says_so(tmp_path: Path) -> None:
    """One group that is undecided makes it possible, and one that is worse makes it unlikely."""

    def verdict(name: str, gains: dict[str, list[float]]) -> list[tuple[str, str]]:
        folder = tmp_path / name
        write_study(folder, methods=("vanilla", "mean"), gains=gains, seeds=8, budgets=(2.0, 4.0), steps=20)
        for seed, gain in enumerate(gains.get("second", ())):
            edit_cell(folder, place_of("uneven", "heads", "mean", 4.0, seed), gold_gain=gain)
        read = read_study(folder)
        return verdicts(read, [summarise_group(group) for group in read.groups])

    first = {"vanilla": [0.0] * 8, "mean": [0.2] * 8}
    assert verdict("both", first) == [("mean of members", "likely")]
    assert verdict("one", first | {"second": [0.1, -0.1] * 4}) == [("mean of members", "possible")]
    assert verdict("against", first | {"second": [-0.1] * 8}) == [("mean of members", "possible")]
    assert verdict("worse", {"vanilla": [0.0] * 8, "mean": [-0.2] * 8}) == [("mean of members", "unlikely")]


def test_each_baseline_has_its_own_line(tmp_path: Path) -> None:
    gains = {"vanilla": [-0.1] * 4, "mean": [0.2] * 4, "lcb": [0.3] * 4}
    folder = write_study(tmp_path, methods=tuple(gains), gains=gains, seeds=4, budgets=(2.0, 4.0), steps=20)
    grid = read_json(folder / "study.json")
    cells = [cell for cell in grid["cells"] if (cell["method"], cell["kl_budget"]) != ("vanilla", 4.0)]
    write_json(folder / "study.json", grid | {"cells": cells})
    read = read_study(folder)
    found = dict(study_words(read, [summarise_group(group) for group in read.groups]))
    assert found["One reward model"].startswith("The baseline of 1 group. Ended below the reference in 4 of 4 runs")
    assert found["Mean of members"].startswith("The baseline of 1 group. Ended below the reference in 0 of 4 runs")


@pytest.mark.parametrize(("runs", "said"), [(3, "too few to measure a small risk"), (20, "20 runs or more")])
def test_few_runs_are_called_few(tmp_path: Path, runs: int, said: str) -> None:
    folder = study(tmp_path, vanilla=[-0.1] * runs, mean=[0.2] * runs)
    found = proof(summarise(read_study(folder)))
    assert said in found
    if runs == 3:
        assert "up to 56%." in found  # Wilson's upper end for 0 of 3
