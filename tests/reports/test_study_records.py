"""Records as they are found: unfinished, failed, of an earlier grid, broken."""

import re
from pathlib import Path

import pytest

from surefoot.errors import RunError
from surefoot.files import read_json, write_json
from surefoot.reports.records import read_study
from surefoot.reports.study import build_report, summary_table
from tests.reports.synthetic import place_of, write_study
from tests.reports.test_study_report import words_of


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path / "study", seeds=3)


def cell_file(folder: Path, method: str, seed: int) -> Path:
    return folder / "cells" / f"{place_of('uneven', 'heads', method, 6.0, seed)['key']}.json"


def test_what_is_not_a_study(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no study \(no study\.json\)"):
        read_study(tmp_path)
    write_json(tmp_path / "study.json", {"kind": "study", "methods": ["mean"]})
    with pytest.raises(RunError, match=r"study\.json is no study that this version reads \('title' is missing"):
        read_study(tmp_path)


def test_a_study_that_has_only_begun(study: Path) -> None:
    for path in (study / "cells").glob("*.json"):
        path.unlink()
    with pytest.raises(RunError, match="without any finished cell; start it"):
        build_report(study)
    place = place_of("uneven", "heads", "mean", 6.0, 0)
    write_json(study / "failed" / f"{place['key']}.json", place | {"error": "it broke", "when": "now"})
    with pytest.raises(RunError, match="1 failed, see"):
        build_report(study)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{", "is not valid JSON"), ("[]", "must hold one JSON object"), ("{}", "'metrics' is missing"),
     ('{"metrics": {}, "trajectory": null, "samples": []}', "'trajectory' is no list"),
     ('{"metrics": {}, "trajectory": [{"kl": 0}], "samples": []}', "'trajectory[0].gold' is missing"),
     ('{"metrics": {}, "trajectory": [], "samples": [], "prompt_gains": 1}', "'prompt_gains' is no list"),
     ('{"metrics": {"gold_gain": "high"}, "trajectory": [], "samples": []}', "'metrics.gold_gain' is no number"),
     ('{"kind": "reward", "metrics": {}}', "it is a record of kind 'reward'")],
)  # fmt: skip
def test_a_broken_cell_is_named(study: Path, text: str, said: str) -> None:
    path = cell_file(study, "mean", 1)
    path.write_text(text)
    with pytest.raises(RunError, match=re.escape(said)) as caught:
        build_report(study)
    assert str(path) in str(caught.value)


def test_what_is_missing_is_said(study: Path) -> None:
    cell_file(study, "mean", 1).unlink()
    cell_file(study, "vanilla", 2).unlink()
    place = place_of("uneven", "heads", "mean", 6.0, 1)
    write_json(study / "failed" / f"{place['key']}.json", place | {"error": "ValueError: <b>no\nmore", "when": "now"})
    text = words_of(build_report(study))
    assert "7 of 9 cells are finished; 1 failed" in text
    assert "ValueError: <b>no now" in text  # the first line, as text
    assert "7 of 9 cells finished" in str(summary_table(study).title)


def test_a_method_without_any_run_yet(study: Path) -> None:
    for seed in range(3):
        cell_file(study, "vanilla", seed).unlink()
    text = words_of(build_report(study))
    assert "The baseline has no finished run here" in text
    assert "0 to 3 runs each" in str(summary_table(study).title)


def test_cells_of_an_earlier_grid_are_not_read(study: Path) -> None:
    before = read_study(study)
    (study / "cells" / "older.json").write_text("not even JSON")
    write_json(study / "failed" / "older.json", {})
    other = read_json(next((study / "disagreement").glob("*.json")))
    write_json(study / "disagreement" / "older.json", other | {"setting": "another"})
    assert read_study(study) == before


def test_a_cell_stands_where_the_grid_has_it_now(study: Path) -> None:
    """A renamed method keeps its finished cells: their address is of their content."""
    grid = read_json(study / "study.json")
    for place in grid["cells"]:
        place["method"] = place["method"].replace("variance_aware", "ours")
    write_json(study / "study.json", grid | {"methods": ["vanilla", "mean", "ours"]})
    assert len(read_study(study).groups[0].of("ours")) == 3


def test_a_cell_that_finished_after_it_failed_has_not_failed(study: Path) -> None:
    place = place_of("uneven", "heads", "mean", 6.0, 1)
    write_json(study / "failed" / f"{place['key']}.json", place | {"error": "once", "when": "then"})
    assert read_study(study).failed == []
