"""Train the shared trunk together with its heads, after the heads alone have been fitted to it.

Source: Kumar et al., arXiv:2202.10054: fitting the heads first keeps the trunk's features from being distorted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.rewards.kinds.heads.source import Heads
from surefoot.rewards.trunk.batching import forward_tokens, padded
from surefoot.rewards.trunk.bradley_terry_loop import Pair, PairRun, Plan, micro_batches
from surefoot.rewards.trunk.feature_cache import Pooling

__all__ = ["pooled_states", "train_trunk"]


def train_trunk(
    trunk: Any,
    heads: Heads,
    rows: Sequence[Pair],
    weights: Float[Tensor, "pairs members"],
    margins: Float[Tensor, "pairs"],
    plan: Plan,
    *,
    learning_rate: float,
    weight_decay: float,
    pooling: Pooling,
    layer: int,
    pad_token_id: int,
    receipt: str,
    directory: Path | None = None,
    max_grad_norm: float = 1.0,
    on_step: Callable[[float], None] | None = None,
) -> None:
    """Minimise the members' mean weighted Bradley-Terry loss over trunk and heads, in place, in fp32.

    Dropout stays off: members differ by their weights and their data. The heads keep their standardisation.

    Args:
        rows: token ids of both sides.
        weights: how much each pair counts for each head.
        margins: in reward.
        directory: keeps a checkpoint; the same `receipt` goes on from it.
        on_step: called with the share done.
    """
    device, dtype = trunk.device, next(trunk.parameters()).dtype
    trunk.float().requires_grad_(True)
    heads.to(device)
    named = {f"trunk.{name}": value for name, value in trunk.named_parameters()}
    tops = {f"heads.{name}": value for name, value in heads.named_parameters()}
    run = PairRun([(named, learning_rate, 0.0), (tops, learning_rate, weight_decay)], plan, directory, receipt)
    tokens = forward_tokens(device)
    for step, batch in run.remaining():
        for part in micro_batches(rows, batch, tokens):
            ids, mask = padded([side for i in part for side in rows[i]], pad_token_id, device)
            scores = heads(pooled_states(trunk, ids, mask, pooling, layer))
            difference = scores[0::2] - scores[1::2] - margins[part, None].to(scores)
            loss = torch.nn.functional.softplus(-difference) * weights[part].to(scores)
            (loss.mean(dim=1).sum() / len(batch)).backward()
        torch.nn.utils.clip_grad_norm_(run.parameters.values(), max_grad_norm)
        run.update(step)
        if on_step is not None:
            on_step((step + 1) / run.steps)
    trunk.to(dtype).requires_grad_(False)
    heads.to("cpu")


def pooled_states(
    trunk: Any, ids: Tensor, mask: Tensor, pooling: Pooling, layer: int
) -> Float[Tensor, "rows features"]:
    """What `compute_features` gives, for one batch padded on the right, with a gradient."""
    extra: dict[str, Any] = {"output_hidden_states": True} if layer != -1 else {}
    if hasattr(trunk.config, "use_cache"):
        extra["use_cache"] = False
    out = trunk(input_ids=ids, attention_mask=mask, **extra)
    states: Tensor = out.last_hidden_state if layer == -1 else out.hidden_states[layer]
    if pooling == "cls":
        return states[:, 0]
    if pooling == "last":
        return states[torch.arange(len(ids), device=ids.device), mask.sum(dim=1) - 1]
    share = mask[:, :, None].float()
    return (states.float() * share).sum(dim=1) / share.sum(dim=1)
