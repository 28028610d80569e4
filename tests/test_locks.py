"""A directory is one run's while that run's process lives, and not a moment longer."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from surefoot import locks
from surefoot.errors import RunError
from surefoot.locks import LOCK, hold
from surefoot.records import claim_directory, write_record

_HOLDER = """
import os, sys, time
from surefoot.locks import hold
with hold(sys.argv[1], shared=sys.argv[2] == "shared"):
    if sys.argv[3] == "child" and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
    print("held", flush=True) if sys.argv[3] != "child" else None
    time.sleep(60)
"""


@contextmanager
def another_process(lock: Path, how: str = "alone", then: str = "wait") -> Iterator[tuple[subprocess.Popen[str], str]]:
    """One that holds `lock`, with the first line that it prints."""
    words = [sys.executable, "-c", _HOLDER, str(lock), how, then]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.0)


def test_the_second_says_who_holds_it_and_the_kernel_forgets_the_dead(tmp_path: Path) -> None:
    with another_process(tmp_path / LOCK) as (process, _):
        with pytest.raises(RunError, match=f"in use by process {process.pid} on .*, since 20"), hold(tmp_path / LOCK):
            pass
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert (tmp_path / LOCK).exists()  # the file is there, its lock isn't
        with hold(tmp_path / LOCK):
            assert f"process {os.getpid()}" in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_where_no_file_can_be_made_nobody_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in /proc, where a new file's directory is said not to exist."""
    monkeypatch.setattr(locks, "_PATIENCE_S", 0.1)
    with pytest.raises(FileNotFoundError), hold(Path("/proc") / LOCK):
        pass


def test_a_pid_in_the_file_means_nothing(tmp_path: Path) -> None:
    """In a container the next run often has the very pid of the killed one."""
    (tmp_path / LOCK).write_text(f"process {os.getpid()} on here, since 2026-01-01\n")
    with hold(tmp_path / LOCK):
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_forked_child_does_not_keep_its_dead_parent_s_lock(tmp_path: Path) -> None:
    with another_process(tmp_path / LOCK, then="child") as (process, child):
        process.kill()
        process.wait()
        os.kill(int(child), 0)  # it lives
        with hold(tmp_path / LOCK):
            pass
        os.kill(int(child), signal.SIGKILL)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_that_ends_leaves_its_parent_s_lock(tmp_path: Path) -> None:
    with hold(tmp_path / LOCK):
        words = [sys.executable, "-c", _HOLDER, str(tmp_path / LOCK), "alone", "wait"]
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        os.waitpid(pid, 0)
        done = subprocess.run(words, capture_output=True, text=True)
        assert f"in use by process {os.getpid()}" in done.stderr
        assert (tmp_path / LOCK).exists()


def test_runs_that_share_on_purpose(tmp_path: Path) -> None:
    lock = tmp_path / LOCK
    with another_process(lock, "shared"):
        with hold(lock, shared=True):
            pass
        assert lock.exists()  # another still has it
        with pytest.raises(RunError, match="in use"), hold(lock):
            pass
    with hold(lock, shared=True):
        pass
    assert list(tmp_path.iterdir()) == []


def test_one_waits_a_little_for_a_dying_holder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "_PATIENCE_S", 20.0)
    with another_process(tmp_path / LOCK) as (process, _):
        threading.Timer(0.3, process.kill).start()
        start = time.monotonic()
        with hold(tmp_path / LOCK):
            assert time.monotonic() - start > 0.1


def test_only_a_run_that_will_write_claims_its_directory(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with (
        claim_directory(run, "rloo", {}),
        claim_directory(run, "rloo", {}, main_process=False) as same,
        pytest.raises(RunError, match="in use"),
        claim_directory(run, "rloo", {}),
    ):
        pass
    assert same == run
    write_record(run, {})
    with claim_directory(run, "rloo", {}), claim_directory(run, "rloo", {}):  # finished: nobody writes
        pass
    assert sorted(path.name for path in run.iterdir()) == ["record.json", "run.json"]


def test_a_kill_while_the_claim_is_written_blocks_nothing(tmp_path: Path) -> None:
    (tmp_path / ".run.json.x1.tmp").write_text('{"kind"')
    (tmp_path / LOCK).write_text("process 1")
    with claim_directory(tmp_path, "rloo", {}):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
