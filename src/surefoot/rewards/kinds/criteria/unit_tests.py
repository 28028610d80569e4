"""Run a completion's code with a criterion's tests in a process of its own, with limits; this is no sandbox.

The process has its own session, an empty temporary folder, no environment and no output that is kept. CPU time,
memory, file sizes and processes are limited, and after `seconds` its whole group is killed. It has the user's own
rights all the same: it can read and delete the user's files and reach the network. Root has no limit of processes.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from surefoot.errors import ConfigError

__all__ = ["check_platform", "code_of", "passes"]

_RUNNER = Path(__file__).with_name("unit_test_runner.py")
_BLOCK = re.compile(r"^```[^\n`]*\n(.*?)^```", re.DOTALL | re.MULTILINE)


def check_platform() -> None:
    """Refuse systems without the limits.

    Raises:
        ConfigError: there is no module `resource`, as on Windows.
    """
    try:
        import resource  # noqa: F401
    except ImportError:
        raise ConfigError("run_code needs a system with limits of processes (Linux or macOS)") from None


def code_of(completion: str) -> str:
    """The last fenced block of code in a completion, or all of it if it has none."""
    blocks: list[str] = _BLOCK.findall(completion)
    return blocks[-1] if blocks else completion


def passes(completion: str, tests: str, seconds: float, memory_mib: int) -> bool:
    """Whether the code runs and then the tests do, in one namespace, to their end and without an error.

    An end by `sys.exit` or `os._exit` doesn't count: the runner has to say a word that is drawn for the run.

    Args:
        completion: its last block of code is run.
        tests: Python that raises where the code is wrong, such as `assert add(1, 2) == 3`.
        seconds: of wall-clock and of CPU time.
        memory_mib: of address space.
    """
    word = secrets.token_hex(16)
    job = {"code": code_of(completion), "tests": tests, "word": word, "seconds": seconds, "memory_mib": memory_mib}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [sys.executable, "-I", str(_RUNNER)],
            stdin=subprocess.PIPE,
            stdout=said,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={},
            start_new_session=True,
        )
        try:
            with suppress(subprocess.TimeoutExpired):
                process.communicate(json.dumps(job).encode(), timeout=seconds)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        said.seek(0)
        return said.read(len(word) + 1) == word.encode()
