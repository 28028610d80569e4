"""One reward source from settings to record: data checked first, finished parts kept, nothing half-written."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset

from surefoot.data.preferences import data_hash, load_preferences, split_by_prompt
from surefoot.files import read_json
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.config import RewardSourceArguments
from surefoot.rewards.kinds.distilled import distil
from surefoot.rewards.kinds.dropout import DropoutMembers
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.independent.fit import train_independent
from surefoot.rewards.kinds.laplace import fit_laplace
from surefoot.rewards.kinds.linear import fit_linear
from surefoot.rewards.kinds.lora.fit import train_lora
from surefoot.rewards.kinds.smoothed import SmoothedVariance, smooth_variance
from surefoot.rewards.source import MemberSource, RewardSource, load_source, save_calibration, write_card
from surefoot.rewards.trunk.loading import check_templates, template_objection

__all__ = ["run_reward"]

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
    train, held_out = _load(args) if pairs is None else pairs
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
    metrics |= {"train_pairs": len(train), "train_seconds": trained, "seconds": time.perf_counter() - start}
    record = make_record("reward", settings, seed=args.seed, data_hash=data_hash(train, held_out), metrics=metrics)
    write_record(folder, record)
    return record


def _load(args: RewardSourceArguments) -> tuple[Dataset, Dataset]:
    objection = None
    if args.kind not in ("judge", "mixed"):  # those name no tokenizer of their own
        objection = template_objection(str(args.model_name_or_path), *(args.other_models or []))

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


def _train(args: RewardSourceArguments, train: Dataset, folder: Path, report: Progress) -> RewardSource:
    """The source, written to `folder/source`; finished parts are kept."""
    target = folder / "source"
    source = _fit(args, train, folder, report)
    if isinstance(source, MemberSource):
        source.scale_members = args.scale_members or args.kind == "mixed"
        if args.variance != "smoothed":
            source.variance_kind = args.variance  # type: ignore[assignment]
        else:
            source = _smoothed(args, source, train, folder, report)
    if args.kind != "independent" or args.variance == "smoothed":  # independent members were written one by one
        source.save(target)
    return source


def _smoothed(
    args: RewardSourceArguments, members: MemberSource, train: Dataset, folder: Path, report: Progress
) -> RewardSource:
    read = {name: getattr(args, name) for name in ("pooling", "layer") if getattr(args, name) is not None}
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


def _fit(args: RewardSourceArguments, train: Dataset, folder: Path, report: Progress) -> RewardSource:
    base, settings = args.model_name_or_path, args.settings()
    if args.kind != "judge":
        others = [*(args.other_models or []), *([] if args.teacher is None else [args.teacher])]
        check_templates([base, *others], train[0]["chosen"])
    if args.kind == "independent":
        return train_independent(
            train,
            [base, *(args.other_models or [])],
            folder / ("members" if args.variance == "smoothed" else "source"),
            settings,
            on_step=lambda k, done, total: report(f"member {k + 1} of {args.member_count}", done / total),
        )
    source: RewardSource
    if args.kind == "linear":
        source = fit_linear(train, base, settings, cache_directory=folder / "features", on_progress=report)
    elif args.kind == "heads":
        source = train_heads(
            train,
            base,
            settings,
            cache_directory=folder / "features",
            directory=folder / "checkpoint",
            on_progress=report,
        )
    elif args.kind == "lora":
        source = train_lora(train, base, settings, directory=folder / "checkpoint", on_progress=report)
    elif args.kind == "laplace":
        source = fit_laplace(train, base, settings, on_progress=report)
    elif args.kind == "dropout":
        source = DropoutMembers.from_model(base, settings)
    elif args.kind in ("judge", "mixed"):
        source = _existing(args, settings)
    else:
        source = distil(train, load_source(str(args.teacher)), base, settings, on_progress=report)
    return source


def _existing(args: RewardSourceArguments, settings: Any) -> RewardSource:
    """Sources that are not trained: a judge, or saved sources as members of one."""
    from surefoot.rewards.kinds.judge.source import JudgeSource
    from surefoot.rewards.kinds.mixed import MixedSources

    if args.kind == "judge":
        return JudgeSource(args.model_name_or_path, settings)
    return MixedSources([load_source(name) for name in (args.model_name_or_path, *(args.other_models or []))])


def _affordable(source: RewardSource, held_out: Dataset) -> Dataset:
    """The held-out pairs, or as many as a source that is paid by the call allows."""
    limit = getattr(source, "max_pairs", None)
    return held_out if limit is None else held_out.select(range(min(limit, len(held_out))))


def _measure(source: RewardSource, held_out: Dataset) -> dict[str, Any]:
    """Accuracy on the held-out pairs, the variance factor, and the calibration with each pair its own anchor."""
    chosen = source.score(held_out["prompt"], held_out["chosen"])
    rejected = source.score(held_out["prompt"], held_out["rejected"])
    rows = torch.cat([chosen, rejected])
    anchors = group_anchors(rows, torch.arange(len(chosen)).repeat(2), "dataset")
    if isinstance(source, SmoothedVariance) or (isinstance(source, MemberSource) and source.scale_members):
        source.calibrate(rows, anchors)  # margins are in the members' scales, and have the smoothed variance
    members = isinstance(source, MemberSource | SmoothedVariance)
    margins = _member_margins(source, chosen - rejected)
    metrics: dict[str, Any] = {"held_out_pairs": len(held_out), "accuracy_of_members": []}
    mean = margins.nanmean(dim=1)
    metrics["accuracy_of_mean"] = float((mean[~mean.isnan()] > 0).double().mean())
    if members:
        metrics["accuracy_of_members"] = (margins > 0).double().mean(dim=0).tolist()
    if not members or margins.shape[1] > 1:
        metrics["variance_factor"] = source.fit_variance_factor(chosen, rejected)
    report = getattr(source, "report", None)
    if report is not None:
        metrics["judge"] = report(rows, anchors)
    notes = {} if source.calibration is None else source.calibration.notes
    calibration = source.calibrate(rows, anchors)
    calibration.notes.update({name: value for name, value in notes.items() if name not in calibration.notes})
    return metrics | {"calibration": calibration.to_dict()}


def _member_margins(source: RewardSource, difference: torch.Tensor) -> torch.Tensor:
    """(pairs, members) each member's margin in its own scale; one column, the reward, of a source without members."""
    if not isinstance(source, MemberSource | SmoothedVariance):
        return difference[:, :1]
    margins = difference[:, : source.num_members]
    return (
        margins
        if source.calibration is None
        else margins / torch.tensor(source.calibration.scales)[: source.num_members]
    )
