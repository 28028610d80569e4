"""Rows of token ids in batches of like length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["forward_tokens", "length_sorted_batches", "padded"]


def length_sorted_batches(
    rows: list[list[int]], *, pad_token_id: int, tokens: int | None = None, device: torch.device
) -> Iterator[tuple[list[int], Int[Tensor, "batch length"], Int[Tensor, "batch length"]]]:
    """Batches of at most about `tokens` computed tokens (None takes `forward_tokens`), longest first.

    Yields:
        (row numbers, input ids, attention mask); ids are padded on the right.
    """
    order = sorted(range(len(rows)), key=lambda i: -len(rows[i]))
    limit = forward_tokens(device) if tokens is None else tokens
    start = 0
    while start < len(order):
        longest = max(len(rows[order[start]]), 1)
        batch = order[start : start + max(1, limit // longest)]
        yield batch, *padded([rows[row] for row in batch], pad_token_id, device)
        start += len(batch)


def padded(
    rows: list[list[int]], pad_token_id: int, device: torch.device
) -> tuple[Int[Tensor, "batch length"], Int[Tensor, "batch length"]]:
    """(input ids, attention mask) of rows, padded on the right to the longest."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), max(longest, 1)), pad_token_id)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[place, : len(row)] = 1
    return ids.to(device), mask.to(device)


def forward_tokens(device: torch.device, members: int = 1) -> int:
    """Rows × length of one forward: on a CPU what its cache holds (measured), else what keeps an accelerator busy.

    Args:
        members: how many members' activations a row stands for.
    """
    if device.type == "cpu":
        return 1024 if members == 1 else max(1, 2048 // members)
    return max(1, 131_072 // members)
