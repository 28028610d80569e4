"""`surefoot select` from settings to files: a policy's completions scored once, and a rule's pairs of them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.data.preferences import data_hash, load_completions
from surefoot.errors import ConfigError, DataError, did_you_mean
from surefoot.feedback import rules
from surefoot.feedback.pairs import candidate_pairs, pair_id, prompt_numbers, read_pairs
from surefoot.files import read_json, write_text
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.gaussian import GaussianSource
from surefoot.rewards.registry import load_source
from surefoot.rewards.score_cache import score_texts, source_hash
from surefoot.rewards.source import RewardSource
from surefoot.training.sampling import mark_cut
from surefoot.types import MarginEstimate, Text

__all__ = ["PAIRS", "RULES", "Candidates", "SelectArguments", "candidates_of", "choose", "run_select"]

PAIRS = "pairs.jsonl"
RULES = (
    *("margin_variance", "expected_information", "d_optimal", "double_thompson"),
    *("upper_confidence_margin", "delta_ucb", "random"),
)
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""
_CHUNK = 8192


@dataclass
class SelectArguments:
    """Settings of `surefoot select`."""

    completions: str = field(
        metadata={"help": "Completions of the policy: columns prompt and completion, file or hub."}
    )
    count: int = field(metadata={"help": "How many pairs to choose."})
    rule: str = field(default="random", metadata={"help": "By what pairs are chosen.", "choices": RULES})
    reward_source: str | None = field(
        default=None, metadata={"help": "Directory or hub name of the reward source; only `random` needs none."}
    )
    output_dir: str = field(default="selected", metadata={"help": "Directory of the result; the same again goes on."})
    exclude: list[str] | None = field(
        default=None,
        metadata={"help": "Files of pairs (earlier selections, or preferences) that aren't chosen again."},
    )
    max_pairs: int = field(
        default=100_000, metadata={"help": "Candidate pairs; of more, so many are drawn uniformly by the seed."}
    )
    kappa: float = field(default=1.0, metadata={"help": "Standard deviations of an upper confidence bound."})
    draws: int = field(
        default=128, metadata={"help": "Posterior draws of double_thompson; an ensemble has its members."}
    )
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: what is wrong.
        """
        if self.rule not in RULES:
            raise ConfigError(
                f"rule must be one of {', '.join(RULES)}, got '{self.rule}'{did_you_mean(self.rule, RULES)}"
            )
        if self.reward_source is None and self.rule != "random":
            raise ConfigError(f"rule {self.rule} needs a reward source; give --reward_source")
        for name in ("count", "max_pairs", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        if not (self.kappa >= 0 and math.isfinite(self.kappa)):
            raise ConfigError(f"kappa must be at least 0, got {self.kappa}")


@dataclass(frozen=True, eq=False)
class Candidates:
    """Scored completions and the pairs of them that may be chosen.

    Args:
        source: which scored them.
        rows: (completions, columns) of `RewardSource.score`.
        prompts: (completions,) number of each completion's prompt.
        pairs: (pairs, 2) rows of the completions of each pair; every margin is known.
        margins: of the first completion over the second.
    """

    source: RewardSource
    rows: Float[Tensor, "completions columns"]
    prompts: Int[Tensor, "completions"]
    pairs: Int[Tensor, "pairs 2"]
    margins: MarginEstimate


def run_select(args: SelectArguments, settings: dict[str, Any], on_progress: Progress | None = None) -> dict[str, Any]:
    """Write `pairs.jsonl`, best pair first, and `record.json` to `args.output_dir`.

    Scored rows are kept there, so that an interrupted call goes on.

    Returns:
        The record; that of the finished run if there is one already.

    Raises:
        ConfigError, DataError, ModelError, RunError, VarianceError: before anything is scored where possible.
    """
    args.check()
    source = None if args.reward_source is None or args.rule == "random" else load_source(args.reward_source)
    with claim_directory(args.output_dir, "select", settings) as folder:
        if (folder / RECORD).exists():
            finished: dict[str, Any] = read_json(folder / RECORD)
            return finished
        return _select(args, settings, source, folder, on_progress or (lambda what, done, total: None))


def _select(
    args: SelectArguments, settings: dict[str, Any], source: RewardSource | None, folder: Path, report: Progress
) -> dict[str, Any]:
    table = load_completions(args.completions)
    prompts, texts = list(table["prompt"]), list(table["completion"])
    numbers = prompt_numbers(prompts)
    pairs, total = candidate_pairs(numbers, texts, args.max_pairs, args.seed)
    considered = len(pairs)
    pairs = _not_excluded(pairs, prompts, texts, args.exclude or [])
    excluded, margins = considered - len(pairs), None
    if args.count > len(pairs):  # before anything is scored
        raise ConfigError(f"count must be between 1 and the {len(pairs):,} candidate pairs, got {args.count:,}")
    if source is None:
        chosen = rules.random_pairs(len(pairs), args.count, args.seed)
    else:
        marked = mark_cut(texts, table["cut"]) if "cut" in table.column_names else texts
        key = source_hash(source, args.reward_source)
        rows = score_texts(
            source,
            prompts,
            marked,
            cache=None if key is None else folder / "scores" / key,
            on_progress=lambda done, all_: report("scores", done, all_),
        )
        candidates = candidates_of(source, rows, numbers, pairs)
        pairs, margins = candidates.pairs, candidates.margins
        chosen = choose(args.rule, candidates, args.count, args.seed, kappa=args.kappa, draws=args.draws)
    write_text(folder / PAIRS, _lines(args, prompts, texts, pairs[chosen], _picked(margins, chosen)))
    metrics = {
        "rule": args.rule,
        "pairs": len(chosen),
        "prompts": len(set(numbers[pairs[chosen, 0]].tolist())),
        "candidates": len(pairs),
        "pairs_there_are": total,
        "excluded": excluded,
        "without_margin": considered - excluded - len(pairs),
    }
    record = make_record("select", settings, seed=args.seed, data_hash=data_hash(table), metrics=metrics)
    write_record(folder, record)
    return record


def candidates_of(
    source: RewardSource,
    rows: Float[Tensor, "completions columns"],
    prompts: Int[Tensor, "completions"],
    pairs: Int[Tensor, "pairs 2"],
) -> Candidates:
    """Margins of all pairs; pairs whose margin or variance is unknown are left out.

    Raises:
        DataError: no margin is known. VarianceError: the source has one member.
    """
    parts = [source.margins(rows[some[:, 0]], rows[some[:, 1]]) for some in pairs.split(_CHUNK)]
    mean = torch.cat([part.mean for part in parts])
    variance = torch.cat([part.variance for part in parts])
    known = ~(mean.isnan() | variance.isnan())
    if not bool(known.any()):
        raise DataError(f"'{source.name}' gives no pair a margin with a variance")
    return Candidates(source, rows, prompts, pairs[known], MarginEstimate(mean[known], variance[known]))


def choose(
    rule: str, candidates: Candidates, count: int, seed: int, *, kappa: float = 1.0, draws: int = 128
) -> Int[Tensor, "count"]:
    """Indices of the pairs that a rule chooses, best first.

    Raises:
        ConfigError: an unknown rule, too few candidates, or a source without what the rule needs.
    """
    mean, variance, pairs = candidates.margins.mean, candidates.margins.variance, candidates.pairs
    match rule:
        case "margin_variance":
            return rules.margin_variance(variance, count, seed)
        case "expected_information":
            return rules.expected_information(mean, variance, count, seed)
        case "d_optimal":
            return rules.d_optimal(_whitened(candidates), mean, count, seed)
        case "double_thompson":
            rewards = _posterior_rewards(candidates, draws, seed)
            return rules.double_thompson(rewards, pairs, candidates.prompts, count, seed)
        case "upper_confidence_margin":
            return rules.upper_confidence_margin(mean, variance, count, seed, kappa)
        case "delta_ucb":
            return rules.delta_ucb(*_rewards(candidates), pairs, count, seed, kappa)
        case "random":
            return rules.random_pairs(len(pairs), count, seed)
    raise ConfigError(f"rule must be one of {', '.join(RULES)}, got '{rule}'")


def _whitened(candidates: Candidates) -> Float[Tensor, "pairs features"]:
    """Rows whose squared length is the margin's variance: of the posterior, or members' deviations from their mean."""
    source, rows, pairs = candidates.source, candidates.rows, candidates.pairs
    if isinstance(source, GaussianSource):
        sizes = [term.size for term in source.terms]
        whole = torch.empty(len(pairs), sum(sizes), dtype=torch.float64)
        for start in range(0, len(pairs), _CHUNK):
            some = pairs[start : start + _CHUNK]
            parts = (rows[some[:, 0], 1:].double() - rows[some[:, 1], 1:].double()).split(sizes, dim=1)
            white = [rules.whiten(x, term.covariance) for x, term in zip(parts, source.terms, strict=True)]
            whole[start : start + _CHUNK] = torch.cat(white, dim=1)
        return whole.mul_(source.variance_factor**0.5)
    members = _members(candidates, "d_optimal")
    margins = members[pairs[:, 0]] - members[pairs[:, 1]]
    freedom = (~margins.isnan()).sum(dim=1, keepdim=True, dtype=torch.float64) - 1
    deviations = (margins - margins.nanmean(dim=1, keepdim=True)).nan_to_num(0.0)
    return deviations * (source.variance_factor / freedom).sqrt()


def _posterior_rewards(candidates: Candidates, draws: int, seed: int) -> Float[Tensor, "completions draws"]:
    if isinstance(candidates.source, GaussianSource):
        return candidates.source.sample_members(candidates.rows, draws, seed)
    return _members(candidates, "double_thompson")


def _members(candidates: Candidates, rule: str) -> Float[Tensor, "completions members"]:
    members = candidates.source.members_of(candidates.rows)
    if members is None:
        raise ConfigError(
            f"rule {rule} needs a posterior over weights or members, which '{candidates.source.name}' doesn't have; "
            "choose another rule"
        )
    return members


def _rewards(candidates: Candidates) -> tuple[Float[Tensor, "completions"], Float[Tensor, "completions"]]:
    """Mean and variance of each completion's reward, anchored by its prompt's own completions."""
    source, anchors = candidates.source, group_anchors(candidates.rows, candidates.prompts)
    if source.calibration is None:
        source.calibrate(candidates.rows, anchors)
    estimate = source.estimate(candidates.rows, anchors)
    return estimate.mean, estimate.variance


def _not_excluded(
    pairs: Int[Tensor, "pairs 2"], prompts: Sequence[Text], texts: Sequence[Text], files: Sequence[str]
) -> Int[Tensor, "pairs 2"]:
    """The pairs that none of the files holds."""
    held = {pair.id for file in files for pair in read_pairs(file)}
    if not held:
        return pairs
    kept = [pair_id(prompts[first], texts[first], texts[second]) not in held for first, second in pairs.tolist()]
    if not any(kept):
        raise DataError("all candidate pairs are in the files of exclude; draw new completions")
    return pairs[torch.tensor(kept)]


def _picked(margins: MarginEstimate | None, chosen: Int[Tensor, "count"]) -> list[tuple[float | None, float | None]]:
    if margins is None:
        return [(None, None)] * len(chosen)
    return list(zip(margins.mean[chosen].tolist(), margins.variance[chosen].tolist(), strict=True))


def _lines(
    args: SelectArguments,
    prompts: Sequence[Text],
    texts: Sequence[Text],
    pairs: Int[Tensor, "count 2"],
    margins: list[tuple[float | None, float | None]],
) -> str:
    """One line for each pair; which completion comes first is random, so that the file's order tells nothing."""
    swap = torch.randint(2, (len(pairs),), generator=torch.Generator().manual_seed(args.seed)).tolist()
    lines = []
    for rank, ((first, second), (mean, variance)) in enumerate(zip(pairs.tolist(), margins, strict=True)):
        a, b = (second, first) if swap[rank] else (first, second)
        row = {
            "pair": pair_id(prompts[a], texts[a], texts[b]),
            "prompt": prompts[a],
            "completion_a": texts[a],
            "completion_b": texts[b],
            "rule": args.rule,
            "rank": rank,
            "margin_mean": -mean if swap[rank] and mean is not None else mean,
            "margin_variance": variance,
        }
        lines.append(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
    return "".join(lines)
