"""The model card of a reward source: what it is, what it was measured to be, and how to load it."""

from __future__ import annotations

import json
from collections.abc import Mapping

from surefoot.types import Calibration

__all__ = ["RELIABLE", "model_card", "one_line"]

_ASKED_WHERE = ', judge=JudgeAccess(endpoint="https://…/v1", key_variable="…")'
RELIABLE = 0.6
"""Reliability of a variance below which weights made of it are mostly noise."""


def model_card(
    kind: str,
    name: str,
    members: int | None,
    calibration: Calibration | None,
    repository: str,
    figures: Mapping[str, float | str] | None = None,
) -> str:
    """README.md of a saved source.

    Args:
        kind: as in `source.json`.
        members: K, or None for a source without members.
        repository: the name that `load_source` takes, in the example.
        figures: of the fit, as in `source.json`: of a linear source its penalty, covariance, shrinkage and what was
            left out.
    """
    alone = "an LLM judge" if kind == "judge" else "one reward model with a Gaussian or learnt variance"
    said = f"{members} members" if members else alone
    lines = [
        "---",
        "library_name: surefoot",
        "tags: [reward-model, uncertainty, preference-alignment]",
        "---",
        "",
        f"# {one_line(name)}",
        "",
        f"A surefoot reward source of kind `{kind}`: {said}. It gives every completion a reward and a variance.",
        "",
        "```python",
        "from surefoot import group_anchors, load_source",
        *(["from surefoot.rewards.kinds.judge.access import JudgeAccess"] if kind == "judge" else []),
        "",
        f"source = load_source({json.dumps(repository, ensure_ascii=False)}{_ASKED_WHERE if kind == 'judge' else ''})",
        "scores = source.score(prompts, completions)",
        "rewards = source.estimate(scores)  # .mean, .variance; centred by the calibration set",
        "# Better, if a prompt's completions are the reference policy's own: each prompt is centred by itself.",
        "rewards = source.estimate(scores, group_anchors(scores, groups))",
        "```",
        "",
        *_figures(calibration, figures or {}),
    ]
    return "\n".join(lines)


def _figures(calibration: Calibration | None, fit: Mapping[str, float | str]) -> list[str]:
    rows = _of_fit(fit)
    if calibration is None:
        said = ["Not calibrated yet: call `source.calibrate` before scoring lone completions."]
    else:
        rows, said = rows + _of_calibration(calibration), _of_variance(calibration)
    if float(fit.get("shrinkage", 0.0)) > 0.5:
        said.append(
            "The penalty determines most of the weights: intervals are about the penalised weights, and need not "
            "cover the truth."
        )
    return [*_table(rows), *(line for sentence in said for line in (sentence, ""))]


def _of_fit(fit: Mapping[str, float | str]) -> list[tuple[str, str]]:
    names = {
        "penalty": "penalty τ of the weights, on standardised features",
        "covariance": "covariance of the weights",
        "shrinkage": "shrinkage: share of the directions that the penalty determines, not the pairs",
        "left_out": "share of the pairs' differences outside of the exact posterior (left_out)",
    }
    return [(what, _shown(fit[name])) for name, what in names.items() if name in fit]


def _of_calibration(calibration: Calibration) -> list[tuple[str, str]]:
    notes = calibration.notes
    rows = [("completions seen in calibration", f"{calibration.rows}")]
    if calibration.reference_variance is not None:
        rows.append(("mean variance, in reward²", f"{calibration.reference_variance:.4g}"))
    if calibration.prior is not None:
        rows.append(("prior degrees of freedom d₀ of the variance", f"{calibration.prior.degrees_of_freedom:.3g}"))
    if "weight_cv" in notes:
        rows.append(("coefficient of variation of the variance", f"{notes['weight_cv']:.3g}"))
    if calibration.reference_variance is not None:
        reliability = f"{notes['reliability']:.2f}" if "reliability" in notes else "unknown"
        rows.append(("reliability of the variance, at most 1", reliability))
    rows.append(("variance factor fitted on held-out pairs", f"{calibration.variance_factor:.3g}"))
    return rows


def _of_variance(calibration: Calibration) -> list[str]:
    """What a reader should know before weighting by it."""
    said = []
    if calibration.notes.get("weight_cv", 1.0) < 0.1:
        said.append(
            "The variance hardly differs between completions: weighting by it has next to nothing to work with."
        )
    if calibration.notes.get("reliability", 1.0) < RELIABLE:
        said.append(
            f"The reliability of the variance is below {RELIABLE}: weights made of it are mostly noise. More members, "
            "`variance: smoothed` or `kind: linear` give a more precise one."
        )
    return said


def _table(rows: list[tuple[str, str]]) -> list[str]:
    return ["| | |", "|---|---|", *(f"| {what} | {one_line(figure)} |" for what, figure in rows), ""] if rows else []


def one_line(text: str) -> str:
    """Text as a part of a line or table of Markdown: no line breaks, and nothing that ends a cell or code."""
    return " ".join(text.split()).replace("`", "'").replace("|", "\\|")


def _shown(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.3g}"
