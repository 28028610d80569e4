"""Figures and tables of `labels.py`, made of its finished runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from surefoot.reports.axes import padded
from surefoot.reports.drawing import Drawing, style_of
from surefoot.reports.figures import panels

__all__ = ["accuracy_figure", "of_setting", "show"]

RESAMPLES = 4000


def of_setting(name: str, runs: dict[str, list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """One row for each rule and budget, and for each rule the labels that it needs."""
    budgets = np.array([row["labels"] for row in runs["random"][0]["rounds"]], dtype=float)
    rng = np.random.default_rng(0)
    picks = rng.integers(0, len(runs["random"]), (RESAMPLES, len(runs["random"])))
    measures = [measure for measure in runs["random"][0]["rounds"][0] if measure != "labels"]
    values = {
        rule: {m: np.array([[row[m] for row in one["rounds"]] for one in own]) for m in measures}
        for rule, own in runs.items()
    }
    rows = []
    for rule, own in values.items():
        needed = labels_needed(own["accuracy"], values["random"]["accuracy"], budgets, picks)
        at = []
        for place, budget in enumerate(budgets):
            figures = {m: interval(own[m][:, place], picks) for m in measures}
            over = {m: interval(own[m][:, place] - values["random"][m][:, place], picks) for m in measures}
            at.append({"labels": int(budget), "figures": figures, "over_random": over})
        area = {m: interval((own[m] - values["random"][m]).mean(axis=1), picks) for m in measures}
        row = {"setting": name, "rule": rule, "n": len(picks[0]), "needed": needed, "mean_over_random": area}
        noise = [one["noise"] for one in runs[rule]]
        rows.append({**row, "budgets": at, "noise": None if None in noise else of_noise(noise, own, picks)})
    return rows


def of_noise(noise: list[dict[str, Any]], own: dict[str, np.ndarray], picks: np.ndarray) -> dict[str, Any]:
    """The estimated flip rate, and what estimating it changed with the last labels."""
    over = {m: np.array([one[m] for one in noise]) - own[m][:, -1] for m in ("accuracy", "loss", "gain_plain")}
    rates = np.array([one["flip_rate"] for one in noise])
    return {"flip_rate": interval(rates, picks), "over_none": {m: interval(v, picks) for m, v in over.items()}}


def interval(values: np.ndarray, picks: np.ndarray) -> dict[str, float]:
    low, high = np.quantile(values[picks].mean(axis=1), [0.025, 0.975])
    found = {"value": values.mean(), "low": low, "high": high}
    return {name: round(float(value), 5) for name, value in found.items()}


def labels_needed(own: np.ndarray, random: np.ndarray, budgets: np.ndarray, picks: np.ndarray) -> dict[str, Any]:
    """Labels at which the rule's mean accuracy first reaches random's last, and their share of random's own.

    What lies beyond all budgets is None.
    """
    labels, shares = [], []
    for some in (np.arange(len(own)), *picks):
        target = float(random[some, -1].mean())
        labels.append(reached(own[some].mean(axis=0), target, budgets))
        shares.append(labels[-1] / reached(random[some].mean(axis=0), target, budgets))
    return {
        "of": int(budgets[-1]),
        **dict(zip(("value", "low", "high"), bounds(labels), strict=True)),
        "share": dict(zip(("value", "low", "high"), bounds(shares), strict=True)),
    }


def bounds(values: list[float]) -> list[float | None]:
    """The first value, and the 95% interval of the others."""
    low, high = np.quantile(values[1:], [0.025, 0.975], method="nearest")
    return [round(float(value), 3) if math.isfinite(value) else None for value in (values[0], low, high)]


def reached(accuracy: np.ndarray, target: float, budgets: np.ndarray) -> float:
    """Where a curve first reaches the target, linear between budgets; infinite if it doesn't."""
    above = np.flatnonzero(accuracy >= target - 1e-12)
    if len(above) == 0:
        return math.inf
    place = int(above[0])
    if place == 0:
        return float(budgets[0])
    share = (target - accuracy[place - 1]) / (accuracy[place] - accuracy[place - 1])
    return float(budgets[place - 1] + share * (budgets[place] - budgets[place - 1]))


Row = dict[str, Any]


def show(rows: list[Row]) -> None:
    """All tables as Markdown: a rule in each line, a setting in each column."""
    print("\nWhat random reaches with its last labels")
    heads = ("setting", "N", "labels", "accuracy", "gain, plain", "gain, pessimistic", "prompt risk, plain")
    lines(heads, [of_random(row) for row in rows if row["rule"] == "random"])
    by_setting("Labels needed for the accuracy that random reaches with its last", rows, told_labels)
    by_setting("Their share of random's own", rows, lambda row: ranged(row["needed"]["share"], "{:.2f}"))
    for measure, title, form in (
        ("accuracy", "Accuracy over random's, mean over budgets, in percentage points", "{:+.1f}"),
        ("gain_plain", "Gain over random's, plain, mean over budgets", "{:+.2f}"),
        ("gain_pessimistic", "Gain over random's, pessimistic, mean over budgets", "{:+.2f}"),
        ("prompt_risk_plain", "Prompt risk over random's, plain, mean over budgets, in percentage points", "{:+.1f}"),
    ):
        by_setting(title, rows, lambda row, m=measure, f=form: ranged(scaled(row["mean_over_random"][m], m), f))
    print("\nSettings in which a rule's accuracy, and its plain gain, lie above and below random's")
    lines(("rule", "accuracy above", "below", "gain above", "below"), verdicts(rows))
    print("\nFlip rate, estimated with random's last labels, and what that changes")
    heads = ("setting", "flip rate", "accuracy, points", "loss, nats", "gain, plain")
    lines(heads, [of_estimate(row) for row in rows if row["noise"]])


