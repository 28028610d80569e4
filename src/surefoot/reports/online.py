"""Print the rounds of `surefoot online` in the terminal, and write them as an HTML page."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from surefoot.files import write_text
from surefoot.reports.axes import padded
from surefoot.reports.drawing import Drawing, style_of
from surefoot.reports.figures import drawn, frame, listed
from surefoot.reports.html import render
from surefoot.reports.wording import counted, interval_of, number, percent, percent_interval

__all__ = ["build_online", "online_figure", "online_words", "print_online"]

_HEADINGS = (
    *("labels", "accuracy [95%]", "ln p(label)", "variance", "reliability", "flip rate"),
    *("agreement", "rule", "round"),
)
_IN_A_TERMINAL = 6
"""Columns that fit into eighty characters."""


def build_online(path: str | Path, online: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Write the page of the rounds so far to `path`; it loads nothing from elsewhere.

    Args:
        online: what `run_online` returned, or online.json; at least one round is finished.
    """
    page = render(
        "online.html.j2",
        title="Rounds of labels",
        words=online_words(online),
        figure=drawn(online_figure(online["rounds"])),
        table=("Every round", _HEADINGS, [_cells(row) for row in online["rounds"]]),
        settings=sorted((name, value) for name, value in settings.items() if value is not None),
    )
    return write_text(path, page)


def print_online(console: Console, online: dict[str, Any]) -> None:
    """The rounds as a table; then what is waited for, and how to go on."""
    if online["rounds"]:
        table = Table(title="held-out pairs after each round", title_justify="left")
        for heading in _HEADINGS[:_IN_A_TERMINAL]:
            table.add_column(heading, justify="right")
        for row in online["rounds"]:
            table.add_row(*_cells(row)[:_IN_A_TERMINAL])
        console.print(table)
    for line in online_words(online):
        console.print(line, soft_wrap=True, markup=False)


def online_words(online: dict[str, Any]) -> list[str]:
    """What has been done and what is waited for, one sentence each."""
    rounds, waiting = online["rounds"], online["waiting"]
    lines = [f"{len(rounds)} of {online['rounds_wanted']} rounds are finished."]
    if waiting is not None:
        pairs, answers = (shlex.quote(waiting[name]) for name in ("pairs", "answers"))
        lines.append(
            f"Round {waiting['round']} waits for {counted(waiting['missing'], 'answer')}. Label with: surefoot label "
            f"--dataset_name {pairs} --output {answers}"
        )
        lines.append("Then run the same command again.")
    return lines


def online_figure(rounds: list[dict[str, Any]]) -> Drawing:
    """Held-out accuracy with its interval against the number of labels."""
    labels = [float(row["start_pairs"] + row["labels"]) for row in rounds]
    accuracy = [interval_of(row["accuracy"]) for row in rounds]
    colour, _ = style_of(0)
    span = padded([end for each in accuracy for end in (each.low, each.high)])
    axes = frame((0.0, 1.05 * max(labels)), span, "labelled pairs", "held-out accuracy", height=206)
    for x, each in zip(labels, accuracy, strict=True):
        axes.error_bar(x, each.low, each.high, colour)
        axes.mark(x, each.value, colour)
    axes.curve(labels, [each.value for each in accuracy], colour, 2.4)
    ends = [f"{x:,.0f} labels {number(each.value)}" for x, each in zip(labels, accuracy, strict=True)]
    axes.drawing.words = listed("Held-out accuracy against labelled pairs", ends)
    return axes.drawing


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    alpha = row["answers"]["alpha"]["nominal"]
    return (
        f"{row['start_pairs'] + row['labels']:,}",
        percent_interval(interval_of(row["accuracy"])),
        number(row["log_likelihood"], 3),
        *(_known(value, number) for value in (row["margin_variance"], row["reliability"])),
        _known(row["flip_rate"], percent),
        _known(alpha, number),
        row["rule"].replace("_", "-"),
        str(row["round"]),
    )


def _known(value: float | None, shown: Callable[[float], str]) -> str:
    return "unknown" if value is None else shown(value)
