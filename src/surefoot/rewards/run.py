"""One reward source from settings to record: data checked first, finished parts kept, nothing half-written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from surefoot.data.preferences import data_hash, load_preferences, split_by_prompt
from surefoot.data.training_pairs import TrainingPairs
from surefoot.files import read_json
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.config import RewardSourceArguments
from surefoot.rewards.hub import write_card
from surefoot.rewards.kinds.smoothed import smooth_variance
from surefoot.rewards.registry import source_class
from surefoot.rewards.saved import SOURCE, save_calibration
from surefoot.rewards.source import FitJob, MemberSource, RewardSource
from surefoot.rewards.trunk.loading import check_templates, template_objection
from surefoot.rewards.trunk.reference import write_reference

__all__ = ["load_pairs", "run_reward"]

Progress = Callable[[str, float], None]
"""Called with (what is being done, share done in [0, 1])."""


def run_reward(
    args: RewardSourceArguments,
    settings: dict[str, Any],
    on_progress: Progress | None = None,
    *,
    pairs: tuple[Dataset, Dataset] | None = None,
) -> dict[str, Any]:
    """Train, calibrate and measure a source, and write it to `args.output_dir/source` with `record.json` beside it.

    Args:
        settings: what the user gave; the output directory is bound to it.
        pairs: to train on and held out, instead of the dataset that `args` names.

    Returns:
        The record; that of the finished run if there is one already.

    Raises:
        ConfigError, DataError, ModelError, RunError: before any training, each saying what to change.
    """
    args.check()
    train, held_out = load_pairs(args) if pairs is None else pairs
    with claim_directory(args.output_dir, "reward", settings) as folder:
        if (folder / RECORD).exists():
            finished: dict[str, Any] = read_json(folder / RECORD)
            return finished
        return _run(args, settings, train, held_out, folder, on_progress or (lambda what, share: None))


def _run(
    args: RewardSourceArguments,
    settings: dict[str, Any],
    train: Dataset,
    held_out: Dataset,
    folder: Path,
    report: Progress,
) -> dict[str, Any]:
    start = time.perf_counter()
    source = _train(args, train, folder, report)
    trained = time.perf_counter() - start
    held_out = _affordable(source, held_out)
    report("held-out pairs", 0.0)
    metrics = _measure(source, held_out)
    report("held-out pairs", 1.0)
    save_calibration(folder / "source", source.calibration)
    write_card(folder / "source", source)
    TrainingPairs.of(train, held_out).save(folder / "source")
    metrics |= {"train_pairs": len(train), "train_seconds": trained, "seconds": time.perf_counter() - start}
    record = make_record("reward", settings, seed=args.seed, data_hash=data_hash(train, held_out), metrics=metrics)
    write_record(folder, record)
    return record


def load_pairs(args: RewardSourceArguments) -> tuple[Dataset, Dataset]:
    """The preferences to train on and the held-out ones.

    Raises:
        DataError: they can't be read.
    """
    objection = None
    if source_class(args.kind).made_from in ("model", "reward model"):  # others name no tokenizer of their own
        objection = template_objection(args.model_name_or_path, *_other_models(args))

    def load(split: str | None) -> Dataset:
        return load_preferences(
            args.dataset_name,
            split=split,
            config=args.dataset_config,
            bad_rows=args.bad_rows,  # type: ignore[arg-type]
            objection=objection,
        )

    train = load(args.dataset_train_split)
    if args.dataset_test_split is not None:
        return train, load(args.dataset_test_split)
    return split_by_prompt(train, args.held_out, args.seed)


def _other_models(args: RewardSourceArguments) -> list[str]:
    return list(getattr(args.kind_settings, "other_models", ()))


def _train(args: RewardSourceArguments, train: Dataset, folder: Path, report: Progress) -> RewardSource:
    """The source, written to `folder/source`; finished parts are kept."""
    source_type, target, smoothed = source_class(args.kind), folder / "source", args.variance == "smoothed"
    if source_type.made_from != "served model":
        teacher = getattr(args.kind_settings, "teacher", None)
        named = [args.model_name_or_path, *_other_models(args), *([] if teacher is None else [teacher])]
        check_templates(named, train[0]["chosen"])
    inner = folder / "members" if smoothed else target
    source = source_type.fit(FitJob(train, args.model_name_or_path, args.kind_settings, folder, inner, report))
    if isinstance(source, MemberSource):
        source.scale_members = args.scale_members or source.scale_members
        if smoothed:
            source = _smoothed(args, source, train, folder, report)
        else:
            source.variance_kind = args.variance  # type: ignore[assignment]
    if not (target / SOURCE).exists():
        source.save(target)
    if not args.self_contained:
        _refer(target, args.model_name_or_path)
    return source


def _refer(target: Path, model: str) -> None:
    """Replace copies of the frozen trunk in a saved source by a reference."""
    for folder in (path for path in sorted(target.rglob("trunk")) if any(path.glob("*.safetensors"))):
        write_reference(folder, model)


def _smoothed(
    args: RewardSourceArguments, members: MemberSource, train: Dataset, folder: Path, report: Progress
) -> RewardSource:
    read = {name: getattr(args, name) for name in ("pooling", "layer", "dtype") if getattr(args, name) is not None}
    return smooth_variance(
        members,
        train,
        args.model_name_or_path,
        **read,
        max_length=args.max_length,
        overlong=args.overlong,
        cache_directory=folder / "features",
        on_progress=report,
    )


def _affordable(source: RewardSource, held_out: Dataset) -> Dataset:
    """The held-out pairs, or as many as a source that is paid by the call allows."""
    limit = getattr(source, "max_pairs", None)
    return held_out if limit is None else held_out.select(range(min(limit, len(held_out))))


def _measure(source: RewardSource, held_out: Dataset) -> dict[str, Any]:
    """Accuracy on the held-out pairs, the variance factor, and the calibration with each pair its own anchor."""
    chosen, rejected = source.score_pairs(held_out["prompt"], held_out["chosen"], held_out["rejected"])
    rows = torch.cat([chosen, rejected])
    anchors = group_anchors(rows, torch.arange(len(chosen)).repeat(2), "dataset")
    if source.num_members is not None and _needs_calibration(source):
        source.calibrate(rows, anchors)  # margins are in the members' scales, and have the smoothed variance
    members = _member_margins(source, chosen, rejected)
    if isinstance(source, MemberSource) and members is not None:
        mean = members.nanmean(dim=1)
    else:  # a panel's reward is no plain mean of its members
        mean = source.reward_of(chosen) - source.reward_of(rejected)
    metrics: dict[str, Any] = {
        "description": source.description,
        "held_out_pairs": len(held_out),
        "accuracy_of_members": [] if members is None else (members > 0).double().mean(dim=0).tolist(),
        "accuracy_of_mean": float((mean[~mean.isnan()] > 0).double().mean()),
    }
    if source.num_members != 1:
        metrics["variance_factor"] = source.fit_variance_factor(chosen, rejected)
    notes = {} if source.calibration is None else source.calibration.notes
    calibration = source.calibrate(rows, anchors)
    calibration.notes.update({name: value for name, value in notes.items() if name not in calibration.notes})
    report = getattr(source, "report", None)
    if report is not None:  # calibrated, since a side whose other side is unscored has no anchor of its own
        metrics["judge"] = report(rows, anchors)
    return metrics | {"calibration": calibration.to_dict()}


def _needs_calibration(source: RewardSource) -> bool:
    """Whether its margins have no variance, or members on scales of their own, before it is calibrated."""
    return not isinstance(source, MemberSource) or source.scale_members


def _member_margins(source: RewardSource, chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor | None:
    """(pairs, members) each member's margin in its own scale; None for a source without members."""
    first, second = source.members_of(chosen), source.members_of(rejected)
    return None if first is None or second is None else first - second
