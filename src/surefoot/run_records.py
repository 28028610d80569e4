"""The records that a study writes and a report reads, as typed values: grid, cells, failures and disagreement.

Files keep the JSON that earlier versions wrote. What an earlier version didn't write is None here: unknown, not zero.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from surefoot.errors import RunError
from surefoot.files import read_json, write_json
from surefoot.typed_json import Misfit, decode

__all__ = [
    "CellMetrics",
    "CellPlace",
    "CellRecord",
    "DisagreementRecord",
    "ErrorRankings",
    "FailureRecord",
    "Figure",
    "KnownErrorsRecord",
    "Sample",
    "StudyRecord",
    "TrajectoryRow",
    "cell_path",
    "disagreement_path",
    "failure_path",
    "known",
    "read_cell",
    "read_disagreements",
    "read_failure",
    "read_study_record",
    "study_path",
    "write_cell",
    "write_disagreement",
    "write_failure",
    "write_study_record",
]

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class CellPlace:
    """Where a cell stands in the grid.

    Args:
        key: address of the cell's content; its file is named by it.
        kl_budget: nats per sequence; None where β was constant.
    """

    key: str
    setting: str
    source: str
    method: str
    kl_budget: float | None
    seed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CellMetrics:
    """Figures of one finished cell.

    Args:
        gold_reference, gold_final: mean true reward of the reference and of the final policy on evaluation prompts.
        gold_reference_train: the reference's on the training prompts, where the trajectory starts.
        gold_gain: gold_final − gold_reference.
        prompt_risk: share of evaluation prompts whose gain is negative.
        kl_final: nats per sequence, mean over the last tenth of the updates.
        proxy_reference, proxy_final: mean of the reward that was trained on.
        beta_final: last KL coefficient.
        seconds, cpu_seconds: of the policy run. source_cpu_seconds: of its reward source.
        peak_memory_mb: largest resident memory of the process, in MiB.
    """

    gold_reference: float | None = None
    gold_reference_train: float | None = None
    gold_final: float | None = None
    gold_gain: float | None = None
    prompt_risk: float | None = None
    kl_final: float | None = None
    proxy_reference: float | None = None
    proxy_final: float | None = None
    beta_final: float | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    source_cpu_seconds: float | None = None
    peak_memory_mb: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrajectoryRow:
    """Means over one policy update's batch.

    Args:
        kl: nats per sequence. proxy: reward that was trained on. gold: true reward. variance: of the reward.
        weight, effect: mean variance weight, and what weighting added to the reward. beta: KL coefficient.
    """

    step: int | None = None
    kl: float | None
    proxy: float | None = None
    gold: float | None
    variance: float | None = None
    weight: float | None = None
    effect: float | None = None
    beta: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One evaluation prompt with the reference's and the final policy's completion, and what they were given.

    Args:
        proxy, variance: reward and its variance of the final completion. gold: its true reward.
        gold_reference: true reward of the reference's completion.
    """

    prompt: str
    reference: str
    completion: str
    proxy: float | None
    variance: float | None
    gold: float | None
    gold_reference: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CellRecord:
    """Everything that one cell left.

    Args:
        config: all that its result depends on. data_hash: of the preferences.
        anchor, anchor_completions: what variances were centred by; None if the objective reads no variance.
        trajectory: one row for each policy update.
        prompt_gains: mean true reward minus the reference's, for each evaluation prompt.
        prompt_completions: completions of the final policy behind each of them.
        warnings: what the trainer warned of.
    """

    place: CellPlace
    metrics: CellMetrics
    trajectory: tuple[TrajectoryRow, ...]
    samples: tuple[Sample, ...]
    created: str | None = None
    config: dict[str, Any] | None = None
    data_hash: str | None = None
    commit: str | None = None
    versions: dict[str, Any] | None = None
    anchor: str | None = None
    anchor_completions: int | None = None
    prompt_gains: tuple[float | None, ...] | None = None
    prompt_completions: tuple[int, ...] | None = None
    warnings: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class FailureRecord:
    """A cell whose last try ended in an error."""

    place: CellPlace
    error: str = ""
    when: str = ""


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure with its 95% interval and the number of observations behind it."""

    value: float | None
    low: float | None
    high: float | None
    n: int


@dataclass(frozen=True, slots=True)
class ErrorRankings:
    """AUROC of three scores for the mistakes of the members' mean."""

    variance: Figure
    sd_over_margin: Figure
    margin: Figure


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownErrorsRecord:
    """The variance against known true rewards; figures as in `surefoot.diagnosis.disagreement.KnownErrors`.

    Args:
        reliability: correlation of the variances that two halves of the members give.
    """

    completions: int
    variance_cv: float | None = None
    prior_freedom: float | None = None
    spearman: Figure | None = None
    mean_correlation: float | None = None
    member_correlation: float | None = None
    reliability: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DisagreementRecord:
    """How far the members of one seed's reward source disagree; figures as in
    `surefoot.diagnosis.disagreement.Disagreement`.

    Args:
        prior_freedom: None means infinite: no difference between pairs beyond chance.
        known_errors: None where the true reward of no completion was known.
    """

    setting: str
    source: str
    seed: int
    pairs: int
    members: int
    accuracy_of_members: tuple[Figure, ...]
    accuracy_of_mean: Figure
    split: Figure | None = None
    minority: float | None = None
    agreement: float | None = None
    tau: float | None = None
    offset_overall: float | None = None
    offset_per_prompt: float | None = None
    margin_sd: tuple[float | None, ...] | None = None
    prior_freedom: float | None = None
    variance_cv: float | None = None
    error_auroc: ErrorRankings
    verdict: tuple[str, ...]
    known_errors: KnownErrorsRecord | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StudyRecord:
    """The grid of a study as it last ran.

    Args:
        config: the settings, as `surefoot study --config` reads them.
        settings, sources, methods, kl_budgets, seeds: the axes, in order.
        cells: places of all cells, finished or not.
    """

    title: str
    config: dict[str, Any]
    settings: tuple[str, ...]
    sources: tuple[str, ...]
    methods: tuple[str, ...]
    kl_budgets: tuple[float | None, ...]
    seeds: tuple[int, ...]
    cells: tuple[CellPlace, ...]
    versions: dict[str, Any]
    commit: str | None


