"""Functions that the runner's test calls in other processes, where they must be importable by name."""

import os
import time
from pathlib import Path

from surefoot.studies.runners.local import tick


def square(x: int) -> tuple[int, str | None]:
    tick()
    return x * x, os.environ.get("OMP_NUM_THREADS")


def fail(x: int) -> int:
    if x == 1:
        raise ValueError("task one is broken")
    return x


def die(x: int) -> None:
    os._exit(9)


def say_who_and_wait(folder: str) -> None:
    Path(folder, "pid").write_text(str(os.getpid()))
    time.sleep(60)
