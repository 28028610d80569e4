"""A diagnosis for the terminal and as a page of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from surefoot.files import write_text
from surefoot.metrics.intervals import Interval
from surefoot.reports.diagnosis_figures import (
    accuracy_figure,
    calibration_figure,
    coverage_figure,
    far_figure,
    spread_figure,
)
from surefoot.reports.figures import drawn
from surefoot.reports.html import render
from surefoot.reports.wording import interval, number

__all__ = ["build_diagnosis", "diagnosis_tables", "print_diagnosis"]

Row = tuple[str, ...]
_SHOWN_TEXT = 1200
"""Characters of an example's text that the page shows."""


def build_diagnosis(path: str | Path, found: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Write the page of one source to `path`, whole; it needs nothing from outside.

    Args:
        found: what `surefoot.diagnosis.diagnose` gave, or diagnose.json.
    """
    page = render(
        "diagnosis.html.j2",
        title="How far can this reward be trusted?",
        found=found,
        tables=diagnosis_tables(found),
        figures=_figures(found),
        examples=[_example(one) for one in found["examples"]],
        settings=sorted((name, value) for name, value in settings.items() if value is not None),
    )
    return write_text(path, page)


def print_diagnosis(console: Console, found: dict[str, Any]) -> None:
    """The tables, then the verdict in plain words."""
    for title, headings, rows in diagnosis_tables(found).values():
        table = Table(title=title, title_justify="left")
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in found["verdict"]["lines"]:
        console.print(f"- {line}")
    for line in found["verdict"]["advice"]:
        console.print(f"→ {line}")


def diagnosis_tables(found: dict[str, Any]) -> dict[str, tuple[str, Row, list[Row]]]:
    """Title, headings and rows of each section that the source has."""
    tables: dict[str, tuple[str, Row, list[Row]]] = {
        "accuracy": ("Accuracy", ("", "share right [95%]"), _accuracy(found)),
        "subsets": (
            "By subset",
            ("subset", "pairs", "mean", "one member", "members split"),
            _subsets(found["accuracy"]["subsets"]),
        ),
        "benchmark": ("As the benchmark counts", ("", "score"), _benchmark(found["accuracy"]["benchmark"])),
        "disagreement": ("Disagreement of the members", ("", "figure"), _disagreement(found["disagreement"])),
        "calibration": (
            "Calibration of the margins",
            ("probability of a label", "NLL", "Brier", "ECE, 10 bins of equal mass"),
            _calibration(found["calibration"]),
        ),
        "heterogeneity": ("Does the variance differ?", ("", "figure"), _heterogeneity(found)),
        "usefulness": (
            "Does it tell mistakes?",
            ("ranked by", "AUROC [95%]", "above −|margin|", "area under risk–coverage"),
            _usefulness(found["usefulness"]),
        ),
        "far": (
            "Far from the data",
            ("far text", "AUROC of the variance [95%]", "mean reward, in sd", "scored above the real reply"),
            [
                (one["label"], _i(one["auroc"]), number(_n(one["mean"])), _i(one["preferred"]))
                for one in found["far"].values()
            ],
        ),
        "style": (
            "Length and style: Spearman's ρ",
            ("", "with the reward, within a prompt", "with the variance"),
            [
                (name, _i(one["reward"]), _i(one["variance"]))
                for name, one in found["style"].items()
                if one["reward"]["value"] is not None or one["variance"]["value"] is not None
            ],
        ),
    }
    return {name: table for name, table in tables.items() if table[2]}


def _accuracy(found: dict[str, Any]) -> list[Row]:
    accuracy = found["accuracy"]
    rows: list[Row] = [(f"the mean, {found['pairs']} pairs of {found['items']} items", _i(accuracy["overall"]))]
    if found["members"] is not None:
        rows += [(f"member {k}", _i(one)) for k, one in enumerate(accuracy["members"])]
    if found["unscored_pairs"]:
        rows.append(("pairs that could not be scored", str(found["unscored_pairs"])))
    return rows


def _subsets(found: dict[str, Any]) -> list[Row]:
    return [
        (name, str(one["mean"]["n"]), _i(one["mean"]), number(_n(one["members"]), 3), _percent(one["split"]))
        for name, one in found.items()
    ]


def _benchmark(found: dict[str, Any] | None) -> list[Row]:
    if found is None:
        return []
    sections = [(name, _i(one) if isinstance(one, dict) else number(_n(one), 3)) for name, one in _sections(found)]
    rows: list[Row] = [*sections, ("overall", number(_n(found["score"]), 3))]
    if found["missing"]:
        rows.append(
            (f"not the leaderboard's: {len(found['missing'])} subsets are missing", ", ".join(found["missing"][:4]))
        )
    if found["unscored"]:
        rows.append(("items left out, a completion unscored", str(found["unscored"])))
    return rows


def _sections(found: dict[str, Any]) -> list[tuple[str, Any]]:
    return list((found.get("sections") or found["subsets"]).items())


def _disagreement(found: dict[str, Any] | None) -> list[Row]:
    if found is None:
        return []
    low, middle, high = found["margin_sd"]
    freedom = found["prior_freedom"]
    return [
        ("pairs whose winner they don't agree on", _i(found["split"])),
        ("members on the losing side of those", number(_n(found["minority"]))),
        ("agreement of two members", number(_n(found["agreement"]), 3)),
        ("Kendall's τ of two members' margins", number(_n(found["tau"]), 3)),
        (f"effective number of independent members, of {found['members']}", number(_n(found["effective_members"]))),
        ("raw variance that is one offset per member", _percent(found["offset_overall"])),
        ("raw variance that is an offset per prompt", _percent(found["offset_per_prompt"])),
        ("margin variance that is the members' scale", _percent(found["scale_share"])),
        ("sd of the margin, 10 / 50 / 90%", f"{number(low)} / {number(middle)} / {number(high)}"),
        ("d₀ of the margins' variance", "infinite" if freedom is None else number(freedom, 1)),
        ("coefficient of variation of the margins' variance", number(_n(found["variance_cv"]))),
    ]


def _calibration(found: dict[str, Any]) -> list[Row]:
    ways = {
        "mean": "mean margin alone",
        "members": "members' probabilities, averaged",
        "variance": "with the variance as it is",
        "fitted": "with the variance, factor from the other half",
    }
    rows: list[Row] = [
        (name, _i(found[key]["nll"]), _i(found[key]["brier"]), number(_n(found[key]["ece"]), 3))
        for key, name in ways.items()
        if found[key] is not None
    ]
    if found["nll_of_members"]:
        average = sum(found["nll_of_members"]) / len(found["nll_of_members"])
        rows.append(("one member (mean of their NLL)", number(average, 3), "", ""))
    return [*rows, ("factor that fits all pairs", number(found["factor"]), "", "")]


def _heterogeneity(found: dict[str, Any]) -> list[Row]:
    one = found["heterogeneity"]
    freedom = "none: not an ensemble's own variance" if not one["has_prior"] else "infinite"
    rows: list[Row] = [
        ("completions", str(one["completions"])),
        ("what they are centred by", _anchors(one["anchors"])),
        ("reliability of the variance (1 at most; below 0.6 mostly noise)",
         "unknown" if one["reliability"] is None else number(one["reliability"])),
        ("prior degrees of freedom d₀ (infinite: no difference)",
         freedom if one["prior_freedom"] is None else number(one["prior_freedom"], 1)),
        ("coefficient of variation of the weights", number(_n(one["variation"]))),
        ("within a prompt", number(_n(one["variation_within"]))),
        ("over prompts", number(_n(one["variation_between"]))),
        ("weights at the floor / at the ceiling", f"{one['at_floor']:.1%} / {one['at_ceiling']:.1%}"),
        ("effective sample size of the weights", _percent(one["effective_share"])),
    ]  # fmt: skip
    if found["known_truth"] is None:
        return rows
    truth = found["known_truth"]
    return [
        *rows,
        ("known truth: correlation with the mean, within prompts", number(_n(truth["correlation"]))),
        ("known truth: variance against squared error, ρ", _i(truth["spearman"])),
    ]


_ANCHORS = {
    "reference": "the reference policy's completions",
    "dataset": "their prompt's own completions",
    "calibration": "the mean over all texts",
    "group": "their prompt's sampled completions",
}


def _anchors(shares: dict[str, float]) -> str:
    """The kinds of anchor, with their shares where there are several."""
    if not shares:
        return "nothing: the variance is given as it stands"
    if len(shares) == 1:
        return _ANCHORS[next(iter(shares))]
    return ", ".join(f"{_ANCHORS[kind]} ({share:.0%})" for kind, share in shares.items())


def _usefulness(found: dict[str, Any]) -> list[Row]:
    named = {"sd_over_margin": "sd over |margin|", "variance": "variance", "margin": "−|margin|, the baseline"}
    rows: list[Row] = [
        (
            name,
            _i(found["auroc"][key]),
            _i(found["above_baseline"][key]) if key in found["above_baseline"] else "",
            number(_n(found["coverage"][key]["area"]), 3),
        )
        for key, name in named.items()
    ]
    best = number(_n(found["best_area"]), 3)
    return [*rows, ("chance / best possible", "0.5 / 1", "", f"{number(_n(found['random_area']), 3)} / {best}")]


def _figures(found: dict[str, Any]) -> dict[str, Markup]:
    drawings = {
        "accuracy": accuracy_figure(found),
        "usefulness": coverage_figure(found),
        "calibration": calibration_figure(found),
    }
    if found["disagreement"] is not None:
        drawings["disagreement"] = spread_figure(found)
    if found["far"]:
        drawings["far"] = far_figure(found)
    return {name: drawn(drawing) for name, drawing in drawings.items()}


def _example(one: dict[str, Any]) -> dict[str, Any]:
    margins = " ".join(number(value) for value in one["members"])
    sides = (("prompt", one["prompt"]), ("chosen", one["chosen"]), ("rejected", one["rejected"]))
    return {
        "figures": f"margin {number(one['margin'])}, sd {number(one['sd'])}"
        + (f"; members {margins}" * bool(margins)),
        "sides": [(name, _cut(text, tail=name == "prompt")) for name, text in sides],
    }


def _cut(text: str, *, tail: bool) -> str:
    if len(text) <= _SHOWN_TEXT:
        return text
    return "… " + text[-_SHOWN_TEXT:] if tail else text[:_SHOWN_TEXT] + " …"


def _n(value: float | None) -> float:
    return float("nan") if value is None else value


def _i(found: dict[str, Any]) -> str:
    return interval(Interval(_n(found["value"]), _n(found["low"]), _n(found["high"]), found["n"]), 3)


def _percent(value: float | None) -> str:
    return number(value) if value is None else f"{value:.0%}"
