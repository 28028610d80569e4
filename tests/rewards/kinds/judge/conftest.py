"""A judge against a local server, impatient enough for tests."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource
from tests.rewards.kinds.judge.servers import JudgeServer


@pytest.fixture
def python_interrupts() -> Iterator[None]:
    """Ctrl-C as Python has it: a process that a shell started in the background ignores it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def judge(tmp_path: Path) -> Callable[..., JudgeSource]:
    """Makes a judge of a server: one wording, three samples, short waits, a cache of the test's own."""

    def make(server: JudgeServer | str, **settings: Any) -> JudgeSource:
        own = [n for n in ("name", "rubric", "references") if n == "name" or not isinstance(settings.get(n), str)]
        named = {name: settings.pop(name) for name in own if name in settings}
        usual: dict[str, Any] = {
            "endpoint": server if isinstance(server, str) else server.endpoint,
            "wordings": 1,
            "samples": 3,
            "structured": "none",
            "retries": 2,
            "backoff_s": 0.01,
            "timeout_s": 5.0,
            "deadline_s": 10.0,
            "cache": str(tmp_path / "replies.sqlite"),
        }
        return JudgeSource("m", JudgeConfig(**(usual | settings)), **named)

    return make
