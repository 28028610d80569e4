"""A server in its own process: under load, with clients that drip and leave, as it is stopped and started again."""

from __future__ import annotations

import asyncio
import collections
import json
import socket
import threading
import time
import urllib.error
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from surefoot.cli.main import main
from surefoot.rewards.kinds.linear import LinearReward
from surefoot.rewards.kinds.remote import connect
from tests.serving.conftest import Served

Start = Callable[..., Served]


def metric(served: Served, start: str) -> float:
    """Sum of the values whose line starts so, whatever the worker."""
    with served.get("/metrics") as response:
        lines = response.read().decode().splitlines()
    name, _, labels = start.partition("{")
    return sum(float(x.rsplit(" ", 1)[1]) for x in lines if x.startswith(f"{name}{{") and labels in x)


def until(condition: Callable[[], Any], seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def opened(served: Served, payload: Any, *, length: int | None = None) -> socket.socket:
    """A connection on which a request was sent, whole or with a longer body announced."""
    body = json.dumps(payload).encode()
    head = f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: {length or len(body)}\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", served.port), timeout=60)
    connection.sendall(head.encode() + body)
    return connection


def ask(number: int) -> dict[str, Any]:
    return {"prompt": "p", "completions": [f"{number} x"]}


async def load(served: Served, count: int, at_once: int) -> dict[str, Any]:
    """Send `count` requests from 64 clients; each refused one is sent again after the time that it was told.

    Returns:
        `answers`, how often each number was answered, `refused`, and `memory`, resident bytes as it went on.
    """
    left, answers, refused, memory = iter(range(count)), collections.Counter[int](), 0, []

    async def worker(session: aiohttp.ClientSession) -> None:
        nonlocal refused
        for number in left:
            while True:
                async with session.post(f"{served.url}/v1/rewards", json=ask(number)) as response:
                    if response.status == 200:
                        assert (await response.json())["mean"] == [float(number)]
                        answers[number] += 1
                        break
                    assert response.status == 429
                    refused += 1
                    wait = int(response.headers["Retry-After"])
                await asyncio.sleep(wait)
            if number % max(1, count // 10) == 0:
                memory.append(await asyncio.to_thread(metric, served, "surefoot_resident_bytes"))

    async def client() -> None:
        async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
            await asyncio.gather(*(worker(session) for _ in range(at_once)))

    await asyncio.gather(*(client() for _ in range(64)))
    return {"answers": answers, "refused": refused, "memory": memory}


def check_load(served: Served, seen: Path, count: int, at_once: int) -> dict[str, Any]:
    seen.write_text("")
    result = asyncio.run(load(served, count, at_once))
    assert result["answers"] == dict.fromkeys(range(count), 1)
    assert sorted(map(int, seen.read_text().split())) == list(range(count))
    assert result["refused"] > 0
    return result


def test_a_process_under_load_with_bad_clients_and_drained(start: Start, tmp_path: Path) -> None:
    seen, gate = tmp_path / "seen", tmp_path / "gate"
    limits = ("--max_waiting", "25", "--max_rows", "25", "--body_seconds", "1")
    served = start(*limits, SLOW_SEEN=str(seen), SLOW_GATE=str(gate), SLOW_MS="2").wait()

    dripping = opened(served, ask(7), length=1000)
    assert served.post("/v1/rewards", ask(8))["mean"] == [8.0]
    assert dripping.recv(1000).startswith(b"HTTP/1.1 408")
    dripping.close()

    gate.touch()
    first = opened(served, ask(1))
    until(lambda: metric(served, "surefoot_waiting_rows") == 0)
    leaving = opened(served, ask(2))
    until(lambda: metric(served, "surefoot_waiting_rows") == 1)
    leaving.close()
    until(lambda: metric(served, 'surefoot_requests_total{route="/v1/rewards",status="499"') == 1)
    gate.unlink()
    assert served.post("/v1/rewards", ask(3))["mean"] == [3.0]
    assert first.recv(1000).startswith(b"HTTP/1.1 200")
    first.close()
    assert seen.read_text().split() == ["8", "1", "3"]

    check_load(served, seen, 150, 1)

    gate.touch()
    accepted = opened(served, ask(4))
    until(lambda: metric(served, "surefoot_batch_seconds_count") == metric(served, "surefoot_batch_rows_count"))
    served.process.terminate()
    until(lambda: refuses(served))
    gate.unlink()
    assert b'"mean":[4.0]' in whole(accepted)
    assert served.process.wait(60) == 0
    log = [json.loads(line) for line in served.log.read_text().splitlines()]
    assert "drained" in [line["message"] for line in log]


def refuses(served: Served) -> bool:
    try:
        served.get("/health").close()
    except (urllib.error.URLError, ConnectionError):
        return True
    return False


def whole(connection: socket.socket) -> bytes:
    with connection:
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.slow
def test_ten_thousand_requests_at_eight_times_what_it_carries(start: Start, tmp_path: Path) -> None:
    """The queue holds 50 rows, a second's work; 64 clients with six requests each keep 384 under way."""
    seen = tmp_path / "seen"
    served = start("--max_waiting", "50", "--max_rows", "50", SLOW_SEEN=str(seen), SLOW_MS="20").wait()
    result = check_load(served, seen, 10_000, 6)
    assert result["refused"] > 10_000
    assert max(result["memory"][2:]) - result["memory"][1] < 20 * 2**20
    assert served.end() == 0


@pytest.mark.slow
def test_a_restart_under_load_loses_nothing(start: Start) -> None:
    served = start(SLOW_MS="10").wait()
    source, results = connect(served.url), []
    texts = [f"{i} x" for i in range(3000)]
    scoring = threading.Thread(target=lambda: results.append(source.score(["p"] * 3000, texts)))
    scoring.start()
    until(lambda: metric(served, "surefoot_rows_total") > 256)
    assert served.end() == 0
    again = start(SLOW_MS="1", port=served.port).wait()
    scoring.join(300)
    assert results[0][:, 0].tolist() == [float(i) for i in range(3000)]
    assert 0 < metric(again, "surefoot_rows_total") < 3000
    assert again.end() == 0


@pytest.mark.slow
def test_several_workers_share_one_address(linear: tuple[LinearReward, Path], start: Start) -> None:
    served = start("--reward_source", str(linear[1]), "--device", "cpu", "--workers", "2").wait()
    expected = linear[0].score(["the "], ["cat"])[0].tolist()
    workers: set[str] = set()

    def both() -> bool:
        row = served.post("/v1/rewards", {"prompt": "the ", "completions": ["cat"], "rows": True})["rows"][0]
        assert row == pytest.approx(expected, rel=1e-5, abs=1e-6)
        with served.get("/metrics") as response:
            workers.add(response.read().decode().split('worker="')[1].split('"')[0])
        return len(workers) == 2

    until(both, 240)
    assert served.end() == 0


def test_what_is_not_served_is_said_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("SUREFOOT_SERVE_KEY", raising=False)
    assert main(["serve", "--reward_source", str(tmp_path), "--host", "0.0.0.0"]) == 1
    assert "SUREFOOT_SERVE_KEY holds no key" in capsys.readouterr().err
    assert main(["serve", "--reward_source", str(tmp_path)]) == 1
    assert "is not a reward source" in capsys.readouterr().err


def test_a_taken_port_is_said_in_one_line(
    linear: tuple[LinearReward, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        words = ["--reward_source", str(linear[1]), "--device", "cpu", "--port", str(taken.getsockname()[1])]
        assert main(["serve", *words]) == 1
    assert "can't listen on 127.0.0.1" in capsys.readouterr().err
