"""`surefoot report`: from records alone, without torch, with errors that name what is wrong."""

import subprocess
import sys
from pathlib import Path

import pytest

from surefoot.cli.main import main
from tests.reports.synthetic import write_study


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_study(tmp_path_factory.mktemp("study"), seeds=3, steps=20)


def test_it_writes_everything_and_loads_no_torch(study: Path) -> None:
    code = (
        "import sys; from surefoot.cli.main import main; status = main(['report', sys.argv[1]]);"
        "heavy = {'torch', 'transformers', 'matplotlib'} & set(sys.modules); sys.exit(f'{status} {heavy}' if status or"
        " heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(study)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (study / "report.html").resolve().as_uri() in done.stdout
    assert "variance-aware" in done.stdout
    for name in ("report.html", "summary.json", "summary.csv", "cells.csv"):
        assert (study / name).stat().st_size > 500
    assert not [path for path in study.iterdir() if path.name.startswith(".")]  # nothing half-written is left


def test_one_format_alone(tmp_path: Path) -> None:
    write_study(tmp_path, seeds=2, steps=20)
    assert main(["report", str(tmp_path), "--format", "csv"]) == 0
    assert (tmp_path / "cells.csv").exists()
    assert not (tmp_path / "report.html").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [([], "the following arguments are required: directory"), (["DIR", "--format", "pdf"], "unknown format 'pdf'"),
     (["DIR/nowhere"], "holds no study"), (["DIR", "--formt", "csv"], "unrecognized arguments")],
)  # fmt: skip
def test_errors_are_plain(study: Path, capsys: pytest.CaptureFixture[str], words: list[str], said: str) -> None:
    assert main(["report", *(word.replace("DIR", str(study)) for word in words)]) == 1
    error = capsys.readouterr().err
    assert error.startswith("surefoot report: ")
    assert said in error


@pytest.mark.slow
def test_a_thousand_cells_stay_under_five_megabytes(tmp_path: Path) -> None:
    methods = ("vanilla", "mean", "lcb", "variance_aware", "literal")
    folder = write_study(
        tmp_path, methods=methods, settings=("uneven", "even"), budgets=(4.0, 8.0), seeds=50, steps=60
    )
    assert main(["report", str(folder)]) == 0
    size = (folder / "report.html").stat().st_size
    assert size < 5_000_000
    assert size > 200_000
