"""Show how far a command is: a bar for each stage on a terminal, plain lines where there is none."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["Show", "progress"]

Show = Callable[[str, float, float], None]
"""Called with (stage, done, total): whole numbers are counts, others shares."""
_SECONDS_BETWEEN_LINES = 30.0
_TIME = "progress.remaining"


@contextmanager
def progress() -> Iterator[Show]:
    """Give a function that shows a stage's progress; stages appear when they are first named.

    Bars go to standard output, where they are wiped as they move; lines go to standard error, so that what a command
    writes for other programs stays clean.
    """
    from rich.console import Console

    console = Console()
    if not console.is_terminal:
        yield _lines()
        return
    with _bars(console) as show:
        yield show


@contextmanager
def _bars(console: Console) -> Iterator[Show]:
    from rich.progress import BarColumn, Progress, Task, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.text import Text

    class Left(TimeRemainingColumn):
        """The estimated time left, named as such; nothing once the stage is done."""

        def render(self, task: Task) -> Text:
            return (
                Text() if task.finished else Text("about ", style=_TIME) + super().render(task) + Text(" left", _TIME)
            )

    columns = (TextColumn("{task.description:<15}"), BarColumn(), TextColumn("{task.fields[count]}"))
    times = (TimeElapsedColumn(), Left())
    tasks: dict[str, TaskID] = {}
    with Progress(*columns, *times, console=console) as bars:

        def show(stage: str, done: float, total: float) -> None:
            count = _count(done, total)
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total, count=count)
            bars.update(tasks[stage], completed=done, total=total, count=count)

        yield show


def _lines() -> Show:
    """A line when a stage begins, when it ends, and now and then between."""
    shown: dict[str, float] = {}
    begun: dict[str, tuple[float, float]] = {}
    finished: set[str] = set()

    def show(stage: str, done: float, total: float) -> None:
        now, ended = time.monotonic(), done >= total
        waited = now - shown.get(stage, -_SECONDS_BETWEEN_LINES) >= _SECONDS_BETWEEN_LINES
        if stage in finished or not (waited or ended):
            return
        shown[stage] = now
        if ended:
            finished.add(stage)
        start, first = begun.setdefault(stage, (now, done))
        left = "" if ended or done <= first else f", {_minutes((total - done) * (now - start) / (done - first))}"
        print(f"{stage}: {_count(done, total)}{left}", file=sys.stderr, flush=True)  # noqa: T201

    return show


def _minutes(seconds: float) -> str:
    """An estimated time left, in words."""
    return f"about {max(1, round(seconds))} s left" if seconds < 90 else f"about {round(seconds / 60)} min left"


def _count(done: float, total: float) -> str:
    if isinstance(done, int) and isinstance(total, int):
        return f"{done:,} of {total:,}"
    return f"{done / total if total else 1.0:.0%}"