def known(value: float | None) -> float:
    """A figure of a record as a number; NaN where it is unknown."""
    return math.nan if value is None else float(value)


def study_path(folder: Path) -> Path:
    return folder / "study.json"


def cell_path(folder: Path, key: str) -> Path:
    return folder / "cells" / f"{key}.json"


def failure_path(folder: Path, key: str) -> Path:
    return folder / "failed" / f"{key}.json"


def disagreement_path(folder: Path, source_key: str) -> Path:
    return folder / "disagreement" / f"{source_key}.json"


def read_study_record(folder: Path) -> StudyRecord:
    """Read the grid of the study in `folder`.

    Raises:
        RunError: there is none, or it isn't a study's record; the file and the field are named.
    """
    path = study_path(folder)
    if not path.exists():
        raise RunError(f"{folder} holds no study (no {path.name}); give the output directory of `surefoot study`")
    document = _read_object(path)
    try:
        record = decode(StudyRecord, document)
    except Misfit as misfit:
        raise RunError(f"{path} is no study that this version reads ({misfit}); start the study again") from None
    if not record.methods:
        raise RunError(f"{path} is no study that this version reads (it has no methods); start the study again")
    return record


def write_study_record(folder: Path, record: StudyRecord) -> None:
    write_json(study_path(folder), {"kind": "study"} | asdict(record))


def read_cell(path: Path, place: CellPlace | None = None) -> CellRecord:
    """Read a finished cell.

    Args:
        place: where the present grid has it, such as under a method's new name; as the file says if None.

    Raises:
        RunError: the file is missing or no cell's record; the file and the field are named.
    """
    return _read_placed(CellRecord, path, place, "cell")


def write_cell(path: Path, record: CellRecord) -> None:
    write_json(path, {"kind": "cell"} | _flat(record))


def read_failure(path: Path, place: CellPlace | None = None) -> FailureRecord:
    """Read why a cell failed; arguments and errors as for `read_cell`."""
    return _read_placed(FailureRecord, path, place, "failed cell")


def write_failure(path: Path, record: FailureRecord) -> None:
    write_json(path, _flat(record))


def read_disagreements(folder: Path, grid: StudyRecord) -> list[DisagreementRecord]:
    """Read the records of the grid's own sources and seeds, by seed; errors as for `read_cell`.

    Those of an earlier grid are left out unread.
    """
    wanted = {(place.setting, place.source, str(place.seed)) for place in grid.cells}
    records = []
    for path in sorted((folder / "disagreement").glob("*.json")):
        document = _read_object(path)
        if tuple(str(document.get(name)) for name in ("setting", "source", "seed")) not in wanted:
            continue
        try:
            records.append(decode(DisagreementRecord, document))
        except Misfit as misfit:
            raise RunError(
                f"{path} is not a record of members' disagreement: {misfit}; delete it and run the study again"
            ) from None
    return sorted(records, key=lambda record: record.seed)


def write_disagreement(path: Path, record: DisagreementRecord) -> None:
    write_json(path, asdict(record))


def _read_placed(kind: type[T], path: Path, place: CellPlace | None, name: str) -> T:
    """In the file the place's fields stand beside the others."""
    document = _read_object(path)
    try:
        written = document.get("kind", name)
        if written != name:
            raise Misfit("", f"is a record of kind {written!r}")
        return decode(kind, document | {"place": place or decode(CellPlace, document)})
    except Misfit as misfit:
        raise RunError(f"{path} is not a {name}'s record: {misfit}; delete it and run the study again") from None


def _flat(record: CellRecord | FailureRecord) -> dict[str, Any]:
    values = asdict(record)
    return values.pop("place") | values


def _read_object(path: Path) -> dict[str, Any]:
    document = read_json(path)
    if not isinstance(document, dict):
        raise RunError(f"{path} must hold one JSON object; delete it and run the study again")
    return document
