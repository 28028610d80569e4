"""One frozen base with K LoRA adapters and K reward heads, all of them in one forward.

How a reward is read differs: a decoder's stands at each row's last token, in front of a linear `score`, and its rows
can share prompts; any other classifier runs whole, with whatever it has between its trunk and its last layer.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from surefoot.errors import ModelError
from surefoot.rewards.kinds.lora.layers import (
    OR_ELSE,
    PEFT_SAVES,
    AdapterShape,
    adapt,
    own,
    usual_targets,
)
from surefoot.rewards.trunk.batching import forward_tokens, length_sorted_batches
from surefoot.rewards.trunk.hidden_states import read_states
from surefoot.rewards.trunk.reading import decoder_head, own_pad, read_places
from surefoot.rewards.trunk.replicated_layers import classify, layers_of, pool_at, replicated

__all__ = ["LoraNetwork"]

_WRAPPED = "base_model.model."
"""What PEFT puts before every parameter's name."""


class _Reading(Protocol):
    """How rewards are read; the network's forward, and scoring of rows in batches."""

    def forward(self, network: "LoraNetwork", ids: Tensor, mask: Tensor) -> Float[Tensor, "members batch"]: ...

    def score(
        self, network: "LoraNetwork", rows: list[list[int]], keys: Sequence[Any], pad_token_id: int
    ) -> Float[Tensor, "members rows"]: ...


class _LastToken:
    """A decoder: the trunk's state where its own forward reads it, then `score`; rows that begin alike share that."""

    def forward(self, network: "LoraNetwork", ids: Tensor, mask: Tensor) -> Float[Tensor, "members batch"]:
        with replicated(network.trunk, network.shape.start, network.shape.members):
            states = network.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        rows = [row[:length] for row, length in zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True)]
        return self._rewards(network, pool_at(states, read_places(rows, own_pad(network.classifier))))

    def score(
        self, network: "LoraNetwork", rows: list[list[int]], keys: Sequence[Any], pad_token_id: int
    ) -> Float[Tensor, "members rows"]:
        members = network.shape.members
        with replicated(network.trunk, network.shape.start, members):
            states = read_states(
                network.trunk,
                rows,
                pad_token_id=pad_token_id,
                tokens=forward_tokens(network.device, members),
                read_at=read_places(rows, own_pad(network.classifier)),
                keys=keys,
                copies=members,
            )
        return self._rewards(network, states)

    def _rewards(
        self, network: "LoraNetwork", states: Float[Tensor, "members batch features"]
    ) -> Float[Tensor, "members batch"]:
        return network.owned["score"](states.flatten(0, 1)).view(states.shape[:2])


class _WholeClassifier:
    """Any other classifier: its own forward, on K · B rows from `start` on."""

    def forward(self, network: "LoraNetwork", ids: Tensor, mask: Tensor) -> Float[Tensor, "members batch"]:
        shape = network.shape
        return classify(network.classifier, ids, mask, shape.start, shape.members)[:, :, 0].float()

    def score(
        self, network: "LoraNetwork", rows: list[list[int]], keys: Sequence[Any], pad_token_id: int
    ) -> Float[Tensor, "members rows"]:
        members, device = network.shape.members, network.device
        values = torch.empty(members, len(rows), device=device)
        tokens = forward_tokens(device, members)
        for batch, ids, mask in length_sorted_batches(rows, pad_token_id=pad_token_id, tokens=tokens, device=device):
            values[:, batch] = self.forward(network, ids, mask)
        return values


