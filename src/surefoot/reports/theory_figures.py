"""Draw the figures of docs/theory.md, each from one table of `surefoot theory`."""

from __future__ import annotations

from typing import Any

from surefoot.reports.axes import padded
from surefoot.reports.drawing import COLOURS, Drawing, style_of
from surefoot.reports.figures import frame, listed, panels
from surefoot.reports.theory import NAMES
from surefoot.reports.wording import number

__all__ = ["theory_figures"]

Rows = list[dict[str, Any]]
_SMALLEST = 1e-4
"""Risks below this are drawn at it: a simulation of some thousand draws can't tell them apart."""
_TINIEST = 1e-8
"""The same for exact risks."""
_FAINT = 0.55


def theory_figures(record: dict[str, Any]) -> dict[str, Drawing]:
    """Name ↦ figure, from the record of `run_theory`."""
    return {
        "closed_form": _closed_form(record["closed_form"]),
        "theorem": _theorem(record["theorem_by_kind"]),
        "estimated_variance": _estimated(record["estimated_variance"]),
        "frontier": _frontier(record["frontier"]),
        "correlated": _correlated(record["correlated"]),
    }


def _closed_form(rows: Rows) -> Drawing:
    methods = ("vanilla", "variance_aware")
    span = padded([row[name] for row in rows for name in ("closed", "simulated")])
    legend = [(NAMES[method], COLOURS[place], 0) for place, method in enumerate(methods)]
    axes = frame(span, span, "risk in closed form", "simulated risk, ± 2 standard errors", legend, height=320)
    axes.diagonal()
    for colour, method in zip(COLOURS, methods, strict=False):
        for row in (row for row in rows if row["method"] == method):
            axes.error_bar(
                row["closed"], row["simulated"] - 2 * row["error"], row["simulated"] + 2 * row["error"], colour
            )
            axes.mark(row["closed"], row["simulated"], colour, radius=2.4, opacity=_FAINT)
    furthest = max(abs(row["closed"] - row["simulated"]) for row in rows)
    axes.drawing.words = listed("Simulated risk against risk in closed form", [f"at most {furthest:.3f} apart"])
    return axes.drawing


def _theorem(rows: Rows) -> Drawing:
    degrees = sorted({row["hetero"] for row in rows})
    pairs = {
        hetero: [pair for row in rows if row["hetero"] == hetero for pair in row["examples"]] for hetero in degrees
    }
    legend = [(f"unequal by {hetero:g}", COLOURS[place], 0) for place, hetero in enumerate(degrees)]
    smallest = min(max(vanilla, _TINIEST) for examples in pairs.values() for vanilla, _ in examples)
    axes = frame(
        (0.7 * smallest, 0.6),
        (0.5 * _TINIEST, 0.6),
        "risk, vanilla",
        "risk, variance-aware (1e-8 or more is drawn)",
        legend,
        height=320,
        log=True,
    )
    axes.diagonal()
    for colour, examples in zip(COLOURS, pairs.values(), strict=False):
        for vanilla, aware in examples:
            axes.mark(max(vanilla, _TINIEST), max(aware, _TINIEST), colour, radius=2.4, opacity=_FAINT)
    below = sum(aware <= vanilla for examples in pairs.values() for vanilla, aware in examples)
    count = sum(len(examples) for examples in pairs.values())
    axes.drawing.words = listed(
        "Risk of the variance-aware against the vanilla update", [f"{below} of {count} problems on or below the line"]
    )
    return axes.drawing


def _estimated(rows: Rows) -> Drawing:
    degrees = sorted({row["hetero"] for row in rows})
    variances = ("raw", "ignored", "moderated", "known")
    legend = [(name, *style_of(place)) for place, name in enumerate(variances)]
    frames = panels(
        [_degree(hetero) for hetero in degrees],
        (1.8, 33.0),
        (0.8 * _SMALLEST, 0.6),
        "members K",
        "risk",
        legend,
        log=True,
        ticks=(2, 3, 5, 10, 30),
    )
    for axes, hetero in zip(frames, degrees, strict=True):
        here = [row for row in rows if row["hetero"] == hetero]
        for place, name in enumerate(variances):
            colour, dash = style_of(place)
            members, risks = [row["K"] for row in here], [max(row[name], _SMALLEST) for row in here]
            axes.curve(members, risks, colour, 1.8, dash=dash)
            for count, risk in zip(members, risks, strict=True):
                axes.mark(count, risk, colour, radius=2.6)
    frames[0].drawing.words = "Risk against the number of members, by where the variance comes from."
    return frames[0].drawing


def _frontier(rows: Rows) -> Drawing:
    degrees, reward_sd = sorted({row["hetero"] for row in rows}), min(row["reward_sd"] for row in rows)
    shown = [row for row in rows if row["reward_sd"] == reward_sd]
    methods = list(dict.fromkeys(row["method"] for row in shown))
    legend = [(NAMES[method], *style_of(place)) for place, method in enumerate(methods)]
    risk, gain = (padded([row[name] for row in shown]) for name in ("risk", "gain"))
    frames = panels([_degree(hetero) for hetero in degrees], risk, gain, "risk", "mean gain", legend, height=260)
    for axes, hetero in zip(frames, degrees, strict=True):
        for place, method in enumerate(methods):
            here = [row for row in shown if (row["hetero"], row["method"]) == (hetero, method)]
            colour, dash = style_of(place)
            axes.curve([row["risk"] for row in here], [row["gain"] for row in here], colour, 1.5, dash=dash)
            for row in here:
                axes.mark(row["risk"], row["gain"], colour, radius=2.6)
    frames[0].drawing.words = "Mean gain against risk of every objective, one point for each KL budget."
    return frames[0].drawing


def _correlated(rows: Rows) -> Drawing:
    kinds = list(dict.fromkeys(row["kind"] for row in rows))
    methods = {"vanilla": "vanilla", "variance_aware": "variance-aware", "full_covariance": "knows Σ"}
    legend = [(label, *style_of(place)) for place, label in enumerate(methods.values())]
    titles = [f"shared error: {kind.replace('_', ' ')}" for kind in kinds]
    frames = panels(titles, (0.0, 1.0), (0.0, 0.42), "share ρ of the variance", "mean risk", legend)
    for axes, kind in zip(frames, kinds, strict=True):
        here = [row for row in rows if (row["kind"], row["hetero"]) == (kind, 0.5)]
        for place, name in enumerate(methods):
            colour, dash = style_of(place)
            axes.curve([row["correlation"] for row in here], [row[name] for row in here], colour, 1.8, dash=dash)
            for row in here:
                axes.mark(row["correlation"], row[name], colour, radius=2.6)
    worst = max(row["variance_aware"] - row["vanilla"] for row in rows)
    frames[0].drawing.words = listed(
        "Mean risk when errors are correlated", [f"weighting at most {number(worst, 3)} above vanilla"]
    )
    return frames[0].drawing


def _degree(hetero: float) -> str:
    return "equal variances" if hetero == 0 else f"unequal by {hetero:g}"
