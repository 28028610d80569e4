"""Settings of a panel of judges."""

from __future__ import annotations

from dataclasses import dataclass, field

from surefoot.maths.ensemble import VarianceKind

__all__ = ["PanelConfig"]


@dataclass(frozen=True)
class PanelConfig:
    """What `surefoot reward --kind panel` can set."""

    other_models: tuple[str, ...] = field(default=(), metadata={"help": "Further sources, each a saved judge."})
    families: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "Model family of each judge, in order; its model's name if none. A family's judges are one voice."
        },
    )
    variance: VarianceKind = field(
        default="raw",
        metadata={"help": "The raw variance between families, or moderated by a prior (docs/judge.md)."},
    )
