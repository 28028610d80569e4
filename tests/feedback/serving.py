"""`surefoot label` in a process of its own, forked from one that has imported everything, so that a start is quick."""

import multiprocessing
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

_PROCESSES = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        *("pytest", "rich.console", "transformers", "uvicorn"),
        *("surefoot.cli.parsing", "surefoot.feedback.exchange", "surefoot.feedback.page"),
        "tests.feedback.serving",
    ]
)


def label(words: list[str], said: Path) -> None:
    """Run the command with its output in files, as a shell would."""
    from surefoot.cli.main import main

    for handle, name in ((1, said), (2, said.with_suffix(".err"))):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), handle)
    sys.exit(main(["label", *words]))


@contextmanager
def labelling(pairs: Path) -> Iterator[tuple[Any, str]]:
    """The process (killed in the end if it still runs), and the address that it printed."""
    said = pairs.with_name("said.txt")
    said.unlink(missing_ok=True)
    words = [f"--dataset_name={pairs}", f"--output={pairs.with_name('answers.jsonl')}"]
    process = _PROCESSES.Process(target=label, args=(words, said))
    process.start()
    try:
        yield process, _address(process, said)
    finally:
        process.kill()
        process.join()


def _address(process: Any, said: Path) -> str:
    while process.is_alive():
        lines = said.read_text().splitlines(keepends=True) if said.exists() else []
        for line in lines:
            if line.startswith("page: ") and line.endswith("\n"):
                return line.removeprefix("page: ").strip()
        time.sleep(0.05)
    raise AssertionError(said.with_suffix(".err").read_text())
