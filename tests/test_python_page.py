"""The code of docs/python.md runs from top to bottom."""

import re
from pathlib import Path
from typing import Any

import pytest

import surefoot

PAGE = Path(__file__).parents[1] / "docs" / "python.md"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:'pin_memory' argument is set as true")
@pytest.mark.filterwarnings("ignore:the variance of 'linear'")
@pytest.mark.usefixtures("trained_already")
def test_the_code_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.data.world.export import export_world

    monkeypatch.chdir(tmp_path)
    export_world(Path("world"), variant="uneven", pairs=400, test_pairs=100, seed=0)
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(block, names)
    assert names["rewards"].variance.shape == (3,)
    assert names["scored"].exists()
    assert names["found"]["verdict"]["weighting"] in ("likely", "possible", "unlikely")
    assert {row["objective"] for row in names["told"]["rows"]} == {"vanilla", "variance_aware", "lcb:2"}
    assert names["trainer"].state.global_step == 2
    assert (names["outcome"].finished, names["outcome"].failed) == (4, 0)


def test_every_function_of_the_page_is_public() -> None:
    named = re.findall(r"`(\w+)`", PAGE.read_text(encoding="utf-8").partition("## Train a source")[0])
    functions = {name for name in named if name.endswith(("_source", "_dataset", "_study", "Trainer"))}
    assert functions <= set(surefoot.__all__)
    assert {"train_source", "score_dataset", "diagnose_source", "forecast_source", "run_study"} <= functions
    assert all(getattr(surefoot, name).__doc__ for name in functions)
