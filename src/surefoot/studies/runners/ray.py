"""Run tasks on a Ray cluster: an existing one by its address, or a new one on this machine."""

from __future__ import annotations

import importlib
import os
import socket
from dataclasses import dataclass
from typing import Any

from surefoot.errors import ModelError, RunError
from surefoot.rewards.kinds.judge.access import VARIABLES
from surefoot.studies.runners.local import Function, OnProgress, Tasks

__all__ = ["RayRunner"]

_POLL_S = 0.5


@dataclass(frozen=True, slots=True)
class RayRunner:
    """Runs every task as a Ray task; a task whose node died is run again elsewhere, at most `retries` times.

    The nodes must see the folder that the study was started in and the study's own (a shared file system), and have
    surefoot installed. What a task leaves is
    written whole under its own address, so a task that ran twice leaves one record.

    Args:
        address: of a running cluster, such as "auto"; None starts one on this machine, and ends it.
        num_cpus, num_gpus: that each task needs.

    Raises:
        ModelError: the extra `ray` isn't installed. RunError: the cluster can't be reached, or a task's nodes died
            more often than `retries`.
    """

    address: str | None = None
    num_cpus: float = 1
    num_gpus: float = 0
    retries: int = 3

    def __call__(self, function: Function, tasks: Tasks, on_progress: OnProgress | None = None) -> list[Any]:
        if not tasks:
            return []
        ray = _ray()
        mine = not ray.is_initialized()
        if mine:
            self._connect(ray)
        try:
            return self._run(ray, function, tasks, on_progress)
        finally:
            if mine:
                ray.shutdown()

    def _connect(self, ray: Any) -> None:
        _knock(self.address)
        own_names = [name for name in VARIABLES.values() if name in os.environ]
        variables = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        variables |= {name: os.environ[name] for name in own_names}  # never a key itself
        own = {"include_dashboard": False} if self.address is None else {"address": self.address}
        try:
            ray.init(**own, runtime_env={"env_vars": variables}, log_to_driver=False, logging_level="ERROR")
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise RunError(f"can't reach the Ray cluster {self.address or 'of this machine'}: {error}") from error

    def _run(self, ray: Any, function: Function, tasks: Tasks, on_progress: OnProgress | None) -> list[Any]:
        remote = ray.remote(num_cpus=self.num_cpus, num_gpus=self.num_gpus, max_retries=self.retries)(_work)
        promised = [remote.remote(os.getcwd(), function, task) for task in tasks]
        left = list(promised)
        try:
            while left:
                done, left = ray.wait(left, num_returns=len(left), timeout=_POLL_S)
                if on_progress is not None:
                    on_progress(0, len(tasks) - len(left))
                ray.get(done)  # an error ends the study at once
            results: list[Any] = ray.get(promised)
            return results
        except ray.exceptions.RayError as error:
            raise RunError(f"a task's worker was lost more often than {self.retries} times: {error}") from error
        finally:
            for task in left:
                ray.cancel(task, force=True)


def _work(folder: str, function: Function, task: tuple[Any, ...]) -> Any:
    """Run one task on its node, in the directory where the study was started, so that relative paths are right."""
    os.chdir(folder)
    return function(*task)


def _knock(address: str | None) -> None:
    """Refuse an address where nothing listens; Ray itself would wait for minutes.

    Raises:
        RunError: nothing listens at host:port.
    """
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not (host and port.isdigit()):
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except OSError as error:
        raise RunError(
            f"can't reach the Ray cluster {address}: {error}; start it, or leave ray_address out"
        ) from error


def _ray() -> Any:
    try:
        return importlib.import_module("ray")
    except ImportError as error:
        raise ModelError("runner: ray needs the package ray; install surefoot[ray]") from error
