"""CPU time of a request to `surefoot serve`, beside LitServe and beside the model alone in batches of 64.

    python benchmarks/server.py SOURCE PREFERENCES.parquet --requests 1000 --rounds 5

64 clients each send one row a request and wait for its answer, so that the server is never idle. "model" scores the
same rows by the source itself in batches of 64 in one process, without HTTP. "unbatched" is our server with
`--batch_tokens 1`, where each row is a batch of its own. LitServe (`pip install litserve`) serves the same source in
batches of up to 64; it is left out where it isn't installed.

Each round runs all of them once, one after the other, and compares them within the round. CPU time is that of the
server's processes, without the clients'; unlike requests per second it hardly depends on what else the machine does.
The last line gives each one's ratio to "model": the mean over rounds, the lowest and the highest.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import psutil
import pyarrow.parquet as pq

CLIENTS = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source")
    parser.add_argument("texts", type=Path, help="Parquet file with columns prompt and chosen")
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    lines = pq.read_table(args.texts, columns=["prompt", "chosen"]).to_pylist()
    rows = [(line["prompt"], line["chosen"]) for line in (lines * (args.requests // len(lines) + 1))[: args.requests]]
    port = str(args.port)
    ours = [sys.executable, "-m", "surefoot.cli.main", "serve", "--reward_source", args.source, "--device", "cpu"]
    servers = {"surefoot": [*ours, "--port", port], "unbatched": [*ours, "--port", port, "--batch_tokens", "1"]}
    if find_spec("litserve"):
        servers["litserve"] = [sys.executable, str(Path(__file__).with_name("server_litserve.py")), args.source, port]
    ratios: dict[str, list[float]] = {name: [] for name in servers}
    for number in range(args.rounds):
        model = alone(args.source, rows)
        print(json.dumps({"round": number, "model": model}), flush=True)
        for name, command in servers.items():
            held = served(command, rows, args.port)
            ratios[name].append(held["cpu_ms"] / model["cpu_ms"])
            print(json.dumps({"round": number, name: held}), flush=True)
    spread = {name: [round(f(x), 3) for f in (_mean, min, max)] for name, x in ratios.items()}
    print(json.dumps({"requests": len(rows), "rounds": args.rounds, "ratio_to_model": spread}))


def alone(folder: str, rows: list[tuple[Any, Any]]) -> dict[str, float]:
    """CPU time of a row and rows per second of the source itself, in batches of 64."""
    from surefoot.rewards.registry import load_source

    source = load_source(folder, "cpu")
    source.score(*map(list, zip(*rows[:64], strict=True)))
    start, used = time.perf_counter(), time.process_time()
    for first in range(0, len(rows), 64):
        source.estimate(source.score(*map(list, zip(*rows[first : first + 64], strict=True))))
    seconds, used = time.perf_counter() - start, time.process_time() - used
    return {"cpu_ms": round(1000 * used / len(rows), 3), "rows_s": round(len(rows) / seconds, 1)}


def served(command: list[str], rows: list[tuple[Any, Any]], port: int) -> dict[str, float]:
    """CPU time of a request, requests per second and latencies of a server, which is started and stopped."""
    url = f"http://127.0.0.1:{port}/v1/rewards"
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        server = psutil.Process(process.pid)
        try:
            asyncio.run(_wait(process, url, rows[0]))
            asyncio.run(_load(url, rows[:128]))
            start, used = time.perf_counter(), _cpu_seconds(server)
            latencies = sorted(asyncio.run(_load(url, rows)))
            seconds, used = time.perf_counter() - start, _cpu_seconds(server) - used
        finally:
            for child in [*server.children(recursive=True), server]:
                child.terminate()
    count = len(rows)
    return {
        "cpu_ms": round(1000 * used / count, 3),
        "requests_s": round(count / seconds, 1),
        "p50_ms": round(1000 * latencies[count // 2]),
        "p95_ms": round(1000 * latencies[int(0.95 * count)]),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _cpu_seconds(process: psutil.Process) -> float:
    """Of a process and all that it started."""
    times = [each.cpu_times() for each in [process, *process.children(recursive=True)]]
    return sum(each.user + each.system for each in times)


async def _wait(process: subprocess.Popen[bytes], url: str, row: tuple[Any, Any]) -> None:
    """Return when a first request is answered."""
    while process.poll() is None:
        try:
            await _load(url, [row])
            return
        except (aiohttp.ClientError, AssertionError):
            await asyncio.sleep(0.1)
    raise SystemExit(f"{process.args!r:.200} ended with status {process.returncode}")


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
