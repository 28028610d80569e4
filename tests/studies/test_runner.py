"""Tasks over processes: results in order, errors as they are, dead workers said plainly."""

import pytest

from surefoot.errors import RunError
from surefoot.studies.runner import run_tasks

from . import tasks_for_runner as tasks


def test_results_in_order_one_thread_each_and_progress() -> None:
    seen: list[tuple[int, int]] = []
    results = run_tasks(
        tasks.square, [(3,), (1,), (2,)], workers=2, on_progress=lambda ticks, done: seen.append((ticks, done))
    )
    assert results == [(9, "1"), (1, "1"), (4, "1")]
    assert seen[-1] == (3, 3)


def test_an_error_in_a_task_arrives_as_itself() -> None:
    with pytest.raises(ValueError, match="task one is broken"):
        run_tasks(tasks.fail, [(0,), (1,)], workers=1)


def test_a_dead_worker_is_said_plainly() -> None:
    with pytest.raises(RunError, match="worker process died"):
        run_tasks(tasks.die, [(0,)], workers=1)


def test_nothing_to_do() -> None:
    assert run_tasks(tasks.square, [], workers=2) == []
