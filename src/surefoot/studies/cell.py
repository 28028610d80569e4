"""One cell of a study: a policy aligned against a prepared reward source, and its true reward, in one record."""

from __future__ import annotations

import math
import resource
import shutil
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, TrainerCallback
from trl import ModelConfig, get_peft_config, get_quantization_config

from surefoot.errors import ConfigError
from surefoot.files import read_json, write_json
from surefoot.ranges import check_ranges
from surefoot.records import provenance
from surefoot.rewards.source import RewardSource
from surefoot.run_records import CellMetrics, CellRecord, Sample, TrajectoryRow, cell_path, read_cell, write_cell
from surefoot.setting_types import check_nested
from surefoot.studies.config import Cell, check_keys, objective_of
from surefoot.studies.evaluation import judge_policy, prompt_gains, prompt_risk, reference_anchors, reference_of
from surefoot.studies.exact_cell import EXACT_SETTINGS, run_exact
from surefoot.studies.reward_sources import cost_of, load_sources
from surefoot.studies.settings import Setting, as_texts
from surefoot.training.checkpoints import last_whole_checkpoint
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.run_online import TRAINERS, with_model_settings

__all__ = ["check_policy", "run_cell", "trajectory", "work_path"]

_CONFIGS: dict[str, Any] = {"rloo": VarianceAwareRLOOConfig, "grpo": VarianceAwareGRPOConfig}
_OURS = ("output_dir", "seed", "target_kl", "preset", "aggregate", "aggregate_parameter", "weights", "objective")
"""Settings of the trainer that the grid sets."""


def check_policy(trainer: str, policy: dict[str, Any]) -> None:
    """Refuse unknown settings, those that the grid sets, values of another type, and numbers out of range.

    Raises:
        ConfigError: the key, and the nearest one that is known.
    """
    for name in _OURS:
        if name in policy:
            raise ConfigError(f"policy.{name} is set by the study's own axes; remove it")
    if trainer == "exact":
        check_keys(policy, EXACT_SETTINGS, "policy")
        return
    known = {field.name for config in (_CONFIGS[trainer], ModelConfig) for field in fields(config)}
    check_keys(policy, known - {"model_name_or_path"}, "policy")
    check_nested(policy, (_CONFIGS[trainer], ModelConfig), "policy")
    check_ranges(policy, "policy.")


def work_path(folder: Path, key: str) -> Path:
    """What an interrupted cell goes on from; gone when its record is there."""
    return folder / "work" / key


def run_cell(setting: Setting, cell: Cell, folder: Path, on_step: Callable[[], None] | None = None) -> CellRecord:
    """Train one policy and measure its true reward; the record is written whole, and returned if it already exists.

    With `save_steps` in the policy's settings, an interrupted run goes on from its last whole checkpoint, and its time
    is that of both parts. What the trainer warned of is kept in the record.

    Args:
        on_step: called after every policy update, for progress.
    """
    path = cell_path(folder, cell.key)
    if path.exists():
        return read_cell(path)
    place = work_path(folder, cell.key)
    spent = _Spent(place / "spent.json")
    source = load_sources(cell.work, folder)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        if cell.work["trainer"] == "exact":
            record = _exact_record(setting, cell, folder, source)
            if on_step is not None:
                on_step()
        else:
            trainer = _trainer(setting, cell, source, place)
            trainer.add_callback(_OnStep(on_step))
            trainer.add_callback(spent)
            trainer.train(resume_from_checkpoint=last_whole_checkpoint(place))
            record = _record(setting, cell, folder, trainer, source)
    record = replace(
        record,
        warnings=tuple(sorted({str(each.message) for each in caught if each.category is UserWarning})),
        metrics=replace(
            record.metrics,
            **spent.so_far(),
            source_cpu_seconds=cost_of(cell.work, folder)[0],
            peak_memory_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        ),
    )
    write_cell(path, record)
    shutil.rmtree(place, ignore_errors=True)
    return record