def lines(heads: tuple[str, ...], cells: list[list[str]]) -> None:
    print("| " + " | ".join(heads) + " |\n|" + "---|" * len(heads))
    for row in cells:
        print("| " + " | ".join(row) + " |")


def by_setting(title: str, rows: list[Row], cell: Callable[[Row], str]) -> None:
    print(f"\n{title}")
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows if row["rule"] != "random"))
    held = {(row["rule"], row["setting"]): row for row in rows}
    lines(("rule", *settings), [[rule, *(cell(held[rule, setting]) for setting in settings)] for rule in rules])


def of_random(row: Row) -> list[str]:
    at = row["budgets"][-1]
    figures = at["figures"]
    told = [ranged(scaled(figures["accuracy"], "accuracy"), "{:.1f}%")]
    told += [ranged(figures[m], "{:.2f}") for m in ("gain_plain", "gain_pessimistic")]
    told += [ranged(scaled(figures["prompt_risk_plain"], "prompt_risk_plain"), "{:.0f}%")]
    return [row["setting"], str(row["n"]), f"{at['labels']:,}", *told]


def of_estimate(row: Row) -> list[str]:
    over = row["noise"]["over_none"]
    cells = [ranged(row["noise"]["flip_rate"], "{:.2f}"), ranged(scaled(over["accuracy"], "accuracy"), "{:+.1f}")]
    return [row["setting"], *cells, ranged(over["loss"], "{:+.4f}"), ranged(over["gain_plain"], "{:+.2f}")]


def verdicts(rows: list[Row]) -> list[list[str]]:
    cells = []
    for rule in dict.fromkeys(row["rule"] for row in rows if row["rule"] != "random"):
        own = [row["mean_over_random"] for row in rows if row["rule"] == rule]
        counts = [
            (sum(one[m]["low"] > 0 for one in own), sum(one[m]["high"] < 0 for one in own))
            for m in ("accuracy", "gain_plain")
        ]
        cells.append([rule, *(str(count) for pair in counts for count in pair)])
    return cells


def told_labels(row: Row) -> str:
    needed = row["needed"]
    ends = [f"> {needed['of']:,}" if needed[k] is None else f"{needed[k]:,.0f}" for k in ("value", "low", "high")]
    return f"{ends[0]} [{ends[1]}, {ends[2]}]"


def scaled(figure: dict[str, float], measure: str) -> dict[str, float]:
    """Shares in percent."""
    factor = 100 if measure.startswith(("accuracy", "prompt_risk")) else 1
    return {name: factor * value for name, value in figure.items()}


def ranged(figure: dict[str, float | None], form: str) -> str:
    value, low, high = (shown(figure[k], form) for k in ("value", "low", "high"))
    return f"{value} [{low}, {high}]"


def shown(value: float | None, form: str) -> str:
    """A number without a sign where it rounds to 0."""
    if value is None:
        return "> all"
    text = form.format(value).replace("-", "−")
    return text if any(digit in text for digit in "123456789") else text.lstrip("+−")


def accuracy_figure(rows: list[Row]) -> Drawing:
    """Accuracy over random's against labels, a panel for each setting."""
    settings = list(dict.fromkeys(row["setting"] for row in rows))
    rules = list(dict.fromkeys(row["rule"] for row in rows if row["rule"] != "random"))
    curves = {
        (row["setting"], row["rule"]): [
            (at["labels"], 100 * at["over_random"]["accuracy"]["value"]) for at in row["budgets"]
        ]
        for row in rows
    }
    span = padded([y for points in curves.values() for _, y in points], include=0.0)
    legend = [(rule.replace("_", "-"), *style_of(place)) for place, rule in enumerate(rules)]
    most = max(x for points in curves.values() for x, _ in points)
    label = "accuracy over random's, points"
    frames = panels(settings, (0.0, 1.05 * most), span, "labels", label, legend, ticks=[0, 1000, 2000])
    for setting, axes in zip(settings, frames, strict=True):
        axes.level(0.0)
        for place, rule in enumerate(rules):
            colour, dash = style_of(place)
            axes.curve(*zip(*curves[setting, rule], strict=True), colour, 2.0, dash=dash)
    drawing = frames[0].drawing
    drawing.words = f"Held-out accuracy over that of random choice against labels: {', '.join(settings)}"
    return drawing