class LoraNetwork(nn.Module):
    """A frozen trunk with K adapters in its upper layers and K reward heads.

    Args:
        classifier: an `AutoModelForSequenceClassification` with one output, a decoder or an encoder; it is taken over,
            its linear layers from `shape.start` on being wrapped. Dropout is off from here on.
        shape: of the adapters.
        modules_to_save: ends of the names of the modules that each member owns whole, as PEFT understands them.

    Raises:
        ModelError: the model's head isn't one that PEFT saves, it can't run for K members at once, or it has none of
            the targets.
    """

    def __init__(self, classifier: Any, shape: AdapterShape, modules_to_save: Sequence[str] = PEFT_SAVES) -> None:
        super().__init__()
        self.shape, self.modules_to_save = shape, tuple(modules_to_save)
        self.classifier = classifier.eval().requires_grad_(False)
        self.trunk: nn.Module = getattr(classifier, classifier.base_model_prefix)
        self.targets = shape.targets or usual_targets(classifier.config.model_type, self.trunk)
        decoder = decoder_head(classifier) is not None
        self.reading: _Reading = _LastToken() if decoder else _WholeClassifier()
        expected = None if decoder else _tried(classifier)
        self.adapters = adapt(self.trunk, shape, self.targets)
        self.owned = own(classifier, self.modules_to_save, layers_of(self.trunk), shape.members)
        if expected is not None:
            self._check(expected)

    @property
    def device(self) -> torch.device:
        return next(iter(self.adapters.values())).lora_A.device

    def forward(
        self, ids: Int[Tensor, "batch length"], mask: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "members batch"]:
        return self.reading.forward(self, ids, mask)

    @torch.no_grad()
    def score(self, rows: list[list[int]], keys: Sequence[Any], pad_token_id: int) -> Float[Tensor, "members rows"]:
        """Rewards of rows of token ids, in batches; rows with equal keys begin alike."""
        return self.reading.score(self, rows, keys, pad_token_id)

    @torch.no_grad()
    def _check(self, expected: Float[Tensor, "batch"]) -> None:
        """Refuse an architecture whose rows don't stand member by member in every layer."""
        name, shape, trial = type(self.classifier).__name__, self.shape, _trial(self.classifier)
        try:
            values, (drawn, rolled) = self(*trial), self._rolled(trial)
        except (AttributeError, IndexError, RuntimeError, TypeError, ValueError, ModelError) as error:
            raise ModelError(f"{name} can't run for {shape.members} members at once ({error}); {OR_ELSE}") from error
        size, differences = expected.abs().max(), (drawn - drawn.mean(dim=0)).abs().max()
        same = (values - expected).abs().max() <= 1e-3 * size
        if not same or (rolled - drawn.roll(1, dims=0)).abs().max() > 1e-2 * differences + 1e-5 * size:
            raise ModelError(f"{name} mixes its members when {shape.members} run at once; {OR_ELSE}")

    def _rolled(self, trial: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Rewards with random adapters, and with the same ones handed on to the next member; then B is zero again."""
        values = [value for m in self.adapters.values() for value in (m.lora_A, m.lora_B)]
        stream = torch.Generator().manual_seed(0)
        for value in values:
            value.copy_(torch.randn(value.shape, generator=stream) / math.sqrt(value.shape[2]))
        first: Tensor = self(*trial)
        for value in values:
            value.copy_(value.roll(1, dims=0))
        second: Tensor = self(*trial)
        for value in values:
            value.zero_()
        return first, second

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that a member owns, each tensor with the members in front."""
        values = {
            f"{name}.{side}": getattr(m, side) for name, m in self.adapters.items() for side in ("lora_A", "lora_B")
        }
        for path, module in self.owned.items():
            values |= {f"{path}.{name}": value for name, value in zip(module.names, module.stacked, strict=True)}
        return values

    def _peft_names(self) -> dict[str, str]:
        """PEFT's names of what `trained` gives."""
        prefix = f"{_WRAPPED}{self.classifier.base_model_prefix}."
        adapted = {f"{name}.{side}" for name in self.adapters for side in ("lora_A", "lora_B")}
        return {n: f"{prefix}{n}.weight" if n in adapted else f"{_WRAPPED}{n}" for n in self.trained()}

    @torch.no_grad()
    def start(self, seed: int) -> None:
        """Draw the adapters and heads, each from `seed` and its member alone.

        B is zero, as in LoRA. Of owned modules the weight matrices are drawn; biases and norms stay the base's.
        """
        heads = [value for module in self.owned.values() for value in module.stacked if value.ndim > 2]
        for k in range(self.shape.members):
            stream = torch.Generator().manual_seed((seed * 1_000_003 + k) % 2**63)
            for module in self.adapters.values():
                bound = 1 / math.sqrt(module.lora_A.shape[2])  # kaiming_uniform(a=√5), PEFT's
                drawn = torch.rand(module.lora_A.shape[1:], generator=stream)
                module.lora_A[k] = (bound * (2 * drawn - 1)).to(module.lora_A)
            for head in heads:
                head[k] = (0.02 * torch.randn(head.shape[1:], generator=stream)).to(head)

    def member(self, k: int) -> dict[str, Tensor]:
        """Member k's parameters by PEFT's names."""
        names = self._peft_names()
        return {names[name]: value[k].detach().cpu().contiguous() for name, value in self.trained().items()}

    @torch.no_grad()
    def set_member(self, k: int, weights: dict[str, Tensor], scale: float) -> None:
        """Take member k's parameters, by PEFT's names; `scale` is its own α/r, folded into B, its rank padded.

        Of an owned module that `weights` don't hold, the base's parameters stay; a layer that they don't adapt
        gets an update of zero.
        """
        left, names = dict(weights), self._peft_names()
        for name, value in self.trained().items():
            if names[name] not in left:
                if name.endswith(("lora_A", "lora_B")):
                    value[k].zero_()
                continue
            values = left.pop(names[name]).to(value)
            if name.endswith("lora_B"):
                values = values * (scale / (self.shape.alpha / self.shape.rank))
            target = value[k]
            if any(size > room for size, room in zip(values.shape, target.shape, strict=True)):
                raise ModelError(
                    f"{names[name]} of adapter {k} is {tuple(values.shape)}; the base has room for "
                    f"{tuple(target.shape)}"
                )
            target.zero_()
            target[tuple(slice(0, size) for size in values.shape)] = values
        if left:
            raise ModelError(f"adapter {k} also changes {', '.join(sorted(left)[:3])}, which no other layer expects")


def _trial(classifier: Any) -> tuple[Tensor, Tensor]:
    """Two rows of four tokens, one of them padded."""
    ids = torch.arange(8, device=classifier.device).view(2, 4) % classifier.config.get_text_config().vocab_size
    return ids, torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]], device=classifier.device)


@torch.no_grad()
def _tried(classifier: Any) -> Float[Tensor, "batch"]:
    """The plain model's rewards of the trial."""
    ids, mask = _trial(classifier)
    name = type(classifier).__name__
    if getattr(classifier.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{name} has an encoder and a decoder, of which LoRA members can't share the layers; {OR_ELSE}"
        )
    values: Tensor = classifier(input_ids=ids, attention_mask=mask).logits
    if values.shape != (2, 1):
        raise ModelError(f"{name} gives {values.shape[-1]} outputs per text; a reward model has one")
    return values[:, 0].float()
