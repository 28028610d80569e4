"""Forecast what training against a reward would give: exact policies of every objective on drawn candidates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.errors import ConfigError, VarianceError
from surefoot.forecast.candidates import Texts
from surefoot.forecast.draws import Draws, draw_errors, other_run
from surefoot.forecast.evaluate import (
    Outcomes,
    Resampling,
    judge_by_draws,
    judge_by_gold,
    objective_policies,
)
from surefoot.forecast.objectives import named_objectives
from surefoot.forecast.policies import Policies, largest_budget
from surefoot.forecast.recommend import RULES, recommend
from surefoot.forecast.scored import Candidates, source_candidates
from surefoot.maths.best_of_n import best_of_n_curve, best_of_n_kl
from surefoot.maths.objectives import Objective, aggregate
from surefoot.rewards.source import RewardSource
from surefoot.types import RewardEstimate

__all__ = ["forecast_scores"]

_BUDGETS = 12


def forecast_scores(
    source: RewardSource,
    texts: Texts,
    scores: Float[Tensor, "rows columns"],
    *,
    gold: Float[Tensor, "rows"] | None = None,
    objectives: Sequence[str] | None = None,
    kl_budgets: Sequence[float] | None = None,
    draws: int = 64,
    runs: int = 16,
    seed: int = 0,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The forecast of one source on scored candidates, as plain JSON values.

    The source is calibrated on the candidates, as a trainer does on its reference samples.

    Args:
        texts: of `group_texts`. scores: of `source.score`, in the order of its rows.
        gold: (rows,) true rewards, NaN where unknown.
        objectives: presets, with a parameter after a colon ("lcb:2"); None takes all that the source can serve.
        kl_budgets: in nats; None takes twelve up to ln n − 1.
        draws: other rewards that the preferences could have given. runs: how many of them make a policy.

    Raises:
        ConfigError: an unknown objective, or a budget beyond ln n − 1. DataError: too few candidates were scored.
        VarianceError: an objective needs what the source doesn't have; or neither a variance nor gold is there.
    """
    seen = source_candidates(source, texts, scores, gold)
    candidates, truth = seen.candidates, seen.truth
    kept = int((candidates.log_reference > -torch.inf).sum(dim=1).min())
    budgets = _budgets(kl_budgets, kept)
    named = named_objectives(candidates.estimate, objectives)
    sampled = None
    if candidates.estimate.has_variance:
        sampled = draw_errors(source, seen.rows, candidates.estimate, draws, seed)
    elif truth is None:
        raise VarianceError(
            f"'{source.name}' has no variance, so nothing tells how wrong it may be; give a source with a variance, "
            "or the true reward (gold)"
        )
    outcomes = _rows(candidates, named, budgets, truth, sampled, runs, seed, on_progress)
    notes = {} if source.calibration is None else source.calibration.notes
    return {
        "source": source.name,
        "prompts": len(candidates.log_reference),
        "candidates": kept,
        "prompts_left_out": texts.left_out + int((~seen.kept).sum()),
        "reliability": notes.get("reliability"),
        "weight_cv": notes.get("weight_cv"),
        "draws": None if sampled is None else {"origin": sampled.origin, "count": sampled.count,
                                               "runs": min(runs, sampled.count)},
        "gold": truth is not None,
        "baseline": next(iter(named)),
        "kl_budgets": budgets,
        "largest_budget": largest_budget(kept),
        "rows": outcomes,
        "best_of_n": _best_of_n(candidates, named, truth, sampled, runs, seed),
        "rules": RULES,
        "recommendation": recommend(outcomes, "draws" if truth is None else "gold"),
    }  # fmt: skip


def _budgets(given: Sequence[float] | None, candidates: int) -> list[float]:
    """The KL budgets, none beyond what the candidates carry."""
    most = largest_budget(candidates)
    if given is None:
        return [round(most * (k + 1) / _BUDGETS, 4) for k in range(_BUDGETS - 1)] + [most]
    budgets = sorted(set(given))
    if not budgets or budgets[0] <= 0:
        raise ConfigError("KL budgets must be positive, in nats")
    if budgets[-1] > most:
        needed = math.ceil(math.exp(budgets[-1] + 1))
        raise ConfigError(
            f"{candidates} candidates of a prompt carry a budget of at most ln n − 1 = {most:.2f} nats, not "
            f"{budgets[-1]:g}; draw {needed:,} of each (n), or ask for less"
        )
    return budgets


