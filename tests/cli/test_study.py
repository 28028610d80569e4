"""`surefoot study` from its YAML file to a report, and what it says of a study before it is run."""

from pathlib import Path

import pytest
import yaml

from surefoot.cli.main import main as surefoot
from surefoot.files import read_json

SMALL = {
    "settings": {"uneven": {"world": "uneven", "pairs": 60, "held_out_pairs": 40}},
    "sources": {"heads": {"kind": "heads", "members": 3, "layer": 0, "epochs": 3, "learning_rate": 0.01}},
    "methods": ["vanilla", "mean"],
    "kl_budgets": [6],
    "policy": {"max_steps": 3, "calibration_prompts": 8},
    "evaluation_completions": 48,
    "samples_kept": 2,
}


@pytest.fixture
def config(study_folder: Path, tmp_path: Path) -> Path:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(SMALL | {"output_dir": str(study_folder), "seeds": 2}))
    return path


@pytest.mark.slow
def test_a_plan_a_study_and_its_report(
    config: Path, study_folder: Path, trained_already: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert surefoot(["study", "--config", str(config), "--seeds", "1", "--plan", "--workers", "2"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cells: 2, of which 0 are finished; reward sources to train: 2" in said
    assert "a pilot of 2 and 8 updates of mean" in said
    assert not (study_folder / "cells").exists()
    assert len(trained_already) == 1  # the pilot's world

    assert surefoot(["study", "--config", str(config), "--shard", "1/2", "--workers", "1"]) == 0
    assert "shard 1/2: 2 cells finished" in capsys.readouterr().out
    assert surefoot(["study", "--config", str(config), "--workers", "1"]) == 0
    assert "true reward over the reference, 2 runs each" in " ".join(capsys.readouterr().out.split())
    assert {row["n"] for row in read_json(study_folder / "summary.json")["rows"]} == {2}
    assert (study_folder / "report.html").stat().st_size > 10_000

    assert surefoot(["study", "--config", str(config), "--seeds", "3", "--plan"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "cells: 6, of which 4 are finished; reward sources to train: 2" in said
    assert "(4 finished cells)" in said
    assert len(trained_already) == 1


def test_an_array_job_is_printed(config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert surefoot(["study", "--config", str(config), "--slurm", "4"]) == 0
    script = capsys.readouterr().out
    assert f"surefoot study --config {config} --workers" in script
    assert "--array=0-3" in script


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--methods", "vanila"], "unknown objective 'vanila'; did you mean 'vanilla'"),
        (["--shard", "2/2"], "shard must be i/n with 0 ≤ i < n, got '2/2'"),
        (["--runner", "cloud"], "runner must be one of local, ray"),
        (["--seedz", "3"], "unknown setting 'seedz' in the command line; did you mean 'seeds'"),
        (["--seeds", "0"], "a study needs at least one of seeds"),
        (["--plan", "--model_size", "8B"], "8B"),
    ],
)
def test_bad_input_is_said_in_a_line(
    config: Path, words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert surefoot(["study", "--config", str(config), *words]) == 1
    assert message in capsys.readouterr().err
