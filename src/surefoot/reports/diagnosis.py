"""Print a diagnosis in the terminal, and write it as an HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markupsafe import Markup
from rich.console import Console
from rich.table import Table

from surefoot.files import write_text
from surefoot.reports.diagnosis_figures import (
    accuracy_figure,
    calibration_figure,
    coverage_figure,
    far_figure,
    spread_figure,
)
from surefoot.reports.figures import drawn
from surefoot.reports.html import render
from surefoot.reports.panel import panel_tables
from surefoot.reports.wording import interval, interval_of, number, percent, significant

__all__ = ["build_diagnosis", "diagnosis_tables", "print_diagnosis"]

Row = tuple[str, ...]
_SHOWN_TEXT = 1200
"""Characters of an example's text that the page shows."""


def build_diagnosis(path: str | Path, diagnosis: dict[str, Any], settings: dict[str, Any]) -> Path:
    """Write the page of one source to `path`; it loads nothing from elsewhere.

    Args:
        diagnosis: the result of `surefoot.diagnosis.diagnose`, or diagnose.json.
    """
    page = render(
        "diagnosis.html.j2",
        title="How far can this reward be trusted?",
        diagnosis=diagnosis,
        tables=diagnosis_tables(diagnosis),
        figures=_figures(diagnosis),
        examples=[_example(each) for each in diagnosis["examples"]],
        data=diagnosis.get("data"),  # which files of earlier versions lack
        rules=[(name.replace("_", " "), rule) for name, rule in diagnosis["rules"].items()],
        settings=sorted((name, value) for name, value in settings.items() if value is not None),
    )
    return write_text(path, page)


