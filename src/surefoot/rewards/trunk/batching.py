"""Batch rows of token ids by length, so that little of a batch is padding."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from jaxtyping import Int
from torch import Tensor

__all__ = ["forward_tokens", "length_sorted_batches", "padded"]


def length_sorted_batches(
    rows: list[list[int]], *, pad_token_id: int, tokens: int | None = None, device: torch.device
) -> Iterator[tuple[list[int], Int[Tensor, "batch length"], Int[Tensor, "batch length"]]]:
    """Batch rows by length, longest first, to about `tokens` computed tokens each (None takes `forward_tokens`).

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
    """Pad rows on the right to the longest: (input ids, attention mask)."""
    longest = max(len(row) for row in rows)
    ids = torch.full((len(rows), max(longest, 1)), pad_token_id)
    mask = torch.zeros_like(ids)
    for place, row in enumerate(rows):
        ids[place, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[place, : len(row)] = 1
    return ids.to(device), mask.to(device)


def forward_tokens(device: torch.device, members: int = 1) -> int:
    """Tokens (rows × length) of one forward: on a CPU what fits its cache (measured), else enough for an accelerator.

    Args:
        members: number of members whose activations each row is computed for.
    """
    if device.type == "cpu":
        return 1024 if members == 1 else max(1, 2048 // members)
    return max(1, 131_072 // members)
