"""A study's records: written and read alike, and those of earlier versions are read with unknowns as None."""

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.diagnosis.disagreement import disagreement_of_scores
from surefoot.errors import RunError
from surefoot.files import read_json, write_json
from surefoot.run_records import (
    CellMetrics,
    CellPlace,
    CellRecord,
    DisagreementRecord,
    FailureRecord,
    Sample,
    TrajectoryRow,
    cell_path,
    disagreement_path,
    read_cell,
    read_disagreements,
    read_failure,
    read_study_record,
    write_cell,
    write_disagreement,
    write_failure,
    write_study_record,
)
from surefoot.typed_json import decode
from tests.reports.synthetic import as_an_earlier_version_wrote_it, cell_of, write_study

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


def test_disagreement_is_read_as_written_and_as_earlier_versions_wrote_it(tmp_path: Path) -> None:
    folder = write_study(tmp_path, seeds=2)
    grid, path = read_study_record(folder), folder / "disagreement" / "uneven-heads-0.json"
    before, first = read_json(path), read_disagreements(folder, grid)[0]
    assert (first.seed, first.prior_freedom, first.error_auroc.sd_over_margin.value) == (0, None, None)
    write_disagreement(disagreement_path(folder, "uneven-heads-0"), first)
    assert read_json(path) == before
    as_an_earlier_version_wrote_it(folder)
    errors = read_disagreements(folder, grid)[0].known_errors
    assert errors is not None
    assert errors.reliability is None
    write_json(path, before | {"members": "five"})
    with pytest.raises(RunError, match=r"uneven-heads-0\.json is not a record of members' disagreement: 'members' is"):
        read_disagreements(folder, grid)
    write_json(path, before | {"members": "five", "setting": "of an earlier grid"})
    assert [record.seed for record in read_disagreements(folder, grid)] == [1]


def test_what_a_diagnosis_measures_is_what_the_record_holds() -> None:
    torch.manual_seed(0)
    measured = disagreement_of_scores(torch.randn(30, 3), torch.zeros(30, 3)).to_dict()
    record = decode(DisagreementRecord, measured | {"setting": "s", "source": "h", "seed": 0})
    assert {name: getattr(record, name) for name in ("pairs", "members", "tau", "agreement")} == {
        name: measured[name] for name in ("pairs", "members", "tau", "agreement")
    }
    assert record.error_auroc.margin.value == measured["error_auroc"]["margin"]["value"]
    assert measured.keys() <= {field.name for field in fields(DisagreementRecord)}
