"""Record the log-probabilities of the tokens that `generate` chooses, from the logits that it computes anyway."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

__all__ = ["TokenRecorder"]


class TokenRecorder:
    """Record of a causal language model's sampling during one call of `generate`.

    Records ln softmax(logits / temperature) of each chosen token, with the model's own logits: before top-k, top-p and
    whatever else changes them for sampling. Which token was chosen shows in the next forward, whose input ends in it;
    so the logits of one step are held, (batch, vocabulary), and otherwise one number per token.

    Args:
        temperature: by which the logits are divided.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = temperature
        self._tokens: list[Int[Tensor, "batch"]] = []
        self._log_probabilities: list[Float[Tensor, "batch"]] = []
        self._pending: Float[Tensor, "batch vocabulary"] | None = None
        self._width = 0
        self._plain = True

    @contextmanager
    def watching(self, model: torch.nn.Module) -> Iterator[None]:
        """Record what this model generates (with adapters: what PEFT's base model, which holds them, generates)."""
        handle = model.register_forward_hook(self._see, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _see(self, module: Any, positional: Any, keywords: dict[str, Any], output: Any) -> None:
        ids, logits = keywords.get("input_ids"), getattr(output, "logits", None)
        if self._pending is not None:
            # With a cache the input is the newest token; without one, all that came before and the newest token.
            self._plain &= ids is not None and ids.shape[1] in (1, self._width + 1) and len(ids) == len(self._pending)
            if self._plain:
                self._settle(ids[:, -1])  # type: ignore[index]
        self._plain &= logits is not None
        if self._plain:
            self._width = 0 if ids is None else ids.shape[1]
            self._pending = logits[:, -1].detach().float() / self.temperature  # type: ignore[index]

    def _settle(self, chosen: Int[Tensor, "batch"]) -> None:
        logits, self._pending = self._pending, None
        assert logits is not None
        log_probability = logits.gather(1, chosen.to(logits.device)[:, None]).squeeze(1) - logits.logsumexp(dim=1)
        self._tokens.append(chosen)
        self._log_probabilities.append(log_probability)

    def sequence_log_probability(
        self, completion_ids: Int[Tensor, "batch tokens"], mask: Int[Tensor, "batch tokens"]
    ) -> Float[Tensor, "batch"] | None:
        """Sum of the recorded log-probabilities over each completion's own tokens, (batch,).

        Args:
            completion_ids: padded on the right.
            mask: 1 on a completion's own tokens, which come before its padding; 0 throughout leaves it out (sum 0).

        Returns:
            None if what was recorded isn't these very tokens in this order.
        """
        rows, width = completion_ids.shape
        if not self._plain:
            return None
        if self._pending is not None and len(self._pending) == rows and len(self._tokens) < width:
            self._settle(completion_ids[:, len(self._tokens)])  # the last token went through no forward
        length = int(mask.any(dim=0).sum())
        if length == 0:
            return torch.zeros(rows, device=completion_ids.device)
        if length > len(self._tokens) or len(self._tokens[0]) != rows:
            return None
        tokens = torch.stack(self._tokens[:length], dim=1).to(completion_ids.device)
        own = mask[:, :length].bool()
        if bool((tokens != completion_ids[:, :length])[own].any()):
            return None
        recorded = torch.stack(self._log_probabilities[:length], dim=1).to(completion_ids.device)
        return recorded.masked_fill(~own, 0.0).sum(dim=1)
