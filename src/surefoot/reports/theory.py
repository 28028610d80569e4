"""The tables of `surefoot theory` for the terminal, and sentences that sum them up."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table

from surefoot.reports.records import LABELS
from surefoot.reports.wording import number

__all__ = ["NAMES", "theory_tables", "theory_words"]

NAMES = LABELS | {"vanilla": "vanilla", "variance_aware_known": "variance known"}
"""Names of the methods here, where "vanilla" need not be a model."""

Rows = list[dict[str, Any]]


def theory_tables(record: dict[str, Any]) -> list[Table]:
    """One table for each of the five questions, from the record of `run_theory`."""
    return [
        _closed_form(record["closed_form"]),
        _theorem(record["theorem_by_kind"]),
        _estimated(record["estimated_variance"], record["smallest_members"]),
        _frontier(record["frontier"]),
        _correlated(record["correlated"]),
    ]


def theory_words(record: dict[str, Any]) -> list[str]:
    """What the tables show, in sentences, including where the guarantee stops holding."""
    total, losses = (
        record["theorem"],
        [row for row in record["pessimism"] if row["larger_gain"] or row["smaller_risk"]],
    )
    gains, risks = (sum(bool(row[name]) for row in losses) for name in ("larger_gain", "smaller_risk"))
    settings = len(record["pessimism"])
    worse = max(record["correlated"], key=lambda row: float(row["worse"]))
    return [
        f"Theorem: in {total['problems']:,} random problems the variance-aware risk was above the vanilla one in "
        f"{total['violations']} (largest excess {total['largest_excess']:.0e}).",
        f"Frontier: at equal KL some other objective had a larger mean gain than variance weighting in {gains} of "
        f"{settings} settings, and a smaller risk in {risks} (two paired standard errors). A pessimistic mean wins "
        "where variances differ strongly and the budget is large; weighting wins near the reference.",
        f"Correlated errors: the theorem needs a diagonal Σ. At a shared source of {worse['correlation']:.0%} of the "
        f"variance ('{worse['kind']}'), weighting was riskier than vanilla in {worse['worse']:.0%} of problems.",
    ]


def _table(title: str, words: tuple[str, ...], figures: tuple[str, ...]) -> Table:
    """A table whose first columns are words, on the left, and whose others are figures, on the right."""
    table = Table(title=title, box=SIMPLE_HEAD, title_justify="left", pad_edge=False)
    for heading in words:
        table.add_column(heading, no_wrap=True)
    for heading in figures:
        table.add_column(heading, justify="right")
    return table


def _closed_form(rows: Rows) -> Table:
    table = _table(
        "1. risk in closed form against simulation (most |z|: the largest of so many normal draws)",
        ("unequal", "method"), ("problems", "closed form", "simulated", "± of one", "most |z|"),
    )  # fmt: skip
    for hetero in sorted({row["hetero"] for row in rows}):
        for method in ("vanilla", "variance_aware"):
            here = [row for row in rows if (row["hetero"], row["method"]) == (hetero, method)]
            mean = {name: sum(row[name] for row in here) / len(here) for name in ("closed", "simulated", "error")}
            z = max(abs(row["closed"] - row["simulated"]) / row["error"] for row in here)
            figures = (number(mean[name], 4) for name in ("closed", "simulated", "error"))
            table.add_row(f"{hetero:g}", NAMES[method], str(len(here)), *figures, number(z, 1))
    return table


def _theorem(rows: Rows) -> Table:
    table = _table(
        "2. the theorem: variance-aware risk ≤ vanilla risk",
        ("true rewards",), ("problems", "violations", "median risk, vanilla", "variance-aware"),
    )  # fmt: skip
    for kind in sorted({row["kind"] for row in rows}):
        here = [row for row in rows if row["kind"] == kind]
        middle = [
            number(sum(row[name] for row in here) / len(here), 3)
            for name in ("median_vanilla_risk", "median_variance_aware_risk")
        ]
        counts = [f"{sum(row[name] for row in here):,}" for name in ("problems", "violations")]
        table.add_row(kind.replace("_", " "), *counts, *middle)
    return table


def _estimated(rows: Rows, smallest: Rows) -> Table:
    table = _table(
        "3. risk when the variance comes from the same K members",
        ("unequal", "K"), ("ignored", "raw", "moderated", "known", "± (ignored)"),
    )  # fmt: skip
    for row in rows:
        figures = [number(row[name], 3) for name in ("ignored", "raw", "moderated", "known", "ignored_error")]
        table.add_row(f"{row['hetero']:g}", str(row["K"]), *figures)
    for row in smallest:
        counts = ["none" if row[name] is None else str(row[name]) for name in ("raw", "moderated", "known")]
        table.add_row(f"{row['hetero']:g}", "better from", "", *counts, "")
    return table


def _frontier(rows: Rows) -> Table:
    reward_sd, kl = min(row["reward_sd"] for row in rows), 1.0
    table = _table(
        f"4. at a KL of {kl:g} nat, true rewards with sd {reward_sd:g} (theory.json has all)",
        ("unequal", "method"), ("risk", "spread", "gain", "±", "promised too much"),
    )  # fmt: skip
    for row in rows:
        if (row["reward_sd"], row["kl"]) == (reward_sd, kl):
            figures = [number(row[name], 3) for name in ("risk", "spread", "gain", "gain_error", "over_optimisation")]
            table.add_row(f"{row['hetero']:g}", NAMES[row["method"]], *figures)
    return table


def _correlated(rows: Rows) -> Table:
    table = _table(
        "5. mean risk when errors are correlated and the method takes Σ to be diagonal",
        ("shared error", "unequal", "ρ"), ("vanilla", "variance-aware", "knows Σ", "worse in"),
    )  # fmt: skip
    for row in rows:
        figures = [number(row[name], 3) for name in ("vanilla", "variance_aware", "full_covariance")]
        words = (row["kind"].replace("_", " "), f"{row['hetero']:g}", f"{row['correlation']:g}")
        table.add_row(*words, *figures, f"{row['worse']:.0%}")
    return table
