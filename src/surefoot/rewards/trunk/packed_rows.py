"""Compute rows that begin alike as one sequence: their beginning once, then each row's rest.

A mask lets every rest see the beginning and itself, so the result is that of the plain forward up to rounding. Against
`prefix_cache` there is one forward instead of two and nothing is padded inside a sequence, but attention is computed
over the whole sequence: it is for few rows of a beginning, as the two sides of a pair.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from surefoot.rewards.trunk.batching import padded
from surefoot.rewards.trunk.prefix_cache import groups_of

__all__ = ["PackedRow", "forward_packed", "pack", "sees_all"]


@dataclass(frozen=True, slots=True)
class PackedRow:
    """Rows that begin alike, as one sequence.

    Args:
        numbers: of the rows.
        shared: tokens that all of them begin with; each row has at least one more.
        ids: the shared tokens, then each row's own.
        starts: where in `ids` each row's own tokens begin.
    """

    numbers: list[int]
    shared: int
    ids: list[int]
    starts: list[int]

    def place(self, row: int, at: int) -> int:
        """Where in `ids` position `at` of the row with this index lies."""
        return at if at < self.shared else self.starts[row] + at - self.shared

    def owners(self) -> list[int]:
        """Of each token: the index of the row that it belongs to, −1 for a shared one."""
        ends = [*self.starts[1:], len(self.ids)]
        own = [row for row, (start, end) in enumerate(zip(self.starts, ends, strict=True)) for _ in range(end - start)]
        return [-1] * self.shared + own


def pack(rows: list[list[int]], keys: Sequence[Any], tokens: int) -> tuple[list[list[PackedRow]], list[int]]:
    """Pack rows with equal keys that begin alike: (batches of sequences, numbers of the rows that share nothing).

    Args:
        rows: token ids.
        keys: rows with equal keys begin alike.
        tokens: computed tokens of a batch, about.
    """
    groups, alone = groups_of(rows, keys)
    packed = sorted((_packed(rows, *group) for group in groups), key=lambda row: -len(row.ids))
    return list(_batches(packed, tokens)), alone


def _packed(rows: list[list[int]], shared: int, numbers: list[int]) -> PackedRow:
    ids, starts = list(rows[numbers[0]][:shared]), []
    for number in numbers:
        starts.append(len(ids))
        ids += rows[number][shared:]
    return PackedRow(numbers, shared, ids, starts)


def _batches(packed: list[PackedRow], tokens: int) -> Iterator[list[PackedRow]]:
    start = 0
    while start < len(packed):
        count = max(1, tokens // len(packed[start].ids))
        yield packed[start : start + count]
        start += count


def sees_all(trunk: Any, longest: int) -> bool:
    """Whether each token of a row of `longest` tokens sees all before it: a mask of ours overrides sliding windows."""
    config = trunk.config.get_text_config()
    windows = (getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size"))
    return all(window is None or longest <= window for window in windows)


def forward_packed(
    trunk: Any, batch: list[PackedRow], pad_token_id: int, *, output_hidden_states: bool = False
) -> tuple[Any, Int[Tensor, "batch length"]]:
    """Run the trunk on a batch: (its output, the owner of each token, −1 shared and −2 padding)."""
    device = trunk.device
    ids = padded([row.ids for row in batch], pad_token_id, device)[0]
    owners = torch.full_like(ids, -2)
    positions = torch.zeros_like(ids)
    for place, row in enumerate(batch):
        owner = torch.tensor(row.owners(), device=device)
        owners[place, : len(owner)] = owner
        first = torch.tensor([0, *row.starts], device=device)[owner + 1]
        along = torch.arange(len(owner), device=device) - first
        positions[place, : len(owner)] = torch.where(owner < 0, along, along + row.shared)
    out = trunk(
        input_ids=ids,
        attention_mask=_mask(owners, trunk.dtype),
        position_ids=positions,
        use_cache=False,
        output_hidden_states=output_hidden_states,
    )
    return out, owners


def _mask(owners: Int[Tensor, "batch length"], dtype: torch.dtype) -> Float[Tensor, "batch 1 length length"]:
    """0 where a token sees another, else the lowest number; padding sees itself, so that no row is empty."""
    sees = (owners[:, None, :] == -1) | (owners[:, None, :] == owners[:, :, None])
    sees = sees.tril()
    return torch.zeros(sees.shape, dtype=dtype, device=owners.device).masked_fill(~sees, torch.finfo(dtype).min)[
        :, None
    ]
