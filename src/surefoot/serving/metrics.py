"""Counters, gauges and histograms in Prometheus' text format, as far as the server needs them."""

from __future__ import annotations

import os
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

__all__ = ["Metrics", "resident_bytes"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
ROWS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Values by name and labels. A name's kind and help are given where it is declared.

    Args:
        constant: labels of every value, such as the worker's number.
    """

    def __init__(self, **constant: str) -> None:
        self._constant = tuple(constant.items())
        self._about: dict[str, tuple[str, str]] = {}
        self._values: dict[str, dict[Labels, float]] = {}
        self._gauges: dict[str, Callable[[], float]] = {}
        self._bounds: dict[str, Sequence[float]] = {}
        self._histograms: dict[str, dict[Labels, list[float]]] = {}

    def counter(self, name: str, text: str) -> None:
        self._about[name], self._values[name] = ("counter", text), {}

    def gauge(self, name: str, text: str, read: Callable[[], float]) -> None:
        """A value that is read when it is asked for."""
        self._about[name], self._gauges[name] = ("gauge", text), read

    def histogram(self, name: str, text: str, bounds: Sequence[float]) -> None:
        self._about[name], self._histograms[name], self._bounds[name] = ("histogram", text), {}, bounds

    def add(self, name: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        held, key = self._values[name], tuple(labels.items())
        held[key] = held.get(key, 0.0) + amount

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Count a value in a histogram: counts of each bucket, then the sum of the values."""
        bounds = self._bounds[name]
        held = self._histograms[name].setdefault(tuple(labels.items()), [0.0] * (len(bounds) + 2))
        held[bisect_left(bounds, value)] += 1
        held[-1] += value

    def text(self) -> str:
        """All values, as Prometheus reads them.

        >>> metrics = Metrics(worker="1")
        >>> metrics.counter("rows_total", "Rows scored.")
        >>> metrics.add("rows_total", 3, route="/rm")
        >>> print(metrics.text(), end="")
        # HELP rows_total Rows scored.
        # TYPE rows_total counter
        rows_total{worker="1",route="/rm"} 3
        """
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        for name, (kind, text) in self._about.items():
            yield f"# HELP {name} {text}"
            yield f"# TYPE {name} {kind}"
            if kind == "gauge":
                yield self._line(name, (), self._gauges[name]())
            for labels, value in self._values.get(name, {}).items():
                yield self._line(name, labels, value)
            for labels, held in self._histograms.get(name, {}).items():
                yield from self._buckets(name, labels, held)

    def _buckets(self, name: str, labels: Labels, held: list[float]) -> Iterator[str]:
        total = 0.0
        for bound, count in zip((*self._bounds[name], "+Inf"), held[:-1], strict=True):
            total += count
            yield self._line(f"{name}_bucket", (*labels, ("le", str(bound))), total)
        yield self._line(f"{name}_sum", labels, held[-1])
        yield self._line(f"{name}_count", labels, total)

    def _line(self, name: str, labels: Labels, value: float) -> str:
        written = ",".join(f'{key}="{text}"' for key, text in (*self._constant, *labels))
        return f"{name}{{{written}}} {value:.10g}" if written else f"{name} {value:.10g}"


def resident_bytes() -> float:
    """Resident memory of this process, in bytes; NaN where the system doesn't say (it isn't Linux)."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except (OSError, ValueError, IndexError):
        return float("nan")
    return float(pages * os.sysconf("SC_PAGE_SIZE"))
