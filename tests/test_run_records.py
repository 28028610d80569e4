"""A study's records: written and read alike, and those of earlier versions are read with unknowns as None."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.files import read_json, write_json
from surefoot.run_records import (
    CellMetrics,
    CellPlace,
    CellRecord,
    FailureRecord,
    Sample,
    TrajectoryRow,
    cell_path,
    read_cell,
    read_failure,
    read_study_record,
    write_cell,
    write_failure,
    write_study_record,
)
from tests.reports.synthetic import cell_of, write_study

PLACE = CellPlace("0123", "uneven", "heads", "mean", 6.0, 3)
EARLIER: dict[str, Any] = {
    "kind": "cell", "created": "2025-12-01T00:00:00+00:00", "config": {"seed": 3}, "seed": 3, "data_hash": "ab",
    "commit": None, "versions": {"surefoot": "0.1.0"}, "metrics": {"gold_gain": 0.5, "kl_final": None}, "key": "0123",
    "setting": "uneven", "source": "heads", "method": "mean", "kl_budget": 6.0,
    "trajectory": [{"step": 1, "kl": 0.0, "proxy": 0.1, "gold": None}],
    "samples": [{"prompt": "p", "reference": "r", "completion": "c", "proxy": 0.1, "variance": None, "gold": 0.2,
                 "gold_reference": None}],
}  # fmt: skip
"""As cells were written before prompts' gains, anchors, effects and warnings were kept."""


def test_a_cell_of_an_earlier_version_is_read_and_what_it_lacks_is_unknown(tmp_path: Path) -> None:
    write_json(tmp_path / "cell.json", EARLIER)
    cell = read_cell(tmp_path / "cell.json")
    assert cell == CellRecord(
        place=PLACE,
        metrics=CellMetrics(gold_gain=0.5),
        trajectory=(TrajectoryRow(step=1, kl=0.0, proxy=0.1, gold=None),),
        samples=(Sample(prompt="p", reference="r", completion="c", proxy=0.1, variance=None, gold=0.2,
                        gold_reference=None),),
        created="2025-12-01T00:00:00+00:00", config={"seed": 3}, data_hash="ab", versions={"surefoot": "0.1.0"},
    )  # fmt: skip
    assert cell.prompt_gains is None  # not an empty list: it isn't known
    assert cell.metrics.prompt_risk is None


def test_a_cell_is_written_with_the_keys_that_readers_know(tmp_path: Path) -> None:
    written = cell_of({"key": "0123", "setting": "uneven", "source": "heads", "method": "mean", "kl_budget": 6.0,
                       "seed": 3}, 0.5)  # fmt: skip
    write_json(tmp_path / "before.json", written)
    cell = replace(read_cell(tmp_path / "before.json"), warnings=("beta is small",))
    write_cell(cell_path(tmp_path, "0123"), cell)
    assert read_cell(cell_path(tmp_path, "0123")) == cell
    again = read_json(cell_path(tmp_path, "0123"))
    effects = [row.pop("effect") for row in again["trajectory"]]  # which the synthetic rows lack
    assert effects == [None] * 60
    assert again == json.loads(json.dumps(written)) | {"warnings": ["beta is small"]}


def test_the_grid_decides_where_a_cell_stands(tmp_path: Path) -> None:
    write_json(tmp_path / "cell.json", EARLIER)
    assert read_cell(tmp_path / "cell.json", replace(PLACE, method="ours")).place.method == "ours"


def test_failures_and_grids_are_read_as_written(tmp_path: Path) -> None:
    failure = FailureRecord(PLACE, "ValueError: no", "2026-01-01T00:00:00+00:00")
    write_failure(tmp_path / "failure.json", failure)
    assert read_failure(tmp_path / "failure.json") == failure
    assert read_json(tmp_path / "failure.json")["key"] == "0123"
    folder = write_study(tmp_path / "study", seeds=1)
    before, grid = read_json(folder / "study.json"), read_study_record(folder)
    write_study_record(folder, grid)
    assert read_json(folder / "study.json") == before


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"kind": "reward"}, "it is a record of kind 'reward'"),
        ({"metrics": {"gold_gain": "high"}}, "'metrics.gold_gain' is no number"),
        ({"seed": "third"}, "'seed' is no whole number"),
        ({"trajectory": [{"step": 1, "gold": 1.0}]}, r"'trajectory\[0\].kl' is missing"),
        ({"samples": [{"prompt": "p"}]}, r"'samples\[0\].reference' is missing"),
    ],
)
def test_a_foreign_cell_is_one_error_that_names_the_file(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    write_json(tmp_path / "cell.json", EARLIER | changes)
    with pytest.raises(RunError, match=rf"cell\.json is not a cell's record: {said}; delete it and run the study"):
        read_cell(tmp_path / "cell.json")
