"""Sequence log-ratio ln π/π₀ of a generation batch, taken from TRL's own forwards.

RLOO computes the policy's and the reference's log-probabilities by itself. GRPO leaves the policy's out where sampling
and training are in step; `TokenRecorder` then takes it from the logits of the sampling itself, and where that isn't
transformers' plain `generate`, it is computed as GRPO does where they are out of step.

In half precision both log-probabilities are computed in float32 as well (`float32.py`), along one path and from one
batch: the difference of two bf16 forwards is mostly rounding. TRL gets the policy's in its own precision, which its
loss compares with, and the reference's moved so that the difference, RLOO's KL, is the float32 one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from accelerate.utils import DistributedType, gather, is_peft_model
from trl.models.utils import disable_gradient_checkpointing

from surefoot.training.float32 import in_float32, in_half_precision
from surefoot.training.token_recorder import TokenRecorder

if TYPE_CHECKING:  # mixins: the methods that they extend are those of TRL's trainers
    from trl import RLOOTrainer as TrlTrainer
else:
    TrlTrainer = object

__all__ = ["SampledLogRatio"]

_OTHER_SAMPLING = ("use_vllm", "use_transformers_continuous_batching", "rollout_func", "tools", "_is_vlm")
"""TRL's settings under which completions don't come from one plain `generate` of the policy alone."""
_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Kinds of distribution in which each process holds the whole policy (no FSDP, no DeepSpeed)."""


