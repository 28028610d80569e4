"""The documentation's notebooks run from top to bottom, and their kept outputs are those of the present code."""

from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))


def printed(cells: list) -> list[str]:  # type: ignore[type-arg]
    """What each code cell wrote to standard output."""
    return [
        "".join(out["text"] for out in cell["outputs"] if out["output_type"] == "stream" and out["name"] == "stdout")
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def test_there_are_two() -> None:
    assert [path.stem for path in NOTEBOOKS] == ["forecast", "weights"]


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_runs_as_it_is_shown(
    path: Path, world_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the tests' own world. Numbers of `weights` are exact, those of `forecast` depend on rounding."""
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("SUREFOOT_WORLD", str(world_folder))
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    notebook = nbformat.read(path, as_version=4)
    shown = printed(notebook.cells)
    NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(tmp_path)}}
    ).execute()
    found = printed(notebook.cells)
    if path.stem == "weights":
        assert found == shown
    else:
        assert [text.count("\n") for text in found[:-1]] == [text.count("\n") for text in shown[:-1]]
        assert "true gain" in found[3]
