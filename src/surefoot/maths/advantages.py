"""Advantages from rewards, as RLOO and GRPO define them; what a trainer's own advantages are compared with."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

__all__ = ["group_relative", "leave_one_out"]


def leave_one_out(rewards: Float[Tensor, "batch"], group_size: int) -> Float[Tensor, "batch"]:
    """RLOO's advantages: each reward minus the mean of its scored siblings; 0 where unscored or without siblings.

    Source: Ahmadian et al., arXiv:2402.14740, eq. 6.

    >>> import torch
    >>> leave_one_out(torch.tensor([1.0, 2.0, 6.0]), 3).tolist()
    [-3.0, -1.5, 4.5]
    """
    grouped = rewards.view(-1, group_size)
    others = (~grouped.isnan()).sum(dim=1, keepdim=True) - 1
    baseline = (grouped.nansum(dim=1, keepdim=True) - grouped) / others
    return (grouped - baseline).nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).reshape(-1)


def group_relative(rewards: Float[Tensor, "batch"], group_size: int, scale: str = "none") -> Float[Tensor, "batch"]:
    """GRPO's advantages: each reward minus the mean of its group's scored rows; 0 where unscored.

    Source: Shao et al., arXiv:2402.03300, with the scaling left out (arXiv:2503.20783) or taken over the group or the
    batch (sample standard deviation + 1e-4, as TRL does).

    Args:
        scale: "none", "group" or "batch".

    >>> import torch
    >>> group_relative(torch.tensor([1.0, 2.0, 6.0]), 3).tolist()
    [-2.0, -1.0, 3.0]
    """
    grouped = rewards.view(-1, group_size)
    centred = grouped - grouped.nanmean(dim=1, keepdim=True)
    if scale != "none":
        of = grouped if scale == "group" else rewards.view(1, -1)
        count = (~of.isnan()).sum(dim=1, keepdim=True)
        square = (of - of.nanmean(dim=1, keepdim=True)).square().nansum(dim=1, keepdim=True)
        centred = centred / ((square / (count - 1)).sqrt() + 1e-4)
    return centred.nan_to_num(nan=0.0).reshape(-1)
