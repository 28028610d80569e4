"""Rows of token ids in batches of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["length_sorted_batches"]


def length_sorted_batches(
    rows: list[list[int]], *, pad_token_id: int, tokens: int = 8192, device: torch.device
) -> Iterator[tuple[list[int], Int[Tensor, "batch length"], Int[Tensor, "batch length"]]]:
    """Batches of at most about `tokens` computed tokens, longest first.

    Yields:
        (row numbers, input ids, attention mask); ids are padded on the right.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    start = 0
    while start < len(order):
        longest = max(len(rows[order[start]]), 1)
        batch = order[start : start + max(1, tokens // longest)]
        ids = torch.full((len(batch), longest), pad_token_id)
        mask = torch.zeros((len(batch), longest), dtype=torch.long)
        for place, row in enumerate(batch):
            ids[place, : len(rows[row])] = torch.tensor(rows[row])
            mask[place, : len(rows[row])] = 1
        yield batch, ids.to(device), mask.to(device)
        start += len(batch)
