"""The model card of a reward source: what it is, what it was measured to be, and how to load it."""

from __future__ import annotations

from surefoot.types import Calibration

__all__ = ["model_card"]


def model_card(kind: str, name: str, members: int | None, calibration: Calibration | None, repository: str) -> str:
    """README.md of a saved source.

    Args:
        kind: as in `source.json`.
        members: K, or None for a source without members.
        repository: the name that `load_source` takes, in the example.
    """
    alone = "an LLM judge" if kind == "judge" else "one reward model with a Gaussian or learnt variance"
    said = f"{members} members" if members else alone
    lines = [
        "---",
        "library_name: surefoot",
        "tags: [reward-model, uncertainty, preference-alignment]",
        "---",
        "",
        f"# {name}",
        "",
        f"A surefoot reward source of kind `{kind}`: {said}. It gives every completion a reward and a variance.",
        "",
        "```python",
        "from surefoot import load_source",
        "",
        f'source = load_source("{repository}")',
        "rewards = source.estimate(source.score(prompts, completions), groups)  # .mean, .variance",
        "```",
        "",
        *_figures(calibration),
    ]
    return "\n".join(lines)


def _figures(calibration: Calibration | None) -> list[str]:
    if calibration is None:
        return ["Not calibrated yet: call `source.calibrate` before scoring lone completions.", ""]
    rows = [("completions seen in calibration", f"{calibration.rows}")]
    if calibration.reference_variance is not None:
        rows.append(("mean variance, in reward²", f"{calibration.reference_variance:.4g}"))
    if calibration.prior is not None:
        rows.append(("prior degrees of freedom d₀ of the variance", f"{calibration.prior.degrees_of_freedom:.3g}"))
    if "weight_cv" in calibration.notes:
        rows.append(("coefficient of variation of the variance", f"{calibration.notes['weight_cv']:.3g}"))
    rows.append(("variance factor fitted on held-out pairs", f"{calibration.variance_factor:.3g}"))
    table = [f"| {what} | {figure} |" for what, figure in rows]
    warning = []
    if calibration.notes.get("weight_cv", 1.0) < 0.1:
        warning = [
            "",
            "The variance hardly differs between completions: weighting by it has next to nothing to work with.",
        ]
    return ["| | |", "|---|---|", *table, *warning, ""]
