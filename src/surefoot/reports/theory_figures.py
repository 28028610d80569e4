"""The figures of docs/theory.md, each from one table of `surefoot theory`."""

from __future__ import annotations

from typing import Any

from matplotlib.figure import Figure

from surefoot.reports.figures import COLOURS, MARKERS, blank
from surefoot.reports.theory import NAMES

__all__ = ["theory_figures"]

Rows = list[dict[str, Any]]
_SMALLEST = 1e-4
"""Risks below this are drawn at it: a simulation of some thousand draws can't tell them apart."""


def theory_figures(found: dict[str, Any]) -> dict[str, Figure]:
    """Name ↦ figure, from the record of `run_theory`."""
    return {
        "closed_form": _closed_form(found["closed_form"]),
        "theorem": _theorem(found["theorem_by_kind"]),
        "estimated_variance": _estimated(found["estimated_variance"]),
        "frontier": _frontier(found["frontier"]),
        "correlated": _correlated(found["correlated"]),
    }


def _closed_form(rows: Rows) -> Figure:
    figure, axes = blank(4.6, 4.2)
    for colour, marker, method in zip(COLOURS, MARKERS, ("vanilla", "variance_aware"), strict=False):
        here = [row for row in rows if row["method"] == method]
        points = ([row["closed"] for row in here], [row["simulated"] for row in here])
        bars = [2 * row["error"] for row in here]
        axes.errorbar(*points, yerr=bars, fmt=marker, ms=3.5, lw=0.8, color=colour, alpha=0.6, label=NAMES[method])
    axes.plot([0, 0.5], [0, 0.5], color="#555555", linewidth=1)
    axes.set_xlabel("risk in closed form")
    axes.set_ylabel("simulated risk, ± 2 standard errors")
    axes.legend(loc="upper left", fontsize=9.5)
    return figure


def _theorem(rows: Rows) -> Figure:
    figure, axes = blank(4.6, 4.2)
    for colour, marker, hetero in zip(COLOURS, MARKERS, sorted({row["hetero"] for row in rows}), strict=False):
        pairs = [pair for row in rows if row["hetero"] == hetero for pair in row["examples"]]
        points = ([pair[0] for pair in pairs], [max(pair[1], 1e-8) for pair in pairs])
        axes.plot(*points, marker, color=colour, markersize=4, alpha=0.7, label=f"unequal by {hetero:g}")
    axes.plot([1e-3, 0.5], [1e-3, 0.5], color="#555555", linewidth=1)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlabel("risk, vanilla")
    axes.set_ylabel("risk, variance-aware (1e-8 or more is drawn)")
    axes.legend(loc="lower right", fontsize=9)
    return figure


def _estimated(rows: Rows) -> Figure:
    degrees = sorted({row["hetero"] for row in rows})
    figure, panels = blank(9.2, 3.1, columns=len(degrees))
    for axes, hetero in zip(panels, degrees, strict=True):
        here = [row for row in rows if row["hetero"] == hetero]
        for colour, marker, name in zip(COLOURS, MARKERS, ("raw", "ignored", "moderated", "known"), strict=False):
            risks = [max(row[name], _SMALLEST) for row in here]
            axes.plot([row["K"] for row in here], risks, marker + "-", color=colour, ms=5, lw=1.4, label=name)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_ylim(_SMALLEST * 0.8, 0.6)
        axes.set_xticks([2, 3, 5, 10, 30], ["2", "3", "5", "10", "30"])
        axes.minorticks_off()
        axes.set_title("equal variances" if hetero == 0 else f"unequal by {hetero:g}", fontsize=10)
        axes.set_xlabel("members K")
    panels[0].set_ylabel("risk (log)")
    panels[0].legend(fontsize=8.5, loc="lower left")
    return figure


def _frontier(rows: Rows) -> Figure:
    degrees, reward_sd = sorted({row["hetero"] for row in rows}), min(row["reward_sd"] for row in rows)
    figure, panels = blank(9.2, 3.9, columns=len(degrees))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for axes, hetero in zip(panels, degrees, strict=True):
        for place, method in enumerate(methods):
            here = [r for r in rows if (r["hetero"], r["reward_sd"], r["method"]) == (hetero, reward_sd, method)]
            style = "--" if place >= len(COLOURS) else "-"
            axes.plot(
                [row["risk"] for row in here], [row["gain"] for row in here], MARKERS[place % len(MARKERS)] + style,
                color=COLOURS[place % len(COLOURS)], ms=5, lw=1.1, alpha=0.85, label=NAMES[method],
            )  # fmt: skip
        axes.set_title("equal variances" if hetero == 0 else f"unequal by {hetero:g}", fontsize=10)
        axes.set_xlabel("risk")
    panels[0].set_ylabel("mean gain")
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize=8.5)
    return figure


def _correlated(rows: Rows) -> Figure:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    figure, panels = blank(9.2, 3.1, columns=len(kinds))
    methods = (("vanilla", "vanilla"), ("variance_aware", "variance-aware"), ("full_covariance", "knows Σ"))
    for axes, kind in zip(panels, kinds, strict=True):
        for colour, marker, (name, label) in zip(COLOURS, MARKERS, methods, strict=False):
            here = [row for row in rows if (row["kind"], row["hetero"]) == (kind, 0.5)]
            axes.plot(
                [r["correlation"] for r in here], [r[name] for r in here], marker + "-", color=colour, label=label
            )
        axes.set_ylim(0, 0.42)
        axes.set_title(f"shared error: {kind.replace('_', ' ')}", fontsize=10)
        axes.set_xlabel("share ρ of the variance")
    panels[0].set_ylabel("mean risk")
    panels[0].legend(fontsize=9)
    return figure
