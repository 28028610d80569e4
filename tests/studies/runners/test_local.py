"""Tasks over processes: results in order, errors as they are, dead workers said plainly."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surefoot.errors import RunError
from surefoot.studies.runners.local import run_tasks

from . import tasks


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


def test_workers_end_with_a_killed_parent(tmp_path: Path) -> None:
    code = (
        "from surefoot.studies.runners.local import run_tasks\n"
        "from tests.studies.runners import tasks\n"
        "import sys\n"
        "if __name__ == '__main__':\n"
        "    run_tasks(tasks.say_who_and_wait, [(sys.argv[1],)], workers=1)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(code)
    root = Path(__file__).parents[3]
    parent = subprocess.Popen([sys.executable, str(script), str(tmp_path)], env=os.environ | {"PYTHONPATH": str(root)})
    deadline = time.monotonic() + 60
    said = tmp_path / "pid"
    while not (said.exists() and said.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    worker = int(said.read_text())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    while Path(f"/proc/{worker}/cmdline").exists() and time.monotonic() < deadline:
        if not Path(f"/proc/{worker}/cmdline").read_bytes():  # ended, not yet reaped
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{worker}").exists()
