"""What `surefoot demo` says at its end, and what it asks the study for."""

from pathlib import Path

from surefoot.cli.demo import METHODS, demo_study, in_a_sentence
from surefoot.reports.records import read_study
from surefoot.reports.summary import summarise
from tests.reports.synthetic import write_study


def test_the_sentence_gives_the_gains_the_losses_and_what_few_runs_cannot_show(tmp_path: Path) -> None:
    write_study(tmp_path, methods=list(METHODS), seeds=3)
    found = {one.method: one for one in summarise(read_study(tmp_path))}
    said = in_a_sentence(found.values())
    assert f"gained {found['vanilla'].gain.value:.2f} in true reward" in said
    assert f"{found['variance_aware_lcb'].gain.value:.2f} with both" in said
    lost = sum(round(one.risk.value * one.risk.n) for one in found.values())
    assert ("no run ended below it" in said) == (lost == 0)
    assert said.endswith("3 runs of each show the idea and prove nothing.")


def test_enough_runs_are_not_talked_down(tmp_path: Path) -> None:
    write_study(tmp_path, methods=list(METHODS), seeds=12)
    said = in_a_sentence(summarise(read_study(tmp_path)))
    assert "prove nothing" not in said
    assert "of 48 runs ended below" in said or "no run ended below it" in said


def test_the_demo_s_study_is_one_linear_head_four_ways() -> None:
    config = demo_study("uneven", 3000, range(3))
    assert list(config.methods) == ["vanilla", "variance_aware", "lcb", "variance_aware_lcb"]
    assert len(config.cells()) == 12
    assert all(cell.work["sources"] == {"reward": {"kind": "linear", "layer": 0}} for cell in config.cells())
