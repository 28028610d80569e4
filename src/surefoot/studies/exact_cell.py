"""Run a cell with `trainer: exact`: the exact optimal policy on sampled candidates, without training."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.forecast.candidates import FEWEST, Texts, group_texts
from surefoot.forecast.evaluate import gains_of, objective_policies
from surefoot.forecast.objectives import served_by
from surefoot.forecast.policies import Policies, largest_budget
from surefoot.forecast.scored import Candidates, source_candidates
from surefoot.maths.objectives import Objective, weights
from surefoot.rewards.source import RewardSource
from surefoot.run_records import TrajectoryRow
from surefoot.studies.config import objective_of
from surefoot.studies.evaluation import reference_of
from surefoot.studies.settings import Setting

__all__ = ["EXACT_SETTINGS", "ExactRun", "candidates_of", "check_exact", "run_exact"]

EXACT_SETTINGS = ("candidates", "max_completion_length")
"""What `policy` of a study may hold with this trainer."""
_STEPS = 12
"""Budgets on the way to the cell's own, which make its trajectory."""


@dataclass(frozen=True)
class ExactRun:
    """The result of an exact policy: its trajectory over budgets, gains and samples.

    Args:
        trajectory: a row for each budget up to the cell's, as of a trained run.
        gains: of each evaluation prompt that has enough usable candidates.
        level: mean true reward of the reference policy over these prompts.
        reference: the candidates with their true rewards. final: some of them, drawn from the policy.
    """

    trajectory: tuple[TrajectoryRow, ...]
    gains: list[float]
    level: float
    reference: dict[str, Any]
    final: dict[str, Any]


def check_exact(policy: dict[str, Any], kl_budgets: tuple[float | None, ...]) -> None:
    """Refuse what exact policies can't do, before any work.

    Raises:
        ConfigError: a budget is missing, or beyond what the candidates carry.
    """
    count = policy.get("candidates", 64)
    if not isinstance(count, int) or count < FEWEST:
        raise ConfigError(f"policy.candidates must be a whole number of at least {FEWEST}, got {count!r}")
    for budget in kl_budgets:
        if budget is None:
            raise ConfigError("trainer: exact finds the policy of a KL budget; give kl_budgets")
        if budget > largest_budget(count):
            raise ConfigError(
                f"trainer: exact with {count} candidates carries budgets up to ln n − 1 = {largest_budget(count):.2f} "
                f"nats, not {budget:g}; give more (policy: {{candidates: {math.ceil(math.exp(budget + 1))}}})"
            )


def candidates_of(setting: Setting, work: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The candidates of a study with their true rewards, as of `reference_of`, drawn at the first call."""
    policy, prompts = work["policy"], len(setting.evaluation_prompts)
    return reference_of(setting, folder, policy["candidates"] * prompts, policy["max_completion_length"])


def run_exact(setting: Setting, work: dict[str, Any], folder: Path, source: RewardSource) -> ExactRun:
    """The exact policy of a cell on `candidates` completions of each evaluation prompt, drawn once a study.

    Raises:
        ConfigError: no policy of the objective has the budget's KL on the candidates.
    """
    reference = candidates_of(setting, work, folder)
    texts = group_texts(reference["prompts"], reference["completions"])
    gold = torch.tensor([math.nan if value is None else value for value in reference["gold"]], dtype=torch.float64)
    scored = source_candidates(source, texts, source.score(texts.prompts, texts.completions), gold[texts.order])
    assert scored.truth is not None
    candidates, truth = scored.candidates, scored.truth
    objective = served_by(objective_of(work["method"]), candidates.estimate)
    budgets = [work["kl_budget"] * (step + 1) / _STEPS for step in range(_STEPS)]
    policies = objective_policies(candidates, objective, budgets)
    if not bool(policies.reached[-1]):
        raise ConfigError(f"no policy of {work['method']} has a KL of {work['kl_budget']:g} nats on the candidates")
    gains = gains_of(policies.policy, truth[..., None], candidates.log_reference)[..., 0]
    level = _mean(candidates.log_reference.exp(), truth)
    chosen = _draw(policies.policy[-1], work["samples_kept"], work["seed"])
    places = texts.places[scored.kept]
    return ExactRun(
        trajectory=_trajectory(candidates, objective, policies, gains.mean(dim=1) + level, level),
        gains=gains[-1].tolist(),
        level=level,
        reference=reference,
        final=_rows(texts, gold[texts.order], [int(places[prompt, place]) for prompt, place in chosen]),
    )


def _trajectory(
    candidates: Candidates, objective: Objective, policies: Policies, gold: Float[Tensor, "budgets"], level: float
) -> tuple[TrajectoryRow, ...]:
    """Rows as of a trained run, from the reference to the cell's budget; a budget out of reach is left out."""
    estimate, under = candidates.estimate, [candidates.log_reference.exp(), *policies.policy]
    seen = {"proxy": candidates.table(estimate.mean)}
    if estimate.has_variance:
        seen["variance"] = candidates.table(estimate.variance)
    if objective.weights == "variance" and candidates.reference_variance is not None:
        bounds = (objective.weight_floor, objective.weight_ceiling)
        seen["weight"] = candidates.table(weights(estimate.variance, candidates.reference_variance, *bounds))
    kl, beta = [0.0, *policies.kl.tolist()], [None, *policies.beta.tolist()]
    true = [level, *gold.tolist()]
    return tuple(
        TrajectoryRow(
            step=step + 1,
            kl=kl[step],
            gold=true[step],
            beta=beta[step],
            **{name: _mean(under[step], values) for name, values in seen.items()},
        )
        for step in range(len(under))
        if math.isfinite(kl[step])
    )


def _mean(policy: Float[Tensor, "prompts candidates"], values: Float[Tensor, "prompts candidates"]) -> float:
    return float((policy * values).sum(dim=1).mean())


def _draw(policy: Float[Tensor, "prompts candidates"], count: int, seed: int) -> list[tuple[int, int]]:
    """(prompt, candidate) of `count` draws from the policy, the prompts in turn."""
    stream = torch.Generator().manual_seed(seed)
    prompts = [i % len(policy) for i in range(count)]
    return [(prompt, int(torch.multinomial(policy[prompt], 1, generator=stream))) for prompt in prompts]


def _rows(texts: Texts, gold: Float[Tensor, "rows"], rows: list[int]) -> dict[str, Any]:
    return {
        "prompts": [texts.prompts[row] for row in rows],
        "completions": [texts.completions[row] for row in rows],
        "gold": [float(gold[row]) for row in rows],
    }
