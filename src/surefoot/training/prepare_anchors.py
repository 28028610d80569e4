"""Make a file of anchors: draw reference completions, score them, and keep each prompt's mean scored row."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, PreTrainedTokenizerBase
from trl import ModelConfig

from surefoot.data.preferences import load_prompts
from surefoot.errors import ConfigError, ModelError, RunError, VarianceError
from surefoot.files import sweep
from surefoot.locks import hold
from surefoot.rewards.anchors import AnchorStore, prompt_digest
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.loading import check_templates, template_objection
from surefoot.training.run_online import load_policy_tokenizer
from surefoot.training.sampling import as_completions, end_tokens, load_policy, prompt_ids
from surefoot.types import Text

__all__ = ["AnchorArguments", "draw_completions", "prepare_anchors"]

_SAVE_SECONDS = 60.0
"""Seconds between saves: what a killed process can lose (an interruption or an error loses one batch)."""
_SETTINGS = ("model_name_or_path", "anchor_completions", "temperature", "max_completion_length", "seed")
"""Settings that all anchors of one file must share."""


@dataclass
class AnchorArguments:
    """Settings of `surefoot anchors`; either `reward_source` or `reward_models` must be given."""

    output: str = field(metadata={"help": "A .safetensors file; the same again goes on, or adds new prompts."})
    model_name_or_path: str = field(metadata={"help": "The reference policy: a directory or hub name."})
    dataset_name: str = field(metadata={"help": "Prompts: a local file, directory or hub name."})
    reward_source: str | None = field(
        default=None, metadata={"help": "Directory or hub name of a reward source; give this or reward_models."}
    )
    reward_models: list[str] | None = field(
        default=None, metadata={"help": "Existing reward models, directories or hub names, taken as members."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    dataset_prompts: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    anchor_completions: int = field(default=8, metadata={"help": "Completions drawn of each prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "In tokens, as in the training to come."})
    temperature: float = field(default=1.0, metadata={"help": "As in the training to come."})
    prompts_per_batch: int = field(default=8, metadata={"help": "Prompts sampled and scored at a time."})
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})

    def check(self) -> None:
        """Refuse values out of range.

        Raises:
            ConfigError: what is wrong.
        """
        if not self.output.endswith(".safetensors"):
            raise ConfigError(f"output must end in .safetensors, got {Path(self.output).name}")
        if (self.reward_source is None) == (self.reward_models is None):
            raise ConfigError("give exactly one of reward_source (a directory of `surefoot reward`) and reward_models")
        for name in ("anchor_completions", "max_completion_length", "prompts_per_batch", "dataset_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")


def prepare_anchors(args: AnchorArguments, on_progress: Callable[[int, int], None] | None = None) -> AnchorStore:
    """Write the anchors of all prompts to `args.output`; an interrupted call goes on from `<output>.part`.

    A prompt's completions depend on the seed and on the prompt alone (up to rounding in the model, which may depend on
    the prompts in its batch), so a call that was interrupted gives the same anchors as one that was not.

    Args:
        on_progress: called with (prompts done, prompts).

    Returns:
        The anchors; those of the finished file if it has all prompts already.

    Raises:
        ConfigError, DataError, ModelError, RunError, VarianceError: before anything is sampled, each saying what to
            change.
    """
    args.check()
    target = Path(args.output)
    tokenizer = load_policy_tokenizer(ModelConfig(model_name_or_path=args.model_name_or_path))
    prompts = _prompts(args, tokenizer)
    check_templates([args.reward_source] if args.reward_source is not None else args.reward_models or [], prompts[0])
    source = _source(args)
    part = target.with_name(f"{target.name}.part")
    with hold(target.with_name(f".{target.name}.lock")):
        sweep(part)  # if all prompts are in it, it isn't written again
        store = _started(args, source, next((path for path in (part, target) if path.exists()), None))
        missing = store.missing(prompts)
        if missing:
            _draw_and_keep(args, tokenizer, source, store, missing, part, on_progress, len(prompts))
        if missing or part.exists():
            os.replace(part, target)
    if on_progress is not None:
        on_progress(len(prompts), len(prompts))
    return store


def _prompts(args: AnchorArguments, tokenizer: PreTrainedTokenizerBase) -> list[Text]:
    table = load_prompts(
        args.dataset_name,
        split=args.dataset_split,
        config=args.dataset_config,
        objection=template_objection(tokenizer),
    )
    prompts: list[Text] = list(table["prompt"])[: args.dataset_prompts]
    if tokenizer.chat_template is None and any(not isinstance(prompt, str) for prompt in prompts):
        raise ModelError(
            f"the tokenizer of '{args.model_name_or_path}' has no chat template, and the prompts of "
            f"{args.dataset_name} are messages; give plain text, or a policy with a chat template"
        )
    return prompts


def _source(args: AnchorArguments) -> RewardSource:
    source: RewardSource
    source = (
        load_source(args.reward_source)
        if args.reward_source is not None
        else IndependentMembers.from_models(args.reward_models or [])
    )
    if source.num_members == 1:
        raise VarianceError(f"'{source.name}' has one member, so it has no variance that an anchor could centre")
    if not source.centred:
        raise VarianceError(f"the variance of '{source.name}' is given as it stands: it takes no anchors")
    return source


def _started(args: AnchorArguments, source: RewardSource, path: Path | None) -> AnchorStore:
    """Load the anchors that were made before with these settings, or start an empty store."""
    settings = {name: getattr(args, name) for name in _SETTINGS}
    if path is None:
        return AnchorStore(source.name, args.anchor_completions, settings)
    store = AnchorStore.load(path, source)
    different = [name for name in _SETTINGS if store.about.get(name) != settings[name]]
    if different:
        name = different[0]
        raise RunError(
            f"{path} holds anchors that were made otherwise ({name}: {store.about.get(name)!r} there, "
            f"{settings[name]!r} here); choose another output, or delete it"
        )
    return store


def _draw_and_keep(
    args: AnchorArguments,
    tokenizer: PreTrainedTokenizerBase,
    source: RewardSource,
    store: AnchorStore,
    missing: list[Text],
    part: Path,
    on_progress: Callable[[int, int], None] | None,
    total: int,
) -> None:
    model = load_policy(args.model_name_or_path)
    done, saved = total - len(missing), time.monotonic()
    try:
        for start in range(0, len(missing), args.prompts_per_batch):
            some = missing[start : start + args.prompts_per_batch]
            _add(args, model, tokenizer, source, store, some)
            if time.monotonic() - saved >= _SAVE_SECONDS:
                store.save(part)
                saved = time.monotonic()
            if on_progress is not None:
                on_progress(done + start + len(some), total)
    finally:
        if len(store):
            store.save(part)


def _add(
    args: AnchorArguments,
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    source: RewardSource,
    store: AnchorStore,
    prompts: list[Text],
) -> None:
    count = args.anchor_completions
    texts = draw_completions(
        model,
        tokenizer,
        prompts,
        count,
        max_new_tokens=args.max_completion_length,
        temperature=args.temperature,
        seed=args.seed,
    )
    repeated = [prompt for prompt in prompts for _ in range(count)]
    scores = source.score(repeated, texts)
    store.add(prompts, scores)
    for i in range(0, len(texts), count):
        store.add_probe(repeated[i], texts[i], scores[i])


@torch.no_grad()
def draw_completions(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[Text],
    count: int,
    *,
    max_new_tokens: int,
    temperature: float = 1.0,
    seed: int = 0,
) -> list[Text]:
    """Draw `count` completions of each prompt by plain sampling; the caller's random state is untouched.

    Args:
        model: in eval mode.
        tokenizer: with a pad token, and a chat template if prompts are messages.
        seed: with the prompt's own content, fixes its completions, whatever else is in the batch.

    Returns:
        Completions in the prompts' formats, without special tokens, a prompt's one after the other; marked where
        `max_new_tokens` cut them off.
    """
    ids = [prompt_ids(tokenizer, prompt) for prompt in prompts for _ in range(count)]
    inputs: Any = tokenizer.pad({"input_ids": ids}, padding=True, padding_side="left", return_tensors="pt")
    inputs = {name: inputs[name].to(model.device) for name in ("input_ids", "attention_mask")}
    width = inputs["input_ids"].shape[1]
    uniforms = np.concatenate([_stream(seed, prompt).random((count, max_new_tokens)) for prompt in prompts])
    settings = GenerationConfig(
        max_new_tokens=max_new_tokens,
        do_sample=True,
        temperature=1.0,
        top_k=0,
        top_p=1.0,
        repetition_penalty=1.0,
        pad_token_id=tokenizer.pad_token_id,
    )
    chosen = _ByUniforms(torch.from_numpy(uniforms).to(model.device), width, temperature)
    with torch.random.fork_rng(devices=[model.device] if model.device.type == "cuda" else []):
        output = model.generate(**inputs, generation_config=settings, logits_processor=[chosen])
    asked = [prompt for prompt in prompts for _ in range(count)]
    return as_completions(tokenizer, asked, output[:, width:], end_tokens(model, tokenizer))


def _stream(seed: int, prompt: Text) -> np.random.Generator:
    return np.random.default_rng(int(hashlib.sha256(f"{seed}:{prompt_digest(prompt)}".encode()).hexdigest()[:16], 16))


class _ByUniforms(LogitsProcessor):
    """Logits processor that samples each row's token by inverting its distribution at a uniform number of its own.

    With one shared random state, as in `generate`, a completion would depend on its whole batch.
    """

    def __init__(self, uniforms: Float[Tensor, "rows steps"], width: int, temperature: float) -> None:
        self.uniforms, self.width, self.temperature = uniforms, width, temperature

    def __call__(self, input_ids: Tensor, scores: Float[Tensor, "rows tokens"]) -> Float[Tensor, "rows tokens"]:
        step = min(input_ids.shape[1] - self.width, self.uniforms.shape[1] - 1)  # generate may look one step ahead
        precise = torch.float64 if scores.device.type != "mps" else torch.float32
        below = (scores / self.temperature).softmax(dim=-1, dtype=precise).cumsum(dim=-1)
        wanted = self.uniforms[:, step, None].to(below) * below[:, -1:]
        token = torch.searchsorted(below, wanted, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, token, 0.0)