def _rows(
    candidates: Candidates,
    named: dict[str, Objective],
    budgets: list[float],
    truth: Float[Tensor, "prompts candidates"] | None,
    draws: Draws | None,
    runs: int,
    seed: int,
    on_progress: Callable[[int, int], None] | None,
) -> list[dict[str, Any]]:
    """One row for each objective and budget."""
    prompts = len(candidates.log_reference)
    alone = Resampling(1, prompts, seed)
    many = None if draws is None else Resampling(min(runs, draws.count), prompts, seed)
    rows: list[dict[str, Any]] = []
    plain: dict[str, Outcomes] = {}
    for done, (name, objective) in enumerate(named.items()):
        policies = objective_policies(candidates, objective, budgets)
        figures: dict[str, list[dict[str, Any] | None]] = {
            "gold": [None] * len(budgets),
            "draws": [None] * len(budgets),
        }
        if truth is not None:
            outcomes = judge_by_gold(candidates, policies, truth)
            figures["gold"] = _figures(outcomes, alone, plain.setdefault("gold", outcomes))
        if draws is not None and many is not None:
            outcomes = judge_by_draws(candidates, objective, budgets, draws, runs)
            figures["draws"] = _figures(outcomes, many, plain.setdefault("draws", outcomes))
        rows += [
            _row(name, objective, place, budget, policies, candidates, truth)
            | {judge: values[place] for judge, values in figures.items()}
            for place, budget in enumerate(budgets)
        ]
        if on_progress is not None:
            on_progress(done + 1, len(named))
    return rows


def _figures(outcomes: Outcomes, resampling: Resampling, plain: Outcomes) -> list[dict[str, Any] | None]:
    """What a judge says of an objective, an entry for each budget; `versus` is the gain over the first objective's."""
    rows: list[dict[str, Any] | None] = []
    for place in range(outcomes.gains.shape[1]):
        judged = resampling.judged(outcomes, place)
        versus = None if outcomes is plain else resampling.mean(outcomes.gains[:, place] - plain.gains[:, place])
        rows.append(
            {
                "gain": judged.gain.to_dict(),
                "risk": judged.risk.to_dict(),
                "prompt_risk": judged.prompt_risk.to_dict(),
                "spread": _known(judged.spread),
                "versus": None if versus is None else versus.to_dict(),
            }
        )
    return rows


def _row(
    name: str,
    objective: Objective,
    place: int,
    budget: float,
    policies: Policies,
    candidates: Candidates,
    truth: Float[Tensor, "prompts candidates"] | None,
) -> dict[str, Any]:
    """The source's own policy: how it is reached, and what it promises of its own reward and keeps of the true one."""
    proxy = candidates.table(candidates.estimate.mean)
    promised = _standardised_gain(policies.policy[place], proxy, candidates.log_reference)
    kept = None if truth is None else _standardised_gain(policies.policy[place], truth, candidates.log_reference)
    return {
        "objective": name,
        "preset": name.partition(":")[0],
        "aggregate_parameter": objective.parameter,
        "kl_budget": budget,
        "kl": _known(float(policies.kl[place])),
        "beta": _known(float(policies.beta[place])),
        "effective": _known(float(policies.effective[place])),
        "promised": _known(promised),
        "gap": None if kept is None else _known(promised - kept),
    }


def _standardised_gain(
    policy: Float[Tensor, "prompts candidates"],
    reward: Float[Tensor, "prompts candidates"],
    log_reference: Float[Tensor, "prompts candidates"],
) -> float:
    """Mean gain in standard deviations of the reward within a prompt, so that two rewards can be compared."""
    reference = log_reference.exp()
    centred = reward - (reference * reward).sum(dim=1, keepdim=True)
    deviation = (reference * centred.square()).sum(dim=1).mean().sqrt()
    return float((policy * centred).sum(dim=1).mean() / deviation)


def _best_of_n(
    candidates: Candidates,
    named: dict[str, Objective],
    truth: Float[Tensor, "prompts candidates"] | None,
    draws: Draws | None,
    runs: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Best of n by each reward without weights, on the same candidates: its KL, and its gain by each judge."""
    scored = candidates.log_reference > -torch.inf
    count = int(scored.sum(dim=1).min())
    ns = torch.tensor([2**k for k in range(1, count.bit_length()) if 2**k <= count])
    rows = []
    for name, objective in named.items():
        if objective.weights == "variance" or objective.within_groups:
            continue
        judges: dict[str, list[Tensor]] = {}
        if truth is not None:
            judges["gold"] = [_best_gains(candidates, candidates.estimate, objective, truth, ns)]
        if draws is not None:
            centre = candidates.table(candidates.estimate.mean)
            others = (other_run(candidates.estimate, draws, i) for i in range(min(runs, draws.count)))
            judges["draws"] = [_best_gains(candidates, other, objective, centre, ns) for other in others]
        for judge, runs_of_judge in judges.items():
            gains = torch.stack(runs_of_judge).numpy()
            resampling = Resampling(len(gains), len(scored), seed)
            rows += [
                {"objective": name, "judge": judge, "n": n, "kl": kl, "gain": resampling.mean(gains[..., i]).to_dict()}
                for i, (n, kl) in enumerate(zip(ns.tolist(), best_of_n_kl(ns).tolist(), strict=True))
            ]
    return rows


def _best_gains(
    candidates: Candidates,
    estimate: RewardEstimate,
    objective: Objective,
    truth: Float[Tensor, "prompts candidates"],
    ns: Int[Tensor, "choices"],
) -> Float[Tensor, "prompts choices"]:
    """True reward of the best of n by an objective's reward, over the mean of all candidates."""
    scored = candidates.log_reference > -torch.inf
    by = torch.where(scored, candidates.table(aggregate(estimate, objective)), torch.nan)
    return best_of_n_curve(by, truth, ns) - (candidates.log_reference.exp() * truth).sum(dim=1, keepdim=True)


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
