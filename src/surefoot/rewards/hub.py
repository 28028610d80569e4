"""A reward source on the Hugging Face hub: its model card, its upload, its download."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from surefoot.errors import ModelError
from surefoot.files import read_json, write_text
from surefoot.hub_names import check_name
from surefoot.rewards.saved import SOURCE
from surefoot.types import Calibration

if TYPE_CHECKING:
    from surefoot.rewards.source import RewardSource

__all__ = ["RELIABLE", "download", "model_card", "one_line", "push", "write_card"]

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "**/*.json", "**/*.safetensors", "**/*.txt"]
"""What is taken from the hub: weights as safetensors, configurations, tokenizers; never code or pickles."""
RELIABLE = 0.6
"""Reliability of a variance below which weights made of it are mostly noise."""


def push(source: RewardSource, repository: str, *, private: bool | None = None, token: str | None = None) -> str:
    """Save a source with its card and upload it; see `RewardSource.push_to_hub`."""
    api = HfApi(token=token)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "source"
        source.save(folder)
        write_card(folder, source, repository)
        api.create_repo(repository, private=private, exist_ok=True)
        return str(api.upload_folder(repo_id=repository, folder_path=folder))


def download(repository: str) -> Path:
    """The local copy of a source on the hub.

    Raises:
        ModelError: the hub doesn't give it.
    """
    check_name(repository, "reward source")
    try:
        return Path(snapshot_download(repository, allow_patterns=_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, HFValidationError, OSError) as error:
        raise ModelError(f"there is no directory {repository}, and the hub doesn't give it: {error}") from error


def write_card(directory: str | Path, source: RewardSource, repository: str | None = None) -> None:
    """Write the model card of a saved source beside it; `repository` is where it can be loaded from."""
    folder = Path(directory)
    held = read_json(folder / SOURCE)
    card = model_card(
        held["kind"],
        source.name,
        source.description,
        source.calibration,
        repository or str(directory),
        held.get("figures"),
        source.loading_example,
    )
    write_text(folder / "README.md", card)


def model_card(
    kind: str,
    name: str,
    description: str,
    calibration: Calibration | None,
    repository: str,
    figures: Mapping[str, float | str] | None = None,
    loading_example: tuple[str, str] = ("", ""),
) -> str:
    """README.md of a saved source.

    Args:
        kind: as in `source.json`.
        description: `RewardSource.description`.
        repository: the name that `load_source` takes, in the example.
        figures: of the fit, as in `source.json`: of a linear source its penalty, covariance, shrinkage and what was
            left out.
        loading_example: `RewardSource.loading_example`.
    """
    more_imports, more_arguments = loading_example
    lines = [
        "---",
        "library_name: surefoot",
        "tags: [reward-model, uncertainty, preference-alignment]",
        "---",
        "",
        f"# {one_line(name)}",
        "",
        f"A surefoot reward source of kind `{kind}`: {description}. It gives completions a reward and a variance.",
        "",
        "```python",
        "from surefoot import group_anchors, load_source",
        *([more_imports] if more_imports else []),
        "",
        f"source = load_source({json.dumps(repository, ensure_ascii=False)}{more_arguments})",
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
