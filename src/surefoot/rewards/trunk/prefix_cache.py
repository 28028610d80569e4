"""Compute the keys and values of a prompt once for all its completions.

Only tokens that are equal are shared, so the result is that of the plain forward up to rounding.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import DynamicCache

from surefoot.rewards.trunk.batching import padded

__all__ = ["SharedBatch", "can_share", "forward_shared", "groups_of", "plan"]

_SHORTEST = 16
"""Fewest tokens of a shared prefix; for shorter ones a second forward isn't worth it."""


@dataclass(frozen=True, slots=True)
class SharedBatch:
    """A batch of prompts with all their rows.

    Args:
        rows: numbers of the rows, prompt by prompt.
        owner: which prompt of the batch each row belongs to.
        prefixes, rests: token ids of each prompt's shared part, and of each row's own part (never empty).
    """

    rows: list[int]
    owner: list[int]
    prefixes: list[list[int]]
    rests: list[list[int]]


def can_share(trunk: Any) -> bool:
    """Whether the trunk looks like a decoder with a key-value cache; `read_states` tests it before use."""
    config = trunk.config.get_text_config()
    return hasattr(trunk, "layers") and getattr(config, "use_cache", None) is not None


def plan(rows: list[list[int]], keys: Sequence[Any], tokens: int) -> tuple[list[SharedBatch], list[int]]:
    """Divide rows into batches that share prefixes and the numbers of the rows that share nothing.

    Args:
        rows: token ids.
        keys: rows with the same key answer the same prompt.
        tokens: computed tokens of a batch, about.
    """
    groups, alone = groups_of(rows, keys)
    groups.sort(key=lambda group: (-group[0], -max(len(rows[i]) for i in group[1])))
    return list(_batches(rows, groups, tokens)), alone


def groups_of(rows: list[list[int]], keys: Sequence[Any]) -> tuple[list[tuple[int, list[int]]], list[int]]:
    """Group rows that share a prefix: (of each group the tokens shared and the rows' numbers, rows left alone)."""
    index: dict[Any, list[int]] = {}
    for i, key in enumerate(keys):
        index.setdefault(key, []).append(i)
    alone: list[int] = []
    groups: list[tuple[int, list[int]]] = []
    for members in index.values():
        length = _common([rows[i] for i in members]) if len(members) > 1 else 0
        if length < _SHORTEST:
            alone += members
        else:
            groups.append((length, members))
    return groups, alone


def _common(rows: list[list[int]]) -> int:
    """Number of tokens that all rows begin with, less than the shortest row's length."""
    shortest = min(len(row) for row in rows)
    same = (len(set(column)) == 1 for column in zip(*rows, strict=False))
    first = next(groupby(same), None)
    length = len(list(first[1])) if first is not None and first[0] else 0
    return min(length, shortest - 1)


def _batches(rows: list[list[int]], groups: list[tuple[int, list[int]]], tokens: int) -> Iterator[SharedBatch]:
    batch: list[tuple[int, list[int]]] = []
    for group in groups:
        trial = [*batch, group]
        longest = max(len(rows[i]) - length for length, members in trial for i in members)
        count = sum(len(members) for _, members in trial)
        if batch and len(trial) * trial[0][0] + count * longest > tokens:
            yield _batch(rows, batch)
            batch = []
        batch.append(group)
    if batch:
        yield _batch(rows, batch)


def _batch(rows: list[list[int]], groups: list[tuple[int, list[int]]]) -> SharedBatch:
    numbers = [i for _, members in groups for i in members]
    return SharedBatch(
        rows=numbers,
        owner=[place for place, (_, members) in enumerate(groups) for _ in members],
        prefixes=[rows[members[0]][:length] for length, members in groups],
        rests=[rows[i][length:] for length, members in groups for i in members],
    )


def forward_shared(
    trunk: Any, batch: SharedBatch, pad_token_id: int, *, output_hidden_states: bool = False
) -> tuple[Any, Int[Tensor, "prompts before"], Any, Int[Tensor, "rows after"]]:
    """Run the trunk on prefixes, then on rests: (output on prefixes, their mask, output on rests, their mask).

    Prefixes are padded on the left, so that the rests follow them directly; rests on the right. Inside `replicated`
    the outputs have K times the rows, member by member.
    """
    device = trunk.device
    before, before_mask = (x.flip(1) for x in padded([row[::-1] for row in batch.prefixes], pad_token_id, device))
    after, after_mask = padded(batch.rests, pad_token_id, device)
    owner = torch.tensor(batch.owner, device=device)
    cache = DynamicCache(config=trunk.config)
    name = "cache" if "cache" in inspect.signature(trunk.forward).parameters else "past_key_values"  # to 5.23
    keywords = {name: cache, "use_cache": True, "output_hidden_states": output_hidden_states}
    positions = (before_mask.cumsum(1) - 1).clamp(min=0)
    first = trunk(input_ids=before, attention_mask=before_mask, position_ids=positions, **keywords)
    for layer in cache.layers:
        copies = layer.keys.shape[0] // len(before)
        chosen = (torch.arange(copies, device=device)[:, None] * len(before) + owner).flatten()
        layer.keys, layer.values = layer.keys[chosen], layer.values[chosen]
    lengths = before_mask.sum(1)[owner]
    positions = lengths[:, None] + torch.arange(after.shape[1], device=device)
    mask = torch.cat([before_mask[owner], after_mask], dim=1)
    second = trunk(input_ids=after, attention_mask=mask, position_ids=positions, **keywords)
    return first, before_mask, second, after_mask
