"""Run independent tasks over local processes, one thread each, with progress from inside the tasks."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, Protocol

from surefoot.errors import RunError

__all__ = ["InlineRunner", "LocalRunner", "Runner", "run_tasks", "tick"]

Function = Callable[..., Any]
Tasks = Sequence[tuple[Any, ...]]
"""Its arguments, task by task."""
OnProgress = Callable[[int, int], None]
"""Called now and then with (ticks so far, 0 if they aren't counted; tasks finished)."""

_COUNTER: Any = None


class Runner(Protocol):
    """Runs `function(*task)` for every task somewhere, and gives the results in the order of the tasks."""

    def __call__(self, function: Function, tasks: Tasks, on_progress: OnProgress | None = None) -> list[Any]:
        """Results in the order of the tasks."""


class InlineRunner:
    """One task after another in this process, where a debugger sees them."""

    def __call__(self, function: Function, tasks: Tasks, on_progress: OnProgress | None = None) -> list[Any]:
        results = []
        for task in tasks:
            results.append(function(*task))
            if on_progress is not None:
                on_progress(0, len(results))
        return results


@dataclass(frozen=True, slots=True)
class LocalRunner:
    """Processes of this machine, one thread each."""

    workers: int

    def __call__(self, function: Function, tasks: Tasks, on_progress: OnProgress | None = None) -> list[Any]:
        return run_tasks(function, tasks, workers=self.workers, on_progress=on_progress)


def tick() -> None:
    """Count one unit of progress, from inside a task."""
    if _COUNTER is not None:
        with _COUNTER.get_lock():
            _COUNTER.value += 1


def _start_worker(counter: Any) -> None:
    global _COUNTER
    _COUNTER = counter
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker when its parent dies; otherwise it would run beside the workers of the next run."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


def run_tasks(
    function: Function,
    tasks: Tasks,
    *,
    workers: int,
    on_progress: OnProgress | None = None,
) -> list[Any]:
    """Call `function(*task)` for every task in fresh processes and return the results in the order of the tasks.

    Processes are spawned with one thread each: two threads per process were measured 13× slower under load. On an
    interrupt the tasks under way are stopped and the finished ones keep what they wrote.

    Args:
        function: importable by name; it may call `tick` to report progress.
        tasks: its arguments.
        workers: processes at once, at least 1.
        on_progress: called about twice a second with (ticks so far, tasks finished).

    Raises:
        RunError: a worker died without a Python error, such as one killed for memory.
    """
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    others = set(multiprocessing.active_children())
    with _one_thread_each(), ProcessPoolExecutor(workers, context, _start_worker, (counter,)) as pool:
        futures = [pool.submit(function, *task) for task in tasks]
        try:
            _watch(futures, counter, on_progress)
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise RunError(
                "a worker process died without a Python error (out of memory, or killed); run the same command again "
                "to go on, with fewer workers if memory is short"
            ) from error
        except BaseException:
            for process in set(multiprocessing.active_children()) - others:
                process.terminate()
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _watch(futures: list[Future[Any]], counter: Any, on_progress: OnProgress | None) -> None:
    while True:
        finished = [future for future in futures if future.done()]
        failed = [future for future in finished if future.exception() is not None]
        if on_progress is not None:
            on_progress(counter.value, len(finished))
        if failed or len(finished) == len(futures):
            return
        time.sleep(0.5)


class _one_thread_each:
    """Spawned processes inherit these settings before they import torch."""

    _NAMES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

    def __enter__(self) -> None:
        self._before = {name: os.environ.get(name) for name in self._NAMES}
        os.environ.update(dict.fromkeys(self._NAMES, "1"))

    def __exit__(self, *_: Any) -> None:
        for name, value in self._before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
