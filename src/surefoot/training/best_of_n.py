"""Best-of-n: sample, score, choose the best completion of each prompt; resumable batch by batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Features, Json, List, Value
from trl import ModelConfig

from surefoot.data.preferences import data_hash, load_prompts
from surefoot.errors import ConfigError
from surefoot.files import read_json, whole_file
from surefoot.maths.best_of_n import best_of_n_curve, best_of_n_kl
from surefoot.maths.objectives import PRESETS, Objective, aggregate, preset
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.anchored import anchor_shares
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.gold import Gold, gold_spec, load_gold
from surefoot.rewards.registry import load_source
from surefoot.rewards.score_dataset import ANCHOR, anchor_names
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.loading import template_objection
from surefoot.training.checks import check_variance
from surefoot.training.run_online import load_policy_tokenizer
from surefoot.training.sampling import load_policy, sample_completions
from surefoot.types import Text

__all__ = ["BestOfNArguments", "run_best_of_n"]

CHOSEN = "chosen.parquet"


@dataclass
class BestOfNArguments:
    """Settings of `surefoot bon`: policy, prompts, reward source, objective and output."""

    output_dir: str = field(metadata={"help": "Directory of the result; the same again resumes."})
    model_name_or_path: str = field(metadata={"help": "Policy to sample: a directory or hub name."})
    dataset_name: str = field(metadata={"help": "Prompts: a local file, directory or hub name."})
    reward_source: str = field(metadata={"help": "Directory of the reward source to choose by."})
    gold: str | None = field(
        default=None, metadata={"help": "The true reward, for the curve: a source never chosen by, or file.py:name."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    dataset_prompts: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    n: int = field(default=16, metadata={"help": "Samples of each prompt."})
    preset: str = field(
        default="mean",
        metadata={"help": "Objective to choose by; weights don't matter here.", "choices": PRESETS.keys()},
    )
    aggregate_parameter: float | None = field(default=None, metadata={"help": "The aggregate's κ, λ, α or τ."})
    max_completion_length: int = field(default=256, metadata={"help": "In tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Of the sampling."})
    prompts_per_batch: int = field(default=8, metadata={"help": "Prompts sampled and scored at a time."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})

    def objective(self) -> Objective:
        """Build the objective to choose by, without weights, since best-of-n has no penalty.

        Raises:
            ConfigError: values out of range.
        """
        for name in ("n", "max_completion_length", "prompts_per_batch"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        changes = {} if self.aggregate_parameter is None else {"parameter": self.aggregate_parameter}
        return preset(self.preset, weights="none", **changes)


def run_best_of_n(
    args: BestOfNArguments, settings: dict[str, Any], on_progress: Callable[[int, int], None] | None = None
) -> dict[str, Any]:
    """Write the best of `n` completions of each prompt to `chosen.parquet`, and the best-of-n curve to `record.json`.

    Prompts that are messages are sampled through the policy's chat template, and scored as messages.

    The reference policy draws a prompt's completions, so they are their own anchor (`anchor: group`), and variances
    are centred by their mean. Batches of prompts that are finished are kept if interrupted.

    Args:
        on_progress: called with (prompts done, prompts).

    Returns:
        The record; that of the finished run if there is one already.

    Raises:
        ConfigError, DataError, ModelError, RunError, VarianceError: before anything is sampled, each saying what to
            change.
    """
    objective = args.objective()
    tokenizer = load_policy_tokenizer(ModelConfig(model_name_or_path=args.model_name_or_path))
    prompts = load_prompts(
        args.dataset_name,
        split=args.dataset_split,
        config=args.dataset_config,
        objection=template_objection(tokenizer),
    )
    if args.dataset_prompts is not None:
        prompts = prompts.select(range(min(args.dataset_prompts, len(prompts))))
    source = load_source(args.reward_source)
    check_variance(source, objective, [], args.preset)
    gold = None if args.gold is None else load_gold(gold_spec(args.gold))
    with claim_directory(args.output_dir, "bon", settings) as folder:
        if (folder / RECORD).exists():
            finished: dict[str, Any] = read_json(folder / RECORD)
            return finished
        metrics = _draw_and_choose(args, tokenizer, prompts, source, gold, objective, folder, on_progress)
        record = make_record("bon", settings, seed=args.seed, data_hash=data_hash(prompts), metrics=metrics)
        write_record(folder, record)
    return record


def _draw_and_choose(
    args: BestOfNArguments,
    tokenizer: Any,
    prompts: Any,
    source: RewardSource,
    gold: Gold | None,
    objective: Objective,
    folder: Path,
    on_progress: Callable[[int, int], None] | None,
) -> dict[str, Any]:
    """Sample, score and choose; keeps all samples in `folder/parts` and the best in `folder/chosen.parquet`."""
    model = load_policy(args.model_name_or_path)
    parts = []
    for start in range(0, len(prompts), args.prompts_per_batch):
        path = folder / "parts" / f"{start:08d}.parquet"
        if not path.exists():
            some = list(prompts[start : start + args.prompts_per_batch]["prompt"])
            _write(path, _sample_and_score(model, tokenizer, some, args, start, source, gold, objective))
        parts.append(path)
        if on_progress is not None:
            on_progress(min(start + args.prompts_per_batch, len(prompts)), len(prompts))
    table = pa.concat_tables([pq.read_table(path) for path in parts])
    _write(folder / CHOSEN, _best(table, args.n))
    return _curve(table, args.n, np.random.default_rng(args.seed))


def _sample_and_score(
    model: Any,
    tokenizer: Any,
    prompts: list[Text],
    args: BestOfNArguments,
    start: int,
    source: RewardSource,
    gold: Gold | None,
    objective: Objective,
) -> pa.Table:
    repeated = [prompt for prompt in prompts for _ in range(args.n)]
    seed = int(hashlib.sha256(f"{args.seed}:{start}".encode()).hexdigest()[:8], 16)
    completions = sample_completions(
        model,
        tokenizer,
        repeated,
        max_new_tokens=args.max_completion_length,
        seed=seed,
        temperature=args.temperature,
    )
    groups = torch.arange(len(prompts)).repeat_interleave(args.n)
    scores = source.score(repeated, completions)
    estimate = source.estimate(scores, group_anchors(scores, groups))
    columns: dict[str, Any] = {
        "prompt": _texts(repeated),
        "completion": _texts(completions),
        "reward": _numbers(aggregate(estimate, objective)),
        "reward_mean": _numbers(estimate.mean),
        "reward_variance": _numbers(estimate.variance)
        if estimate.has_variance
        else pa.nulls(len(repeated), pa.float64()),
        ANCHOR: pa.array(anchor_names(estimate), pa.string()),
    }
    if gold is not None:
        columns["gold"] = _numbers(torch.tensor(gold(repeated, completions), dtype=torch.float64))
    return pa.table(columns)


def _texts(values: list[Text]) -> pa.Array:
    """A column of text, or of messages as lists of JSON, so that all parts of the file have one schema."""
    feature = Value("string") if isinstance(values[0], str) else List(Json())
    return Dataset.from_dict({"text": values}, features=Features({"text": feature})).data.column("text")


def _numbers(values: torch.Tensor) -> pa.Array:
    return pa.array(values.to(torch.float64).numpy(), from_pandas=True)


def _column(table: pa.Table, name: str, n: int) -> torch.Tensor:
    values = [float("nan") if value is None else value for value in table.column(name).to_pylist()]
    return torch.tensor(values, dtype=torch.float64).view(-1, n)


def _best(table: pa.Table, n: int) -> pa.Table:
    reward = _column(table, "reward", n).nan_to_num(nan=-torch.inf)
    return table.take((reward.argmax(dim=1) + n * torch.arange(len(reward))).tolist())


def _curve(table: pa.Table, n: int, rng: np.random.Generator) -> dict[str, Any]:
    """Best-of-n curve for n = 1, 2, 4, …: means over prompts with 95% intervals.

    Prompts with an unscored completion are left out.
    """
    ns = torch.tensor([2**k for k in range(n.bit_length()) if 2**k < n] + [n])
    names = [name for name in ("reward", "reward_mean", "gold") if name in table.column_names]
    proxy = _column(table, "reward", n)
    whole = ~proxy.isnan().any(dim=1)
    metrics: dict[str, Any] = {
        "prompts": len(proxy),
        "prompts_with_unscored": int((~whole).sum()),
        "n": ns.tolist(),
        "kl": best_of_n_kl(ns).tolist(),
        ANCHOR: anchor_shares(table.column(ANCHOR).to_pylist()),
    }
    for name in names:
        curve = best_of_n_curve(proxy[whole], _column(table, name, n)[whole], ns)
        metrics[name] = [bootstrap_mean(column.tolist(), rng).to_dict() for column in curve.T] if len(curve) else []
    return metrics


def _write(path: Path, table: pa.Table) -> None:
    with whole_file(path) as temporary:
        pq.write_table(table, temporary)