def _trainer(setting: Setting, cell: Cell, source: RewardSource, place: Path) -> Any:
    work = cell.work
    own = {field.name for field in fields(ModelConfig)} - {field.name for field in fields(_CONFIGS[work["trainer"]])}
    model = ModelConfig(**{name: value for name, value in work["policy"].items() if name in own})
    given = {name: value for name, value in work["policy"].items() if name not in own}
    given |= _method(work["method"], source)
    args = _CONFIGS[work["trainer"]](
        output_dir=str(place),
        seed=work["seed"],
        target_kl=work["kl_budget"],
        **given,
    )
    trainer = TRAINERS[work["trainer"]](
        setting.policy,
        source,
        with_model_settings(args, model),
        train_dataset=Dataset.from_dict({"prompt": setting.train_prompts}),
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
        monitors={"gold": setting.gold} if work["monitor_gold"] else None,
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


def _method(spec: dict[str, Any], source: RewardSource) -> dict[str, Any]:
    """The objective's settings. A posterior or a judge has no members: there "one model" is its mean."""
    mean_alone = source.num_members is None and objective_of(spec).aggregate == "one"
    return spec | {"aggregate": "mean"} if mean_alone else spec


class _OnStep(TrainerCallback):
    def __init__(self, function: Callable[[], None] | None) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.function is not None:
            self.function()


class _Spent(TrainerCallback):
    """Time of a cell, with what an interrupted run had used when it saved its last checkpoint."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.before = read_json(path) if path.exists() else {"seconds": 0.0, "cpu_seconds": 0.0}
        self.started = {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}

    def so_far(self) -> dict[str, float]:
        now = {"seconds": time.perf_counter(), "cpu_seconds": time.process_time()}
        return {name: self.before[name] + now[name] - self.started[name] for name in now}

    def on_save(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        write_json(self.path, self.so_far())


_LOGGED_AS = {
    "kl": "sequence_kl",
    "proxy": "reward/mean_of_members",
    "gold": "monitor/gold",
    "variance": "reward/variance",
    "weight": "weight/mean",
    "effect": "weight/effect",
    "beta": "beta",
}


def trajectory(history: list[dict[str, Any]]) -> tuple[TrajectoryRow, ...]:
    """The trainer's log as rows; an unknown figure is None."""
    return tuple(
        TrajectoryRow(step=entry["step"], **{ours: _known(entry.get(theirs)) for ours, theirs in _LOGGED_AS.items()})
        for entry in history
        if "sequence_kl" in entry
    )


def _known(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _record(setting: Setting, cell: Cell, folder: Path, trainer: Any, source: RewardSource) -> CellRecord:
    work = cell.work
    count, tokens = work["evaluation_completions"], work["policy"].get("max_completion_length") or 256
    reference = reference_of(setting, folder, count, tokens)
    final = judge_policy(setting, trainer.model, trainer.processing_class, setting.evaluation_prompts, count, tokens)
    path = trajectory(trainer.state.log_history)
    gains, completions = prompt_gains(reference, final)
    metrics = CellMetrics(
        gold_reference=reference["mean"],
        gold_reference_train=reference["train_mean"],
        gold_final=final["mean"],
        gold_gain=final["mean"] - reference["mean"],
        prompt_risk=prompt_risk(gains),
        kl_final=_tail_mean([row.kl for row in path]),
        proxy_reference=path[0].proxy,
        proxy_final=_tail_mean([row.proxy for row in path]),
        beta_final=path[-1].beta,
    )
    centred = trainer.objective.needs_anchor
    return CellRecord(
        place=cell.place(),
        **provenance(work),
        data_hash=cost_of(work, folder)[1],
        metrics=metrics,
        anchor=trainer.args.anchor if centred else None,
        anchor_completions=trainer.args.anchor_completions if centred else None,
        trajectory=path,
        samples=_samples(source, reference, final, work["samples_kept"], trainer.args.anchor_completions),
        prompt_gains=tuple(gains),
        prompt_completions=tuple(completions),
    )


def _exact_record(setting: Setting, cell: Cell, folder: Path, source: RewardSource) -> CellRecord:
    """The record of a cell whose policy is exact: the same figures, judged on the candidates themselves."""
    work = cell.work
    run = run_exact(setting, work, folder, source)
    gain, last = sum(run.gains) / len(run.gains), run.trajectory[-1]
    metrics = CellMetrics(
        gold_reference=run.level,
        gold_reference_train=run.level,
        gold_final=run.level + gain,
        gold_gain=gain,
        prompt_risk=prompt_risk([*run.gains]),
        kl_final=last.kl,
        proxy_reference=run.trajectory[0].proxy,
        proxy_final=last.proxy,
        beta_final=last.beta,
    )
    count, centred = work["policy"]["candidates"], objective_of(work["method"]).needs_anchor
    return CellRecord(
        place=cell.place(),
        **provenance(work),
        data_hash=cost_of(work, folder)[1],
        metrics=metrics,
        anchor="group" if centred else None,
        anchor_completions=count if centred else None,
        trajectory=run.trajectory,
        samples=_samples(source, run.reference, run.final, work["samples_kept"], count),
        prompt_gains=tuple(run.gains),
        prompt_completions=(count,) * len(run.gains),
    )


def _tail_mean(values: Sequence[float | None]) -> float | None:
    """Mean over the last tenth of the updates, of what is known."""
    known = [value for value in values[-max(1, len(values) // 10) :] if value is not None]
    return sum(known) / len(known) if known else None


@torch.no_grad()
def _samples(
    source: RewardSource, reference: dict[str, Any], final: dict[str, Any], count: int, anchor_completions: int
) -> tuple[Sample, ...]:
    """The first `count` completions, with reward and variance centred by the reference's completions of the prompt."""
    prompts, completions = final["prompts"][:count], final["completions"][:count]
    if not prompts:
        return ()
    anchors = reference_anchors(source, reference, prompts, anchor_completions) if source.centred else None
    estimate = source.estimate(source.score(prompts, completions), anchors)
    texts = [as_texts(rows) for rows in (prompts, reference["completions"][:count], completions)]
    return tuple(
        Sample(
            prompt=texts[0][i],
            reference=texts[1][i],
            completion=texts[2][i],
            proxy=_known(float(estimate.mean[i])),
            variance=_known(float(estimate.variance[i])) if estimate.has_variance else None,
            gold=final["gold"][i],
            gold_reference=reference["gold"][i],
        )
        for i in range(len(estimate))
    )
