"""Sample the reference policy inside TRL's trainers by TRL's own (private) methods, and save it for TRL."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate import PartialState
from accelerate.utils import is_peft_model
from transformers import GenerationConfig, PreTrainedModel
from trl.trainer.utils import use_adapter

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.trunk.special_tokens import without_bos
from surefoot.training.sampling import mark_cut

if TYPE_CHECKING:  # mixins: the methods that they extend are those of TRL's trainers
    from trl import RLOOTrainer as TrlTrainer
else:
    TrlTrainer = object

__all__ = ["ReferenceSampling", "ensure_reference_on_disk"]

_SWAPPED = ("model_wrapped", "use_vllm", "use_transformers_continuous_batching", "_watched")
"""Attributes that decide which model TRL's `_generate` samples and how, and whether its tokens are recorded."""


class ReferenceSampling(TrlTrainer):
    """Mixin for TRL's RLOO and GRPO trainers that samples the reference through TRL's own `_generate`.

    The trainer's random state, metrics, token count and the model's mode are restored afterwards.
    """

    _completions_at: ClassVar[int]
    """Place of the completions in what `_generate` returns."""

    args: Any
    accelerator: Any
    model: Any
    state: Any
    _watched: list[torch.Tensor] | None

    def _sample(self, prompts: list[Any]) -> list[Any]:
        """Sample one completion of each prompt as TRL does, and restore what TRL counts and logs."""
        seen, mode = self.state.num_input_tokens_seen, "train" if self.model.training else "eval"
        logged = {name: list(values) for name, values in self._metrics[mode].items()}
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        completions: list[Any] = []
        for start in range(0, len(prompts), size):
            drawn = self._generate(prompts[start : start + size])
            completions += self._marked(drawn[self._completions_at], drawn[1])
        self._metrics[mode].clear()
        self._metrics[mode].update(logged)
        self.state.num_input_tokens_seen = seen
        return completions

    def _marked(self, completions: list[Any], ids: list[list[int]]) -> list[Any]:
        """Mark the completions that the length limit cut off, by TRL's own rule."""
        ends = [*self.eos_token_ids, self._tokenizer.pad_token_id]
        return mark_cut(completions, [bool(row) and row[-1] not in ends for row in ids])

    def _tokenize_prompts(self, prompts: list[Any]) -> Any:
        """TRL's method, but text that begins with bos gets no second one, and every message has a content."""
        tokenizer = self._tokenizer
        return super()._tokenize_prompts([_readable(prompt, tokenizer) for prompt in prompts])

    @contextmanager
    def _same_random_state(self) -> Iterator[None]:
        """Restore the random state of training, so that objectives can be compared on the same samples."""
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            yield

    def _sample_reference(self, prompts: list[Any], seed: int) -> list[Any]:
        """Sample one completion of the reference policy for each prompt, as TRL samples the policy.

        Raises:
            ConfigError: there is no fixed reference policy, or it can't be sampled.
        """
        self._check_reference()
        with self._same_random_state(), self._as_reference():
            torch.manual_seed(seed)
            return self._sample(prompts)

    def _check_reference(self) -> None:
        """Refuse settings under which there is no fixed reference policy, or it can't be sampled.

        Raises:
            ConfigError: says which, and what to do.
        """
        reasons = {
            "with beta=0 TRL keeps no reference policy": not self._has_reference,
            "sync_ref_model moves the reference, so later prompts would get another anchor": self.args.sync_ref_model,
            "rollout_func samples the policy": getattr(self, "rollout_func", None) is not None,
            "the reference would have to call your tools": bool(getattr(self, "tools", None)),
        }
        blocking = [reason for reason, holds in reasons.items() if holds]
        if blocking:
            raise ConfigError(
                f"anchor: reference draws completions of the reference policy, but {blocking[0]}. Give the anchors of "
                "all prompts by anchor_file (`surefoot anchors`), or choose anchor: dataset or calibration"
            )

    @property
    def _has_reference(self) -> bool:
        return getattr(self, "ref_model", None) is not None or is_peft_model(self.model)

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        """Make TRL's `_generate` sample the reference: its model, or the policy without its adapter under PEFT.

        vLLM and continuous batching hold the policy's weights, so transformers' own `generate` is used instead. The
        tokens aren't recorded, so that the record of the policy's own sampling is kept.
        """
        held = {name: getattr(self, name) for name in _SWAPPED}
        self._watched, self.use_vllm, self.use_transformers_continuous_batching = None, False, False
        if not hasattr(self, "generation_config"):
            self.generation_config = GenerationConfig(**self._plain_generation(), disable_compile=True)
            self.generation_kwargs = self._plain_generation()
        try:
            with self._reference_adapter() if is_peft_model(self.model) else self._reference_model():
                yield
        finally:
            for name, value in held.items():
                setattr(self, name, value)

    @contextmanager
    def _reference_model(self) -> Iterator[None]:
        self.model_wrapped: Any = self.ref_model
        yield

    @contextmanager
    def _reference_adapter(self) -> Iterator[None]:
        """Use the policy without its adapter, or with TRL's copy of the initial adapter; without dropout."""
        policy = self.accelerator.unwrap_model(self.model)
        training = policy.training
        policy.eval()
        try:
            with use_adapter(policy, adapter_name="ref" if "ref" in policy.peft_config else None):
                yield
        finally:
            policy.train(training)

    def _plain_generation(self) -> dict[str, Any]:
        """Settings of transformers' `generate`, which TRL doesn't build where it samples with vLLM.

        The user's `generation_kwargs` are vLLM's then; those that transformers knows as well are taken over.
        """
        tokenizer, known = self._tokenizer, GenerationConfig().to_dict()
        own = {name: value for name, value in (self.args.generation_kwargs or {}).items() if name in known}
        sampling = {name: getattr(self, name) for name in ("temperature", "top_p", "top_k", "min_p")}
        return {
            "max_new_tokens": self.max_completion_length,
            "do_sample": True,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": self.eos_token_ids,
            "repetition_penalty": self.repetition_penalty,
            **sampling,
            **own,
        }


def _readable(prompt: Any, tokenizer: Any) -> Any:
    if isinstance(prompt, str):
        return without_bos(prompt, tokenizer)
    return [{"content": "", **message} for message in prompt]


def ensure_reference_on_disk(model: Any, output_dir: str | Path, beta: float) -> None:
    """Save a model that exists in memory only, because TRL rebuilds the reference from `config._name_or_path`.

    Raises:
        ModelError: the path that the model names as its own holds no weights.
    """
    if not isinstance(model, PreTrainedModel) or is_peft_model(model) or beta == 0.0:
        return
    name = getattr(model.config, "name_or_path", "") or ""
    if not name:
        folder = Path(output_dir) / "reference"
        if PartialState().is_main_process:
            model.save_pretrained(folder)
        PartialState().wait_for_everyone()
        model.config.name_or_path = str(folder)
    elif Path(name).is_dir() and not any(Path(name).glob("*.safetensors*")):
        raise ModelError(
            f"the reference model is rebuilt from {name}, but that directory holds no *.safetensors weights"
        )
