"""Progress of a command: bars on a terminal, plain lines elsewhere, and never on standard output there."""

import io
import time

import pytest
from rich.console import Console

from surefoot.progress import progress


def test_without_a_terminal_there_are_plain_lines_on_standard_error(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([0.0, 1.0, 31.0, 31.5, 32.0, 33.0, 34.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress() as show:
        show("policies", 0, 2000)  # it begins
        show("policies", 10, 2000)  # too soon
        show("policies", 1500, 2000)
        show("shares", 0.0, 1.0)
        show("policies", 2000, 2000)  # it ends
        show("policies", 2000, 2000)
        show("shares", 1.0, 1.0)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.splitlines() == [
        "policies: 0 of 2,000", "policies: 1,500 of 2,000, about 10 s left", "shares: 0%",
        "policies: 2,000 of 2,000", "shares: 100%",
    ]  # fmt: skip


def test_on_a_terminal_there_is_a_bar_for_each_stage(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    terminal = Console(file=screen, force_terminal=True, width=100)
    monkeypatch.setattr("rich.console.Console", lambda: terminal)
    with progress() as show:
        show("rows", 3, 8)
        show("rows", 8, 8)
        show("fit", 0.5, 1.0)
    text = screen.getvalue()
    assert "8 of 8" in text
    assert "50%" in text
    assert "about" in text
    assert "left" in text
    assert "━" in text


def test_nothing_to_do_is_done(capsys: pytest.CaptureFixture[str]) -> None:
    with progress() as show:
        show("reward sources", 0, 0)
    assert capsys.readouterr().err == "reward sources: 0 of 0\n"


def test_the_time_left_is_an_estimate_from_the_pace_so_far(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From where this process began: what an earlier one did took none of its time."""
    clock = iter([0.0, 100.0, 200.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    with progress() as show:
        show("policies", 500, 1000)
        show("policies", 600, 1000)
        show("policies", 980, 1000)
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == ["policies: 600 of 1,000, about 7 min left", "policies: 980 of 1,000, about 8 s left"]
