"""What `surefoot demo` says at its end, when it has nothing to do, and what it asks the study for."""

from collections.abc import Sequence
from pathlib import Path

import pytest

from surefoot.cli import demo
from surefoot.cli.demo import METHODS, DemoConfig, demo_study, finished, in_two_sentences
from surefoot.files import read_json, write_json
from surefoot.reports.records import read_study
from surefoot.reports.summary import summarise
from tests.reports.synthetic import write_study

AHEAD: dict[str, Sequence[float]] = {
    "vanilla": [0.1, -0.2, 0.3],
    "variance_aware": [0.5, 0.4, 0.6],
    "lcb": [0.7, 0.8, 0.9],
    "variance_aware_lcb": [0.9, 1.0, 0.8],
}


def sentences(folder: Path, gains: dict[str, Sequence[float]]) -> str:
    write_study(folder, methods=list(METHODS), gains=gains, seeds=len(gains["vanilla"]))
    return in_two_sentences(summarise(read_study(folder)))


def test_the_sentences_say_who_gained_more_who_lost_and_what_few_runs_cannot_show(tmp_path: Path) -> None:
    said = sentences(tmp_path, AHEAD)
    assert said.startswith(
        "In these runs the weighted KL, the pessimistic reward and both together gained more true reward than plain "
        "training; 1 of 12 runs ended below the model it started from. 3 runs of each can't show how often"
    )
    assert not [sign for sign in said if sign.isdigit() and sign not in "123"]  # no decimals: they are in the table


def test_a_method_that_gained_less_is_named(tmp_path: Path) -> None:
    said = sentences(tmp_path, AHEAD | {"variance_aware": [-0.1, 0.0, 0.1]})
    assert "both together gained more true reward than plain training and the weighted KL gained no more" in said


def test_plain_training_may_gain_most(tmp_path: Path) -> None:
    said = sentences(tmp_path, AHEAD | {"vanilla": [1.5, 1.5, 1.5]})
    assert "both together gained no more true reward than plain training; no run ended below" in said


def test_enough_runs_are_not_talked_down(tmp_path: Path) -> None:
    said = sentences(tmp_path, {method: [*gains] * 4 for method, gains in AHEAD.items()})
    assert "can't show" not in said
    assert "4 of 48 runs ended below" in said


def test_the_demo_s_study_is_one_linear_head_four_ways() -> None:
    config = demo_study("uneven", 3000, range(3))
    assert list(config.methods) == ["vanilla", "variance_aware", "lcb", "variance_aware_lcb"]
    assert len(config.cells()) == 12
    assert all(cell.work["sources"] == {"reward": {"kind": "linear", "layer": 0}} for cell in config.cells())


@pytest.fixture
def done(tmp_path: Path) -> Path:
    """The folder of a demo with all its runs, as `run_study` leaves it but for the models."""
    folder = tmp_path / "demo"
    write_study(folder, methods=list(METHODS), gains=AHEAD, seeds=3)
    record = read_json(folder / "study.json")
    write_json(folder / "study.json", record | {"config": demo_study("uneven", 3000, range(3)).to_dict()})
    return folder


def test_a_finished_demo_says_so_and_runs_nothing(
    done: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo, "_study", None)  # a call would fail
    monkeypatch.setattr(demo, "_train_reference", None)
    demo.run(["--output_dir", str(done)])
    said = capsys.readouterr().out
    assert said.index("loading libraries") < said.index("Everything is finished already") < said.index("report: file:")
    assert (done / "report.html").exists()


def test_other_settings_or_a_missing_run_are_not_finished(done: Path) -> None:
    assert finished(DemoConfig(), done)
    assert not finished(DemoConfig(seeds=4), done)
    assert not finished(DemoConfig(pairs=400), done)
    next(iter((done / "cells").glob("*.json"))).unlink()
    assert not finished(DemoConfig(), done)
    assert not finished(DemoConfig(), done / "nowhere")
