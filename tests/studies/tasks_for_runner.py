"""Functions that the runner's test calls in other processes, where they must be importable by name."""

import os

from surefoot.studies.runner import tick


def square(x: int) -> tuple[int, str | None]:
    tick()
    return x * x, os.environ.get("OMP_NUM_THREADS")


def fail(x: int) -> int:
    if x == 1:
        raise ValueError("task one is broken")
    return x


def die(x: int) -> None:
    os._exit(9)
