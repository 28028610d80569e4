"""Requests a second of `surefoot serve`, beside a server without batching and beside plain batches of 64 in a process.

    python benchmarks/server.py SOURCE TEXTS.jsonl --requests 1000

64 clients each send one row a request. "unbatched" is the same server with `--batch_tokens 1`: each row is a batch of
its own. "plain" scores the same rows by `RewardSource.score` in batches of 64, without HTTP: no server can be faster
by more than what larger batches give. LitServe isn't compared: it isn't installed here.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import aiohttp
import psutil

CLIENTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("texts", type=Path, help="JSON lines with prompt and chosen")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    lines = [json.loads(line) for line in args.texts.read_text().splitlines()]
    rows = [(line["prompt"], line["chosen"]) for line in (lines * (args.requests // len(lines) + 1))[: args.requests]]
    print(json.dumps({"plain": plain(args.source, rows)}), flush=True)
    for name, words in (("surefoot serve", []), ("unbatched", ["--batch_tokens", "1"])):
        print(json.dumps({name: served(args.source, rows, args.port, words)}), flush=True)


def plain(folder: str, rows: list[tuple[Any, Any]]) -> dict[str, float]:
    """Rows a second in batches of 64, with the CPU time of a row."""
    from surefoot.rewards.registry import load_source

    source = load_source(folder, "cpu")
    source.score(*map(list, zip(*rows[:64], strict=True)))
    start, used = time.perf_counter(), time.process_time()
    for first in range(0, len(rows), 64):
        source.estimate(source.score(*map(list, zip(*rows[first : first + 64], strict=True))))
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {"rows_s": round(len(rows) / seconds, 1), "cpu_ms_per_row": round(1000 * used / len(rows), 2)}


def served(folder: str, rows: list[tuple[Any, Any]], port: int, words: list[str]) -> dict[str, float]:
    """Requests a second, latencies and the server's CPU time of a request."""
    command = ["serve", "--source", folder, "--device", "cpu", "--port", str(port), *words]
    with subprocess.Popen([sys.executable, "-m", "surefoot.cli.main", *command], stderr=subprocess.DEVNULL) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/ready")
            asyncio.run(_load(f"http://127.0.0.1:{port}/v1/rewards", rows[:128]))
            before = psutil.Process(process.pid).cpu_times()
            start = time.perf_counter()
            latencies = sorted(asyncio.run(_load(f"http://127.0.0.1:{port}/v1/rewards", rows)))
            seconds, after = time.perf_counter() - start, psutil.Process(process.pid).cpu_times()
        finally:
            process.terminate()
    used = after.user + after.system - before.user - before.system
    count = len(rows)
    return {
        "requests_s": round(count / seconds, 1),
        "p50_ms": round(1000 * latencies[count // 2]),
        "p95_ms": round(1000 * latencies[int(0.95 * count)]),
        "cpu_ms_per_request": round(1000 * used / count, 2),
    }


def _wait(url: str) -> None:
    for _ in range(3000):
        try:
            urllib.request.urlopen(url).close()
            return
        except OSError:
            time.sleep(0.1)
    raise SystemExit(f"{url} doesn't answer")


async def _load(url: str, rows: list[tuple[Any, Any]]) -> list[float]:
    """Send each row as a request, `CLIENTS` at a time: the seconds that each took."""
    left, latencies = iter(rows), []

    async def client(session: aiohttp.ClientSession) -> None:
        for prompt, completion in left:
            start = time.perf_counter()
            async with session.post(url, json={"prompt": prompt, "completions": [completion]}) as response:
                assert response.status == 200, await response.text()
                await response.read()
            latencies.append(time.perf_counter() - start)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=CLIENTS)) as session:
        await asyncio.gather(*(client(session) for _ in range(CLIENTS)))
    return latencies


if __name__ == "__main__":
    main()
