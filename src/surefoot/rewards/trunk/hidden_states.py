"""Compute hidden states of token rows, at one position or averaged, with each shared prompt computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.rewards.trunk.batching import length_sorted_batches, padded
from surefoot.rewards.trunk.prefix_cache import SharedBatch, can_share, forward_shared, plan

__all__ = ["last_token", "read_states"]

_SHARES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether each trunk may reuse a shared prompt's key-value cache; tested once per model."""


@dataclass(frozen=True, slots=True)
class _Read:
    """A hidden state to read, at one position of each row, or averaged if `at` is None."""

    layer: int
    at: list[int] | None


def last_token(rows: list[list[int]]) -> list[int]:
    """Last position of each row."""
    return [len(row) - 1 for row in rows]


@torch.no_grad()
def read_states(
    trunk: Any,
    rows: list[list[int]],
    *,
    pad_token_id: int,
    tokens: int,
    read_at: list[int] | None = None,
    keys: Sequence[Any] | None = None,
    copies: int = 1,
    layer: int = -1,
    mean_layer: int | None = None,
    on_progress: Callable[[float], None] | None = None,
) -> Float[Tensor, "copies rows features"]:
    """Hidden states (copies, rows, features), float32 on the trunk's device, in the order of the rows.

    Averages are taken in float32 too, whatever the trunk's precision.

    Args:
        trunk: an `AutoModel`; inside `replicated`, `copies` is K.
        tokens: computed tokens of one forward, about.
        read_at: position of each row to read; None averages over its tokens.
        keys: rows with equal keys begin alike and share that part, if the trunk can; None shares nothing.
        layer: index into the hidden states, −1 the last.
        mean_layer: another hidden state, whose average over the row's tokens is appended to the features.
        on_progress: called with the share of rows done.
    """
    decoder = can_share(trunk)
    extra: dict[str, Any] = {"use_cache": False} if decoder else {}
    reads = [_Read(layer, read_at)] + ([] if mean_layer is None else [_Read(mean_layer, None)])
    if any(read.layer != -1 for read in reads):
        extra["output_hidden_states"] = True

    def plain(ids: Tensor, mask: Tensor, numbers: list[int]) -> Tensor:
        out = trunk(input_ids=ids, attention_mask=mask, **extra)
        return torch.cat([_read_plain(out, read, mask, numbers, copies) for read in reads], dim=-1)

    shared, alone = plan(rows, keys, tokens) if decoder and keys is not None else ([], list(range(len(rows))))
    if read_at is not None:
        alone += _unshare(shared, read_at, rows)
    if shared and trunk not in _SHARES:
        _SHARES[trunk] = _agrees(trunk, shared[0], rows, pad_token_id, reads, plain)
    if shared and not _SHARES[trunk]:
        shared, alone = [], list(range(len(rows)))
    parts: list[tuple[list[int], Tensor]] = []
    done = 0

    def add(numbers: list[int], states: Tensor) -> None:
        nonlocal done
        parts.append((numbers, states))
        done += len(numbers)
        if on_progress is not None:
            on_progress(done / len(rows))

    for batch in shared:
        add(batch.rows, _read_shared(trunk, batch, rows, pad_token_id, reads))
    some = [rows[i] for i in alone]
    batches = length_sorted_batches(some, pad_token_id=pad_token_id, tokens=tokens, device=trunk.device)
    for places, ids, mask in batches:
        numbers = [alone[place] for place in places]
        add(numbers, plain(ids, mask, numbers))
    width = len(reads) * trunk.config.get_text_config().hidden_size
    result = torch.empty(copies, len(rows), width, device=trunk.device)
    for numbers, values in parts:
        result[:, numbers] = values.float()
    return result


def _agrees(
    trunk: Any,
    batch: SharedBatch,
    rows: list[list[int]],
    pad: int,
    reads: list[_Read],
    plain: Callable[[Tensor, Tensor, list[int]], Tensor],
) -> bool:
    """Whether sharing a prompt gives the plain forward's result on two rows; a bidirectional trunk fails this."""
    numbers = batch.rows[:2]
    ids, mask = padded([rows[i] for i in numbers], pad, trunk.device)
    expected = plain(ids, mask, numbers).float()
    try:
        shared = _read_shared(trunk, batch, rows, pad, reads)[:, : len(numbers)].float()
    except (AttributeError, TypeError, ValueError, RuntimeError):  # an architecture with another kind of cache
        return False
    return torch.allclose(shared, expected, rtol=0.02, atol=0.02 * float(expected.abs().max()))


def _unshare(shared: list[SharedBatch], read_at: list[int], rows: list[list[int]]) -> list[int]:
    """Take out the batches with a row that is read inside its shared prefix (a row of padding tokens, say)."""
    taken: list[int] = []
    for batch in list(shared):
        own = [len(rows[i]) - len(rest) for i, rest in zip(batch.rows, batch.rests, strict=True)]
        if any(read_at[i] < start for i, start in zip(batch.rows, own, strict=True)):
            shared.remove(batch)
            taken += batch.rows
    return taken


def _read_plain(out: Any, read: _Read, mask: Tensor, numbers: list[int], copies: int) -> Tensor:
    states = _chosen(out, read.layer)
    states = states.view(copies, -1, *states.shape[1:])
    if read.at is None:
        weight = mask[:, :, None].float()
        return (states.float() * weight).sum(dim=2) / weight.sum(dim=1)
    place = torch.tensor([read.at[i] for i in numbers], device=states.device)
    return states[:, torch.arange(len(numbers), device=states.device), place]


def _read_shared(
    trunk: Any, batch: SharedBatch, rows: list[list[int]], pad: int, reads: list[_Read]
) -> Float[Tensor, "copies batch features"]:
    wanted = any(read.layer != -1 for read in reads)
    before, before_mask, after, after_mask = forward_shared(trunk, batch, pad, output_hidden_states=wanted)
    count = len(batch.rows)
    features = []
    for read in reads:
        states = _chosen(after, read.layer)
        states = states.view(-1, count, *states.shape[1:])
        if read.at is not None:
            starts = [len(rows[i]) - len(rest) for i, rest in zip(batch.rows, batch.rests, strict=True)]
            places = [read.at[i] - s for i, s in zip(batch.rows, starts, strict=True)]
            index = torch.tensor(places, device=trunk.device)
            features.append(states[:, torch.arange(count, device=trunk.device), index])
            continue
        prefix = _chosen(before, read.layer)
        prefix = prefix.view(states.shape[0], -1, *prefix.shape[1:])
        first = (prefix.float() * before_mask[:, :, None]).sum(dim=2)
        owner = torch.tensor(batch.owner, device=trunk.device)
        second = (states.float() * after_mask[:, :, None]).sum(dim=2)
        lengths = before_mask.sum(dim=1)[owner] + after_mask.sum(dim=1)
        features.append((first[:, owner] + second) / lengths[:, None])
    return torch.cat(features, dim=-1)


def _chosen(output: Any, layer: int) -> Tensor:
    if layer == -1:
        last: Tensor = output.last_hidden_state
        return last
    held: Sequence[Tensor] = output.hidden_states
    if not -len(held) <= layer < len(held):
        raise ConfigError(
            f"layer {layer} isn't there: the model has {len(held)} hidden states, 0 (the embeddings) to "
            f"{len(held) - 1} or -1 (the last)"
        )
    return held[layer]
