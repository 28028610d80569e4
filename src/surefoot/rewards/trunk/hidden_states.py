"""Compute hidden states of token rows, at one position or averaged, with each shared prompt computed once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.rewards.trunk.batching import length_sorted_batches, padded
from surefoot.rewards.trunk.packed_rows import PackedRow, forward_packed, pack, sees_all
from surefoot.rewards.trunk.prefix_cache import SharedBatch, can_share, forward_shared, plan
from surefoot.rewards.trunk.sharing_check import shares

__all__ = ["last_token", "read_states"]

_SHARES: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether each trunk may reuse a shared prompt's key-value cache; tested once per model."""
_PACKS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether each trunk may compute rows that begin alike as one sequence; tested once per model."""


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
    packed: bool = False,
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
        packed: whether they share it as one sequence, which is faster for pairs, instead of by a key-value cache; not
            inside `replicated`.
        layer: index into the hidden states, −1 the last.
        mean_layer: another hidden state, whose average over the row's tokens is appended to the features.
        on_progress: called with the share of rows done.
    """
    decoder = can_share(trunk)
    extra: dict[str, Any] = {"use_cache": False} if decoder else {}
    reads = [_Read(layer, read_at)] + ([] if mean_layer is None else [_Read(mean_layer, None)])
    if any(read.layer != -1 for read in reads):
        extra["output_hidden_states"] = True

    def plain(ids: Tensor, mask: Tensor, numbers: list[int], some: list[_Read]) -> Tensor:
        out = trunk(input_ids=ids, attention_mask=mask, **extra)
        return torch.cat([_read_plain(out, read, mask, numbers, copies) for read in some], dim=-1)

    sharing = (trunk, rows, [] if keys is None else keys, tokens, pad_token_id, read_at, plain)
    cached: list[SharedBatch] = []
    sequences: list[list[PackedRow]] = []
    alone = list(range(len(rows)))
    if decoder and keys is not None and packed:
        sequences, alone = _packed_batches(*sharing)
    elif decoder and keys is not None:
        cached, alone = _cached_batches(*sharing)
    parts: list[tuple[list[int], Tensor]] = []
    done = 0

    def add(numbers: list[int], states: Tensor) -> None:
        nonlocal done
        parts.append((numbers, states))
        done += len(numbers)
        if on_progress is not None:
            on_progress(done / len(rows))

    for batch in cached:
        add(batch.rows, _read_shared(trunk, batch, rows, pad_token_id, reads))
    for sequence in sequences:
        add([i for row in sequence for i in row.numbers], _read_packed(trunk, sequence, pad_token_id, reads))
    some = [rows[i] for i in alone]
    batches = length_sorted_batches(some, pad_token_id=pad_token_id, tokens=tokens, device=trunk.device)
    for places, ids, mask in batches:
        numbers = [alone[place] for place in places]
        add(numbers, plain(ids, mask, numbers, reads))
    width = len(reads) * trunk.config.get_text_config().hidden_size
    result = torch.empty(copies, len(rows), width, device=trunk.device)
    for numbers, values in parts:
        result[:, numbers] = values.float()
    return result


_Plain = Callable[[Tensor, Tensor, list[int], list[_Read]], Tensor]
"""The plain forward: (ids, mask, numbers of the rows, what is read) to features."""


def _most_telling(rows: list[list[int]]) -> list[_Read]:
    """What sharing is tested by: an average over a row would hide a mistake in a part of it."""
    return [_Read(-1, last_token(rows))]


def _cached_batches(
    trunk: Any,
    rows: list[list[int]],
    keys: Sequence[Any],
    tokens: int,
    pad: int,
    read_at: list[int] | None,
    plain: _Plain,
) -> tuple[list[SharedBatch], list[int]]:
    """Batches that share by a key-value cache, and the numbers of the rows left; nothing if the trunk can't."""
    shared, alone = plan(rows, keys, tokens)
    if read_at is not None:
        alone += _unshare(shared, read_at, rows)
    if shared and trunk not in _SHARES:
        numbers, reads = shared[0].rows[:2], _most_telling(rows)
        expected = plain(*padded([rows[i] for i in numbers], pad, trunk.device), numbers, reads)
        read = partial(_read_shared, trunk, shared[0], rows, pad, reads)
        _SHARES[trunk] = shares(trunk, rows[numbers[0]], expected, read)
    return (shared, alone) if shared and _SHARES[trunk] else ([], list(range(len(rows))))


def _packed_batches(
    trunk: Any,
    rows: list[list[int]],
    keys: Sequence[Any],
    tokens: int,
    pad: int,
    read_at: list[int] | None,
    plain: _Plain,
) -> tuple[list[list[PackedRow]], list[int]]:
    """Batches of packed sequences, and the numbers of the rows left; nothing if the trunk can't."""
    packed, alone = pack(rows, keys, tokens)
    if packed and trunk not in _PACKS:
        numbers, reads = packed[0][0].numbers, _most_telling(rows)
        expected = plain(*padded([rows[i] for i in numbers], pad, trunk.device), numbers, reads)
        read = partial(_read_packed, trunk, packed[0][:1], pad, reads)
        _PACKS[trunk] = shares(trunk, rows[numbers[0]], expected, read)
    if packed and _PACKS[trunk] and sees_all(trunk, max(map(len, rows))):
        return packed, alone
    return [], list(range(len(rows)))


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


def _read_packed(trunk: Any, batch: list[PackedRow], pad: int, reads: list[_Read]) -> Float[Tensor, "1 rows features"]:
    wanted = any(read.layer != -1 for read in reads)
    out, owners = forward_packed(trunk, batch, pad, output_hidden_states=wanted)
    return torch.cat([_of_packed(_chosen(out, read.layer), owners, batch, read.at) for read in reads], dim=-1)[None]


def _of_packed(
    states: Tensor, owners: Tensor, batch: list[PackedRow], at: list[int] | None
) -> Float[Tensor, "rows features"]:
    """One hidden state of each row of a packed batch, at one position or averaged over the row's own and shared."""
    features = []
    for place, row in enumerate(batch):
        for index, number in enumerate(row.numbers):
            if at is None:
                own = (owners[place] == -1) | (owners[place] == index)
                features.append(states[place, own].float().mean(dim=0))
            else:
                features.append(states[place, row.place(index, at[number])])
    return torch.stack(features)


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
