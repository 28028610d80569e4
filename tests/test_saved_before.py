"""What an earlier version saved still loads, gives the same numbers and goes on (`saved_before/make.py` made it)."""

from __future__ import annotations

import json
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from surefoot import Anchors, RewardSource, load_source
from surefoot.cli.main import main as surefoot
from surefoot.rewards.kinds.judge.source import JudgeSource

FOLDER = Path(__file__).parent / "saved_before"
EXPECTED: dict[str, Any] = json.loads((FOLDER / "expected.json").read_text())
SOURCES: dict[str, Any] = EXPECTED["sources"]


@pytest.fixture
def saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of everything, which is the current folder: settings and records name paths relative to it."""
    folder = Path(shutil.copytree(FOLDER, tmp_path / "saved"))
    monkeypatch.chdir(folder)
    monkeypatch.setenv("SUREFOOT_JUDGE_ENDPOINT", EXPECTED["endpoint"])  # nobody listens there any more
    monkeypatch.setenv("SUREFOOT_JUDGE_CACHE", "judge.sqlite")
    return folder


def load(kind: str, folder: Path) -> RewardSource:
    return load_source(folder / "sources" / kind, device="cpu")


def tensor(values: list[Any]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def same(found: Any, expected: dict[str, list[float]], rtol: float = 1e-12) -> None:
    """To 1e-12: sums in double precision differ in their last bit between processors."""
    for name in ("mean", "variance"):
        torch.testing.assert_close(getattr(found, name).double(), tensor(expected[name]), rtol=rtol, atol=1e-14)


def test_every_kind_is_here() -> None:
    kinds = {json.loads((FOLDER / "sources" / name / "source.json").read_text())["kind"] for name in SOURCES}
    assert kinds == set(SOURCES)
    assert len(kinds) == 11


def under_the_questions_of_today(cache: str, judge: RewardSource) -> None:
    """Move the replies to the questions that are asked now: `judge_questions.json` has the earlier ones' hashes."""
    assert isinstance(judge, JudgeSource)
    asked = judge.calls(EXPECTED["prompts"], EXPECTED["completions"])
    earlier = json.loads((FOLDER / "judge_questions.json").read_text())
    with closing(sqlite3.connect(cache)) as database:
        for calls, questions in zip(asked, earlier, strict=True):
            now = list(dict.fromkeys(call.question for call in calls))
            for old, new in zip(questions, now, strict=True):
                for call in calls:
                    keys = (f"{new}-{call.sample}", f"{old}-{call.sample}")
                    database.execute("update replies set key = ? where key = ?", keys)
        database.commit()


def test_a_judge_whose_messages_have_changed_is_asked_again(saved: Path) -> None:
    """Replies to other questions than today's aren't taken for replies to these (CHANGELOG.md)."""
    with pytest.warns(UserWarning, match="left 6 of 6 completions unscored"):
        rows = load("judge", saved).score(EXPECTED["prompts"], EXPECTED["completions"])
    assert bool(rows.isnan().all())


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_a_source_scores_as_before(kind: str, saved: Path) -> None:
    """The judge's rows come from its cache of replies: there is no server."""
    if kind == "judge":
        under_the_questions_of_today("judge.sqlite", load(kind, saved))
    rows = load(kind, saved).score(EXPECTED["prompts"], EXPECTED["completions"])
    torch.testing.assert_close(rows.double(), tensor(SOURCES[kind]["rows"]), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("kind", sorted(SOURCES))
def test_rows_mean_what_they_meant(kind: str, saved: Path) -> None:
    source, expected = load(kind, saved), SOURCES[kind]
    rows = torch.tensor(expected["rows"])
    anchors = Anchors(tensor(expected["anchors"]), "group", torch.full((len(rows),), 3.0), holds_own=True)
    same(source.estimate(rows), expected["plain"])
    same(source.estimate(rows, anchors), expected["anchored"])
    same(source.margins(rows[:3], rows[3:]), expected["margins"], rtol=1e-6)  # some kinds had them in float32


def test_a_judge_that_was_never_asked_has_no_row(saved: Path) -> None:
    """The other rows aren't made up: without its cache the judge says nothing."""
    Path("judge.sqlite").unlink()
    with pytest.warns(UserWarning, match="completions unscored"):
        rows = load("judge", saved).score(EXPECTED["prompts"][:1], EXPECTED["completions"][:1])
    assert bool(rows.isnan().all())


def contents(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_study_is_finished(saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No cell runs again, no source is trained again; the report counts the three policies."""
    before = contents(saved / "study" / "cells")
    shutil.rmtree(saved / "study" / "sources")  # a cell that ran again would have to train one
    assert surefoot(["study", "--config", "study.yaml"]) == 0
    assert len(before) == 3
    assert contents(saved / "study" / "cells") == before
    assert not (saved / "study" / "sources").exists()
    assert not (saved / "study" / "failed").exists()
    assert surefoot(["report", "study"]) == 0
    assert "variance-aware" in capsys.readouterr().out
    rows = json.loads((saved / "study" / "summary.json").read_text())["rows"]
    gains = {row["method"]: row["gain"] for row in rows}
    assert gains == {cell["method"]: cell["metrics"]["gold_gain"] for cell in map(read, sorted(before))}


def read(name: str) -> dict[str, Any]:
    cell: dict[str, Any] = json.loads((FOLDER / "study" / "cells" / name).read_text())
    return cell


def test_a_checkpoint_goes_on_to_the_same_weights(saved: Path) -> None:
    """Two more steps, with the optimizer, the random states and the anchors of the checkpoint."""
    checkpoint = saved / "rloo" / "checkpoint-2"
    held, wanted = contents(checkpoint), load_file("rloo-final.safetensors")
    assert surefoot(["rloo", "--config", "rloo.yaml"]) == 0
    assert contents(checkpoint) == held  # a run from the start would write it again
    found, at_checkpoint = load_file("rloo/model.safetensors"), load_file(checkpoint / "model.safetensors")
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=1e-6)
    assert max(float((at_checkpoint[name] - value).abs().max()) for name, value in wanted.items()) > 1e-3


def test_the_settings_of_a_checkpoint_unpickle(saved: Path) -> None:
    """They name the module of their class, which therefore can't move without leaving a name behind."""
    settings = torch.load(saved / "rloo" / "checkpoint-2" / "training_args.bin", weights_only=False)
    assert (settings.beta, settings.anchor_completions, settings.preset) == (0.1, 4, "variance_aware")
