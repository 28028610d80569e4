"""What a judge's client costs: throughput against a local server of fixed latency, and CPU a call.

    python benchmarks/judge.py --json docs/results/judge.json
    python benchmarks/judge.py --latency 1 --json docs/results/judge_1s.json

The server (judge_server.py) answers every request after the latency, never before, counts how many it has at once,
never more than the concurrency, and reports how late its answers were. Ideal is calls · latency / concurrency.

"judge" is `JudgeSource.score` as users call it, with a new cache and the form of JSON given: prompts, cache, claims,
costs, parsing, rows. "judge, form found out" has the form of JSON found out by the first calls. The other rows are the
openai client alone, for what it costs: with a connection for each request, as the judge has it; with connections that
are kept; and with its usual transport and response models. CPU is the process's own (user and system), so a loaded
machine inflates it; `--turns` repeats everything and the best is shown beside the median, and each turn says how much
of a CPU other processes took. `--idle S` waits up to S seconds before each row until they take less than 0.15 of one
(Linux); on a machine that is never idle, `chrt -r 1 python benchmarks/judge.py` has the CPU before them. `--awake`
runs a loop of idle priority on each CPU, which gives way to everything: a virtual machine's CPU that sleeps wakes late
(others' CPU then counts the loops). The targets, on an idle machine: at least 90% of ideal at 1 s (`--latency 1`), 75%
at 100 ms.

Ideal can't be reached where calls aren't a multiple of the concurrency: 2,000 calls on 64 slots are 32 rounds for some
of them, 3.2 s and not 3.125, so 97.7% is the most.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import openai

from judge_server import Server
from surefoot.files import write_json
from surefoot.records import versions
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource


def stay_awake() -> None:
    """A loop that takes only what no other process wants."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    while True:
        pass


class Others:
    """CPU that processes other than this one and the server take, from /proc; NaN where there is none."""

    def __init__(self, server: int) -> None:
        self.server = server

    def seconds(self) -> float:
        """Of CPU, since some fixed time."""
        try:
            busy = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
            served = Path(f"/proc/{self.server}/stat").read_text().rpartition(")")[2].split()[11:13]
        except OSError:
            return math.nan
        own = os.times()
        ticks = sum(busy) - busy[3] - busy[4] - sum(int(word) for word in served)
        return ticks / os.sysconf("SC_CLK_TCK") - own.user - own.system

    def wait(self, longest: float) -> None:
        """Until they take little, or for so many seconds."""
        end = time.monotonic() + longest
        while time.monotonic() < end:
            before = self.seconds()
            time.sleep(0.5)
            if not self.seconds() - before > 0.5 * 0.15:
                return


