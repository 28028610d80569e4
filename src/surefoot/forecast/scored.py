"""Candidates as a source sees them: rewards, variances and the reference policy over them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from surefoot.errors import DataError
from surefoot.forecast.candidates import FEWEST, Texts
from surefoot.forecast.policies import uniform_reference
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.source import RewardSource
from surefoot.types import RewardEstimate

__all__ = ["Candidates", "ScoredCandidates", "source_candidates"]


@dataclass(frozen=True, eq=False)
class Candidates:
    """The reference policy's candidates as a source sees them.

    Args:
        estimate: of (prompts · candidates) rows, a prompt's one after the other.
        log_reference: (prompts, candidates) ln π₀, −∞ where a candidate has no reward.
        reference_variance: s̄², mean variance of the candidates; None without a variance.
    """

    estimate: RewardEstimate
    log_reference: Float[Tensor, "prompts candidates"]
    reference_variance: float | None

    def table(self, rows: Float[Tensor, "rows *more"]) -> Float[Tensor, "prompts candidates *more"]:
        """(prompts · candidates, …) as (prompts, candidates, …), 0 where a candidate has no reward."""
        shape = self.log_reference.shape
        known = torch.where(self.estimate.scored.view(-1, *[1] * (rows.ndim - 1)), rows.to(torch.float64), 0.0)
        return known.view(*shape, *rows.shape[1:])


@dataclass(frozen=True, eq=False)
class ScoredCandidates:
    """What `source_candidates` gives.

    Args:
        candidates: of the prompts that were kept.
        rows: (prompts · candidates, columns) scored rows, NaN where a candidate isn't used.
        truth: (prompts, candidates) true rewards, 0 where a candidate isn't used; None without gold.
        kept: (prompts,) of all prompts, those with enough usable candidates.
    """

    candidates: Candidates
    rows: Float[Tensor, "rows columns"]
    truth: Float[Tensor, "prompts candidates"] | None
    kept: Bool[Tensor, "all"]


def source_candidates(
    source: RewardSource,
    texts: Texts,
    scores: Float[Tensor, "rows columns"],
    gold: Float[Tensor, "rows"] | None = None,
) -> ScoredCandidates:
    """Estimate candidates with their own prompt's candidates as the anchor, since the reference policy drew them.

    The source is calibrated on them, as a trainer does on its reference samples. Candidates without a reward, or
    without gold where it is given, aren't used.

    Args:
        texts: of `group_texts`. scores, gold: in the order of its rows; NaN where unknown.

    Raises:
        DataError: no prompt has enough usable candidates.
    """
    x = _table(scores, texts)
    true = None if gold is None else _table(gold[:, None], texts)[..., 0]
    usable = ~x.isnan().all(dim=2) & (True if true is None else ~true.isnan())
    kept = usable.sum(dim=1) >= FEWEST
    if not bool(kept.any()):
        raise DataError(f"no prompt has {FEWEST} completions that '{source.name}' (and gold) could score")
    rows = torch.where(usable[kept][..., None], x[kept], torch.nan).flatten(0, 1)
    anchors = group_anchors(rows, torch.arange(int(kept.sum())).repeat_interleave(x.shape[1]))
    calibration = source.calibrate(rows, anchors)
    estimate = source.estimate(rows, anchors)
    log_reference = uniform_reference(estimate.scored.view(-1, x.shape[1]))
    candidates = Candidates(estimate, log_reference, calibration.reference_variance)
    return ScoredCandidates(candidates, rows, None if true is None else true[kept].nan_to_num(0.0), kept)


def _table(values: Float[Tensor, "rows columns"], texts: Texts) -> Float[Tensor, "prompts candidates columns"]:
    """Rows by prompt and candidate; NaN where a prompt has fewer candidates."""
    table = values.to(torch.float64)[texts.places.clamp(min=0)]
    return torch.where((texts.places < 0)[..., None], torch.nan, table)