class SampledLogRatio(TrlTrainer):
    """Mixin for TRL's RLOO and GRPO trainers: the sequence log-ratio of a generation batch."""

    native_kl: ClassVar[Literal["reward", "loss"]]
    """Where TRL's trainer has its own KL."""

    args: Any
    accelerator: Any
    model: Any
    if TYPE_CHECKING:

        @property
        def _ratio_needed(self) -> bool: ...

    _watched: list[torch.Tensor] | None = None
    _forward: tuple[tuple[Any, ...], dict[str, Any]] | None = None
    _policy: tuple[torch.Tensor, torch.Tensor] | None = None
    _recorder: TokenRecorder | None = None

    @contextmanager
    def _watching(self) -> Iterator[None]:
        """Record the log-probabilities of the forwards of one generation batch."""
        self._watched = []
        try:
            yield
        finally:
            self._watched, self._forward, self._recorder, self._policy = None, None, None, None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *rest: Any, **keywords: Any
    ) -> Any:
        own = super()._get_per_token_logps_and_entropies
        if self._watched is None:
            return own(model, input_ids, attention_mask, logits_to_keep, *rest, **keywords)
        # TRL masks its results itself, so that completions that it leaves out can be seen here all the same.
        mask = _with_cut_off(input_ids, attention_mask, logits_to_keep, self._tokenizer.pad_token_id)
        self._forward = ((input_ids, mask, logits_to_keep, *rest), keywords)
        reference = self.native_kl == "reward" and len(self._watched) == 1
        if not self._in_half_precision:
            result = own(model, *self._forward[0], **keywords)
            # TRL sums over the tokens in the precision that it is given.
            result = (result[0].float(), *result[1:])
            self._watched.append(_summed(result[0], self._forward[0]))
            return result
        exact = self._float32_logps(model, *self._forward)
        self._watched.append(_summed(exact, self._forward[0]))
        if reference and self._policy is not None:
            rounded, policy = self._policy
            return rounded - (policy - exact), None, None
        result = own(model, *self._forward[0], **keywords)
        self._policy = (result[0].float(), exact)
        return (result[0].float(), *result[1:])

    @property
    def _in_half_precision(self) -> bool:
        """Whether the log-ratio needs forwards in float32 and they are possible."""
        whole = self.accelerator.distributed_type in _WHOLE and self.args.float32_log_ratio
        return whole and in_half_precision(self.model, self.accelerator.mixed_precision)

    def _warn_of_rounding(self) -> None:
        half = in_half_precision(self.model, self.accelerator.mixed_precision)
        if half and self._ratio_needed and not self._in_half_precision:
            warnings.warn(
                "the log-ratio of policy and reference is computed in half precision (float32_log_ratio is off, or "
                "FSDP or DeepSpeed shards the model): its rounding, some tenths of a nat per 32 tokens, enters the "
                "penalty, penalty_share and the KL that beta follows",
                stacklevel=3,
            )

    def _float32_logps(self, model: Any, positional: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
        """TRL's log-probabilities, (batch, tokens), computed in float32 if the model is in half precision."""
        raised = in_float32(model, self.accelerator) if self._in_half_precision else nullcontext()
        with raised:
            logps: torch.Tensor = super()._get_per_token_logps_and_entropies(model, *positional, **keywords)[0]
        return logps.float()

    def _log_ratio(self) -> torch.Tensor:
        """ln π/π₀ of the local completions' sampled tokens, (batch,), in nats, whether or not TRL masks them.

        The reference's log-probabilities are TRL's; so are the policy's, where TRL computes them (first).
        """
        seen = [] if self._watched is None else list(self._watched)
        if len(seen) == 1 and self.native_kl == "loss" and self._forward is not None:
            seen.insert(0, self._policy_log_probability(*self._forward))
        if len(seen) != 2:
            raise RuntimeError(
                f"expected the policy's and the reference's log-probabilities before the rewards, saw {len(seen)} of "
                "2; this version of TRL is not supported"
            )
        return (seen[0] - seen[1]).float()

    @property
    def _recordable(self) -> bool:
        """Whether the policy's log-probabilities are needed, TRL leaves them out, and sampling can be watched."""
        args = self.args
        in_step = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) == 0
        plain = not any(getattr(self, name, None) for name in _OTHER_SAMPLING)
        needed = self.native_kl == "loss" and self._ratio_needed and self._watched is not None
        whole = self.accelerator.distributed_type in _WHOLE
        # Sampling's own logits come from another path than the reference's (a cache, other shapes), which in half
        # precision rounds otherwise.
        return needed and in_step and plain and whole and not self._in_half_precision

    def _generate_single_turn(self, *positional: Any, **keywords: Any) -> Any:
        if not self._recordable:
            return super()._generate_single_turn(*positional, **keywords)
        self._recorder = TokenRecorder(self.args.temperature)
        with self._recorder.watching(self.model.get_base_model() if is_peft_model(self.model) else self.model):
            return super()._generate_single_turn(*positional, **keywords)

    def _policy_log_probability(self, positional: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
        """ln π of the sampled tokens, (batch,): as recorded, or by one more forward if a process has no record."""
        if self._recorder is not None:
            ids, mask, width = positional[:3]
            recorded = self._recorder.sequence_log_probability(ids[:, -width:], mask[:, -width:])
            if bool(gather(torch.tensor([recorded is not None], device=self.accelerator.device)).all()):
                return recorded  # type: ignore[return-value]
            warnings.warn(
                "the completions are not the tokens that were watched while the policy generated: their "
                "log-probabilities are computed by one more forward of the policy in each step",
                stacklevel=2,
            )
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return _summed(self._float32_logps(self.model, positional, keywords), positional)


def _summed(logps: torch.Tensor, positional: tuple[Any, ...]) -> torch.Tensor:
    """Sum per-token values over the completions' own tokens, (batch,); `positional` is as TRL passes it."""
    _, mask, width = positional[:3]
    return (logps * mask[:, -width:]).sum(1)


def _with_cut_off(ids: torch.Tensor, mask: torch.Tensor, width: int, pad_token_id: int) -> torch.Tensor:
    """The attention mask, with the completions that `mask_truncated_completions` took out put back.

    They are cut off, so they end in neither eos nor pad: their own tokens go up to the last one that isn't pad.
    """
    own, completion = mask[:, -width:], ids[:, -width:]
    place = torch.arange(width, device=ids.device)
    last = torch.where(completion != pad_token_id, place, -1).amax(dim=1, keepdim=True)
    whole = torch.where(own.any(dim=1, keepdim=True), own, (place <= last).to(own))
    return torch.cat([mask[:, :-width], whole], dim=1)