def measure(work: Callable[[], Any], calls: int) -> dict[str, float]:
    """Seconds, and milliseconds of CPU a call."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return {"seconds": time.perf_counter() - wall, "cpu_ms": 1000 * (time.process_time() - cpu) / calls}


def judge(endpoint: str, calls: int, concurrency: int, structured: Any = "json_schema") -> dict[str, float]:
    """`calls` completions of ordinary length, each rated once."""
    with tempfile.TemporaryDirectory() as folder:
        usual = {"wordings": 1, "samples": 1, "concurrency": concurrency, "structured": structured}
        config = JudgeConfig(endpoint=endpoint, cache=f"{folder}/replies.sqlite", **usual)
        source = JudgeSource("m", config)
        completions = [f"answer {i} " + "and so on " * 60 for i in range(calls)]
        prompts = ["What is there to say? " * 10] * calls
        found = measure(lambda: source.score(prompts, completions), calls)
        again = measure(lambda: source.score(prompts, completions), calls)
        assert source.totals().replies == calls
    return found | {"cached_cpu_ms": again["cpu_ms"]}


def alone(how: str, endpoint: str, calls: int, concurrency: int) -> dict[str, float]:
    """The openai client without the judge."""
    messages = [{"role": "system", "content": "x" * 1200}, {"role": "user", "content": "y" * 900}]
    body = {"model": "m", "messages": messages, "temperature": 1.0, "max_tokens": 256}

    async def run() -> None:
        given: dict[str, Any] = {"base_url": endpoint, "api_key": "none", "max_retries": 0}
        limits = httpx2.Limits(max_connections=concurrency)
        kept = openai.AsyncOpenAI(**given, http_client=openai.DefaultAioHttpClient(limits=limits))
        limits = httpx2.Limits(max_connections=concurrency, keepalive_expiry=0)
        single = openai.AsyncOpenAI(
            **given,
            http_client=openai.DefaultAioHttpClient(limits=limits),
            default_headers={"Connection": "close"},
        )
        usual = openai.AsyncOpenAI(**given)
        ways: dict[str, Callable[[], Awaitable[Any]]] = {
            WAYS[0]: lambda: single.post("/chat/completions", cast_to=httpx2.Response, body=body),
            WAYS[1]: lambda: kept.post("/chat/completions", cast_to=httpx2.Response, body=body),
            WAYS[2]: lambda: usual.chat.completions.create(**body),  # type: ignore[call-overload]
        }
        turns = iter(range(calls))

        async def work() -> None:
            for _ in turns:
                await ways[how]()

        await asyncio.gather(*(work() for _ in range(concurrency)))
        for client in (single, kept, usual):
            await client.close()

    return measure(lambda: asyncio.run(run()), calls)


WAYS = ("openai: post, aiohttp, single use", "openai: post, aiohttp, kept open", "openai: create, its own transport")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--ways", type=int, default=3, help="how many rows of the bare client")
    parser.add_argument("--idle", type=float, default=0.0, help="seconds to wait for an idle machine before each row")
    parser.add_argument("--awake", action="store_true", help="keep the CPUs from sleeping (Linux)")
    parser.add_argument("--json", type=Path, help="write the figures here")
    args = parser.parse_args()
    if args.awake:
        for _ in range(os.cpu_count() or 1):
            multiprocessing.get_context("spawn").Process(target=stay_awake, daemon=True).start()
    with Server(args.latency) as server:
        report(measured(server, args), args)


def measured(server: Server, args: argparse.Namespace) -> dict[str, list[dict[str, float]]]:
    """Turns of each row."""
    runs: dict[str, list[dict[str, float]]] = {}
    others = Others(server.process.pid or 0)

    def turn(name: str, work: Callable[[], dict[str, float]]) -> None:
        others.wait(args.idle)
        server.start()
        start, before = time.perf_counter(), others.seconds()
        found = work()
        found["others_cpu"] = (others.seconds() - before) / (time.perf_counter() - start)
        found |= server.found()
        assert found["answers"] == args.calls
        assert found["most_at_once"] <= args.concurrency
        runs.setdefault(name, []).append(found)

    judge(server.endpoint, args.concurrency, args.concurrency)  # imports
    for _ in range(args.turns):
        turn("judge", lambda: judge(server.endpoint, args.calls, args.concurrency))
        turn("judge, form found out", lambda: judge(server.endpoint, args.calls, args.concurrency, "auto"))
        for how in WAYS[: args.ways]:
            turn(how, partial(alone, how, server.endpoint, args.calls, args.concurrency))
    return runs


def report(runs: dict[str, list[dict[str, float]]], args: argparse.Namespace) -> None:
    ideal = args.calls * args.latency / args.concurrency
    print(f"{args.calls} calls, {args.latency:g} s latency, concurrency {args.concurrency}: ideal {ideal:.2f} s")
    print(f"{'':38}{'of ideal, best':>15}{'median':>8}{'CPU ms a call, least':>22}{'median':>8}")
    rows: dict[str, Any] = {}
    for name, found in runs.items():
        share = [ideal / run["seconds"] for run in found]
        cpu = [run["cpu_ms"] for run in found]
        rows[name] = {
            "share_of_ideal": {"best": max(share), "median": statistics.median(share)},
            "cpu_ms": {"least": min(cpu), "median": statistics.median(cpu)},
            "runs": found,
        }
        shares = f"{100 * max(share):14.1f}%{100 * statistics.median(share):7.1f}%"
        print(f"{name:38}{shares}{min(cpu):22.3f}{statistics.median(cpu):8.3f}")
    late = [run["server_late_ms"] for run in runs["judge"]]
    print(f"{'server: answers late by, ms':38}{min(late):15.2f}{statistics.median(late):8.2f}")
    rows["server's own lateness"] = {"late_ms": {"least": min(late), "median": statistics.median(late)}}
    most = max(run["most_at_once"] for found in runs.values() for run in found)
    print(f"most at once {most:.0f}; others' CPU {[round(run['others_cpu'], 2) for run in runs['judge']]}")
    print(f"load average {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs; a cached call costs "
          f"{min(run['cached_cpu_ms'] for run in runs['judge']):.3f} ms")  # fmt: skip
    if args.json is not None:
        names = ("calls", "concurrency", "latency", "turns", "idle", "awake")
        settings = {name: getattr(args, name) for name in names}
        machine = {"load_average": os.getloadavg()[0], "cpus": os.cpu_count(), "openai": openai.__version__}
        if hasattr(os, "sched_getscheduler"):
            machine["real_time_priority"] = os.sched_getscheduler(0) in (os.SCHED_FIFO, os.SCHED_RR)
        write_json(args.json, {"settings": settings, "versions": versions(), "machine": machine, "rows": rows})


if __name__ == "__main__":
    main()