def print_diagnosis(console: Console, diagnosis: dict[str, Any]) -> None:
    """Which pairs these are, the tables, and the verdict in plain words."""
    for line in _on_data(diagnosis):
        console.print(line, soft_wrap=True)
    for title, headings, rows in diagnosis_tables(diagnosis).values():
        table = Table(title=title, title_justify="left")
        for place, heading in enumerate(headings):
            table.add_column(heading, justify="right" if place else "left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for line in diagnosis["verdict"]["lines"]:
        console.print(f"- {line}")
    for line in diagnosis["verdict"]["advice"]:
        console.print(f"→ {line}")


def _on_data(diagnosis: dict[str, Any]) -> list[str]:
    data = diagnosis.get("data")
    return [] if data is None else [*([data["warning"]] if data["warning"] else []), *data["lines"]]


def diagnosis_tables(diagnosis: dict[str, Any]) -> dict[str, tuple[str, Row, list[Row]]]:
    """Title, headings and rows of each section that the source has."""
    tables: dict[str, tuple[str, Row, list[Row]]] = {
        "accuracy": ("Accuracy", ("", "share right [95% interval]"), _accuracy(diagnosis)),
        "subsets": (
            "By subset",
            ("subset", "pairs", "mean", "one member", "members split"),
            _subsets(diagnosis["accuracy"]["subsets"]),
        ),
        "benchmark": ("As the benchmark counts", ("", "score"), _benchmark(diagnosis["accuracy"]["benchmark"])),
        "card": ("Compared with the source's card", ("", "card", "here", "known reasons"), _card(diagnosis)),
        "disagreement": ("Disagreement of the members", ("", "figure"), _disagreement(diagnosis["disagreement"])),
        **panel_tables(diagnosis.get("panel")),
        "calibration": (
            "Calibration of the margins",
            ("probability of a label", "NLL", "Brier", "ECE, 10 bins of equal mass"),
            _calibration(diagnosis["calibration"]),
        ),
        "heterogeneity": (
            "Differences of the variance between completions",
            ("", "figure"),
            _heterogeneity(diagnosis),
        ),
        "usefulness": (
            "Prediction of the mean's mistakes",
            ("ranked by", "AUROC [95%]", "above −|margin|", "area under risk–coverage"),
            _usefulness(diagnosis["usefulness"]),
        ),
        "far": (
            "Far from the data",
            ("far text", "AUROC of the variance [95%]", "mean reward, in sd", "scored above the real reply"),
            [
                (each["label"], _i(each["auroc"]), number(_n(each["mean"])), _i(each["preferred"]))
                for each in diagnosis["far"].values()
            ],
        ),
        "style": (
            "Length and style: Spearman's ρ",
            ("", "with the reward, within a prompt", "with the variance"),
            [
                (name, _i(each["reward"]), _i(each["variance"]))
                for name, each in diagnosis["style"].items()
                if each["reward"]["value"] is not None or each["variance"]["value"] is not None
            ],
        ),
    }
    return {name: table for name, table in tables.items() if table[2]}


def _accuracy(diagnosis: dict[str, Any]) -> list[Row]:
    accuracy = diagnosis["accuracy"]
    rows: list[Row] = [
        (f"the mean, {diagnosis['pairs']} pairs of {diagnosis['items']} items", _i(accuracy["overall"]))
    ]
    if diagnosis["members"] is not None:
        rows += [(f"member {k}", _i(each)) for k, each in enumerate(accuracy["members"])]
    if diagnosis["unscored_pairs"]:
        rows.append(("pairs that could not be scored", str(diagnosis["unscored_pairs"])))
    return rows


def _card(diagnosis: dict[str, Any]) -> list[Row]:
    return [
        (row["figure"], significant(row["card"], 3), significant(_n(row["here"]), 3), "; ".join(row["why"]))
        for row in diagnosis.get("card", [])
    ]


def _subsets(subsets: dict[str, Any]) -> list[Row]:
    return [
        (
            name,
            str(subset["mean"]["n"]),
            _i(subset["mean"]),
            number(_n(subset["members"]), 3),
            _percent(subset["split"]),
        )
        for name, subset in subsets.items()
    ]


def _benchmark(scores: dict[str, Any] | None) -> list[Row]:
    if scores is None:
        return []
    sections = [
        (name, _i(score) if isinstance(score, dict) else number(_n(score), 3)) for name, score in _sections(scores)
    ]
    rows: list[Row] = [*sections, ("overall", number(_n(scores["score"]), 3))]
    if scores["missing"]:
        rows.append(
            (f"not the leaderboard's: {len(scores['missing'])} subsets are missing", ", ".join(scores["missing"][:4]))
        )
    if scores["unscored"]:
        rows.append(("items left out, a completion unscored", str(scores["unscored"])))
    return rows


def _sections(scores: dict[str, Any]) -> list[tuple[str, Any]]:
    return list((scores.get("sections") or scores["subsets"]).items())


def _disagreement(figures: dict[str, Any] | None) -> list[Row]:
    if figures is None:
        return []
    low, middle, high = figures["margin_sd"]
    freedom = figures["prior_freedom"]
    return [
        ("pairs on whose winner the members don't agree", _i(figures["split"])),
        ("members on the losing side of those", number(_n(figures["minority"]))),
        ("agreement of two members", number(_n(figures["agreement"]), 3)),
        ("Kendall's τ of two members' margins", number(_n(figures["tau"]), 3)),
        (
            f"effective number of independent members, of {figures['members']}",
            number(_n(figures["effective_members"])),
        ),
        ("share of the raw variance that is one constant per member", _percent(figures["offset_overall"])),
        ("share of it that is a constant per member and prompt", _percent(figures["offset_per_prompt"])),
        ("share of the margins' variance that is the members' scale", _percent(figures["scale_share"])),
        (
            "standard deviation of the margin, 10 / 50 / 90% quantile",
            " / ".join(significant(_n(each)) for each in (low, middle, high)),
        ),
        ("d₀ of the margins' variance", "infinite" if freedom is None else number(freedom, 1)),
        ("coefficient of variation of the margins' variance", number(_n(figures["variance_cv"]))),
    ]


def _calibration(figures: dict[str, Any]) -> list[Row]:
    ways = {
        "mean": "mean margin alone",
        "members": "members' probabilities, averaged",
        "variance": "with the variance as it is",
        "fitted": "with the variance, factor from the other half",
    }
    rows: list[Row] = [
        (name, _i(figures[key]["nll"]), _i(figures[key]["brier"]), number(_n(figures[key]["ece"]), 3))
        for key, name in ways.items()
        if figures[key] is not None
    ]
    if figures["nll_of_members"]:
        average = sum(figures["nll_of_members"]) / len(figures["nll_of_members"])
        rows.append(("one member (mean of their NLL)", number(average, 3), "", ""))
    return [*rows, ("factor that fits all pairs", significant(figures["factor"]), "", "")]


def _heterogeneity(diagnosis: dict[str, Any]) -> list[Row]:
    figures = diagnosis["heterogeneity"]
    freedom = "none: not an ensemble's own variance" if not figures["has_prior"] else "infinite"
    rows: list[Row] = [
        ("completions", str(figures["completions"])),
        ("subtracted before the variance is taken", _anchors(figures["anchors"])),
        ("reliability of the variance (1 at most; below 0.6 mostly noise)",
         "unknown" if figures["reliability"] is None else number(figures["reliability"])),
        ("prior degrees of freedom d₀ (infinite: no difference)",
         freedom if figures["prior_freedom"] is None else number(figures["prior_freedom"], 1)),
        ("coefficient of variation of the weights", number(_n(figures["variation"]))),
        ("within a prompt", number(_n(figures["variation_within"]))),
        ("over prompts", number(_n(figures["variation_between"]))),
        ("weights at the floor / at the ceiling",
         f"{percent(figures['at_floor'], 1)} / {percent(figures['at_ceiling'], 1)}"),
        ("effective sample size of the weights", _percent(figures["effective_share"])),
    ]  # fmt: skip
    if diagnosis["known_truth"] is None:
        return rows
    truth = diagnosis["known_truth"]
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
    return ", ".join(f"{_ANCHORS[kind]} ({percent(share)})" for kind, share in shares.items())


def _usefulness(figures: dict[str, Any]) -> list[Row]:
    named = {"sd_over_margin": "sd over |margin|", "variance": "variance", "margin": "−|margin|, the baseline"}
    rows: list[Row] = [
        (
            name,
            _i(figures["auroc"][key]),
            _i(figures["above_baseline"][key]) if key in figures["above_baseline"] else "",
            number(_n(figures["coverage"][key]["area"]), 3),
        )
        for key, name in named.items()
    ]
    best = number(_n(figures["best_area"]), 3)
    return [*rows, ("chance / best possible", "0.5 / 1", "", f"{number(_n(figures['random_area']), 3)} / {best}")]


def _figures(diagnosis: dict[str, Any]) -> dict[str, Markup]:
    drawings = {
        "accuracy": accuracy_figure(diagnosis),
        "usefulness": coverage_figure(diagnosis),
        "calibration": calibration_figure(diagnosis),
    }
    if diagnosis["disagreement"] is not None:
        drawings["disagreement"] = spread_figure(diagnosis)
    if diagnosis["far"]:
        drawings["far"] = far_figure(diagnosis)
    return {name: drawn(drawing) for name, drawing in drawings.items()}


def _example(example: dict[str, Any]) -> dict[str, Any]:
    margins = " ".join(significant(value) for value in example["members"])
    sides = (("prompt", example["prompt"]), ("chosen", example["chosen"]), ("rejected", example["rejected"]))
    return {
        "figures": f"margin {significant(example['margin'])}, sd {significant(example['sd'])}"
        + (f"; members {margins}" * bool(margins)),
        "sides": [(name, _cut(text, tail=name == "prompt")) for name, text in sides],
    }


def _cut(text: str, *, tail: bool) -> str:
    if len(text) <= _SHOWN_TEXT:
        return text
    return "… " + text[-_SHOWN_TEXT:] if tail else text[:_SHOWN_TEXT] + " …"


def _n(value: float | None) -> float:
    return float("nan") if value is None else value


def _i(figure: dict[str, Any]) -> str:
    return interval(interval_of(figure), 3)


def _percent(value: float | None) -> str:
    return percent(value)
