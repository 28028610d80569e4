"""The examples that `--help` prints run as printed, from top to bottom, in an empty folder."""

import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from surefoot.cli.examples import EXAMPLES
from surefoot.cli.main import main

ELSEWHERE = ("demo", "judge", "theory", "verl", "openrlhf")
"""Minutes, tests/cli/test_demo.py; a server, tests/cli/test_judge.py; the same command, tests/theory/test_tables.py;
environments of their own, tests/engines."""
SERVERS = ("label", "serve")


def shell(folder: Path) -> dict[str, str]:
    """An environment in which `surefoot` is this checkout's."""
    script = folder / "bin" / "surefoot"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m surefoot.cli.main "$@"\n')
    script.chmod(0o755)
    return os.environ | {"PATH": f"{script.parent}:{os.environ['PATH']}"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # as a user has them
def test_the_examples_run_as_printed(
    tmp_path: Path, study_folder: Path, trained_already: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commands run in this process, which has imported everything; what needs a shell, in one.

    The world's policy, which `surefoot world` and the study's workers would train, is the one that all tests share.
    """
    environment, place = shell(tmp_path), tmp_path / "place"
    (place / "runs").mkdir(parents=True)
    study_folder.rename(place / "runs" / "study")
    monkeypatch.chdir(place)
    for command, lines in EXAMPLES.items():
        for line in () if command in ELSEWHERE else lines:
            words = shlex.split(line)
            if command in SERVERS:
                serves(line, place, environment)
            elif words[0] == "surefoot" and not {">", ">>", "|", "&"} & set(words):
                assert main(words[1:]) == 0, line
            else:
                done = subprocess.run(["bash", "-c", line], env=environment, capture_output=True, text=True)
                assert done.returncode == 0, f"{line}\n{done.stderr[-2000:]}"
    assert len(trained_already) == 1  # by `surefoot world`
    for made in (
        "runs/scored.parquet",
        "runs/diagnosis/diagnose.html",
        "runs/selected/pairs.jsonl",
        "runs/bon/record.json",
    ):
        assert (place / made).exists(), made


def serves(line: str, place: Path, environment: dict[str, str]) -> None:
    """Start a server, wait until it says where, and interrupt it."""
    with (place / "server.log").open("w+") as log:
        server = subprocess.Popen(["bash", "-c", f"exec {line}"], cwd=place, env=environment, stdout=log, stderr=log)
        start = time.monotonic()
        while "http://" not in (said := (place / "server.log").read_text()) and "ready" not in said:
            assert server.poll() is None, said
            assert time.monotonic() - start < 300, said
            time.sleep(0.5)
        server.send_signal(signal.SIGINT)
        server.wait(60)
