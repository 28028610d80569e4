"""What a process on a CPU holds beside torch's own numbers, so that a plan can be set against its resident size."""

from __future__ import annotations

from dataclasses import replace

from surefoot.planning.shapes import Line, MemoryPlan

__all__ = ["LIBRARIES_BYTES", "with_process"]

LIBRARIES_BYTES = 496_000_000
"""Python with torch, transformers, TRL, PEFT and datasets imported (`benchmarks/process_memory.py`, Linux)."""


def with_process(plan: MemoryPlan) -> MemoryPlan:
    """Add what the libraries take to each phase of a plan for a CPU."""
    line = Line("process: Python and its libraries", LIBRARIES_BYTES, "imported and idle; measured on Linux")
    return replace(plan, phases=tuple(replace(phase, lines=(*phase.lines, line)) for phase in plan.phases))
