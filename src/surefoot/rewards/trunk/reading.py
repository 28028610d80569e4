"""Read a classifier's reward at the token at which its own forward reads it, with the head in float32."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surefoot.rewards.trunk.batching import forward_tokens, length_sorted_batches
from surefoot.rewards.trunk.hidden_states import read_states

__all__ = ["apply_head", "decoder_head", "head_in_float32", "own_pad", "read_places", "read_rewards"]


_READS: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""Whether each model's reward is its linear `score` at one token; tested once per model."""


def decoder_head(model: Any) -> nn.Linear | None:
    """Linear `score` head of a decoder classifier that reads one token of each row; None for any other classifier.

    Tested once per model on four tokens, because a few architectures have a `score` and pool differently.
    """
    head = getattr(model, "score", None)
    if not isinstance(head, nn.Linear) or getattr(model.config, "is_encoder_decoder", False):
        return None
    if model not in _READS:
        _READS[model] = _reads_one_token(model, head)
    return head if _READS[model] else None


@torch.no_grad()
def _reads_one_token(model: Any, head: nn.Linear) -> bool:
    ids = torch.arange(4, device=model.device)[None] % model.get_input_embeddings().weight.shape[0]
    states = getattr(model, model.base_model_prefix)(input_ids=ids).last_hidden_state
    state = states[0, read_places(ids.tolist(), own_pad(model))[0]].float()
    size = (head.weight.float() * state).abs().sum(dim=1)  # scale of the rounding errors
    share = 1e-4 if head.weight.dtype == torch.float32 else 2e-2
    expected = model(input_ids=ids).logits[0].float()
    return bool(((apply_head(head, state) - expected).abs() <= share * size).all())


def own_pad(model: Any) -> int | None:
    """Pad token of the model's config, by which its forward finds the end of a row."""
    pad: int | None = model.config.get_text_config().pad_token_id
    return pad


def read_places(rows: list[list[int]], pad: int | None) -> list[int]:
    """Position at which transformers reads each row: the last token that isn't `pad`, or the last one without a pad.

    Where pad is eos that is the token before eos.
    """
    return [next((i for i in range(len(row) - 1, -1, -1) if row[i] != pad), 0) for row in rows]


def apply_head(head: nn.Linear, states: Float[Tensor, "*rows features"]) -> Float[Tensor, "*rows outputs"]:
    """Apply the head in float32, whatever its precision: bf16 rounds rewards to 8 bits, which ties many of them."""
    bias = None if head.bias is None else head.bias.float()
    return nn.functional.linear(states.float(), head.weight.float(), bias)


@torch.no_grad()
def read_rewards(model: Any, rows: list[list[int]], pad_token_id: int) -> Float[Tensor, "rows"]:
    """Rewards of rows of token ids, float32 on the CPU, in their order.

    Args:
        model: an `AutoModelForSequenceClassification` with one output.
        pad_token_id: fills the batch; where a row is read doesn't depend on it.
    """
    head, tokens = decoder_head(model), forward_tokens(model.device)
    if head is not None:
        places = read_places(rows, own_pad(model))
        trunk = getattr(model, model.base_model_prefix)
        states = read_states(trunk, rows, pad_token_id=pad_token_id, tokens=tokens, read_at=places)[0]
        return apply_head(head, states)[:, 0].cpu()
    rewards = torch.full((len(rows),), torch.nan)
    if own_pad(model) is None:
        tokens = 1  # its forward may refuse batches then, since it can't tell where rows end
    with head_in_float32(model):
        for batch, ids, mask in length_sorted_batches(
            rows, pad_token_id=pad_token_id, tokens=tokens, device=model.device
        ):
            rewards[batch] = model(input_ids=ids, attention_mask=mask).logits[:, 0].float().cpu()
    return rewards


@contextmanager
def head_in_float32(model: Any) -> Iterator[None]:
    """Inside, run everything after the layers (a BERT's pooler and classifier, say) in float32.

    Its weights stay float32 afterwards; in a float32 model nothing changes.
    """
    trunk = getattr(model, model.base_model_prefix)
    parts = [part for part in model.children() if part is not trunk]
    pooler = getattr(trunk, "pooler", None)
    if isinstance(pooler, nn.Module):
        parts.append(pooler)
    with ExitStack() as stack:
        for part in parts:
            part.float()
            stack.callback(part.register_forward_pre_hook(_raise_precision, with_kwargs=True).remove)
        yield


def _raise_precision(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    def raised(value: Any) -> Any:
        return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value

    return tuple(map(raised, args)), {name: raised(value) for name, value in kwargs.items()}
