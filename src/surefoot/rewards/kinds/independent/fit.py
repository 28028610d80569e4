"""Train K independent reward models with TRL's RewardTrainer; a finished member is never trained again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from peft import LoraConfig, TaskType
from transformers import PrinterCallback, TrainerCallback, set_seed
from trl import RewardConfig, RewardTrainer

from surefoot.data.preferences import data_hash
from surefoot.errors import ConfigError, DataError
from surefoot.files import fingerprint, read_json, whole_directory, write_json
from surefoot.rewards.kinds.independent.config import IndependentConfig
from surefoot.rewards.kinds.independent.source import IndependentMembers, write_source
from surefoot.rewards.trunk.loading import choose_device, load_base, load_encoder, load_skeleton
from surefoot.rewards.trunk.text_encoder import TextEncoder, encode_pairs, prompt_keys

__all__ = ["train_independent"]

_RECEIPT = "member.json"


def train_independent(
    pairs: Dataset,
    base_model: str | Path | Sequence[str | Path],
    directory: str | Path,
    config: IndependentConfig,
    *,
    device: str | torch.device | None = None,
    on_step: Callable[[int, int, int], None] | None = None,
) -> IndependentMembers:
    """Train the members that `directory` doesn't hold yet, and load them all.

    Each member is written whole when it is finished, with a receipt of its settings, data and base; a member whose
    receipt differs is trained anew.

    Args:
        pairs: checked preference pairs.
        base_model: directory or hub name, as for `AutoModelForSequenceClassification`; of several, each with its own
            tokenizer, member k starts from number k, in turn.
        directory: becomes a source that `load_source` reads.
        on_step: called with (member, steps done, steps).

    Raises:
        DataError: all pairs are too long, or fewer prompts than members that share them.
        ModelError: a base can't be loaded, or its tokenizer can't pad.
    """
    if config.members < 1:
        raise ConfigError(f"members must be at least 1, got {config.members}")
    bases = [base_model] if isinstance(base_model, (str, Path)) else list(base_model)
    if not bases:
        raise ConfigError("base_model is an empty list; name at least one model")
    folder = Path(directory)
    encoders = [load_encoder(base, load_skeleton(base), config.max_length) for base in bases]
    shares = _shares(pairs, config)
    encoded: dict[tuple[int, int], Dataset] = {}
    names = [f"members/{k}" for k in range(config.members)]
    for k, name in enumerate(names):
        b, share = k % len(bases), k % len(shares)
        if (b, share) not in encoded:
            encoded[b, share] = encode_pairs(shares[share], encoders[b], overlong=config.overlong)
        receipt = _receipt(config, k, bases[b], encoded[b, share])
        if not _finished(folder / name, receipt):
            _train_member(encoded[b, share], bases[b], encoders[b], folder / name, config, k, receipt, device, on_step)
    write_source(folder, names, "independent", config.max_length)
    return IndependentMembers.load(folder, device)


def _shares(pairs: Dataset, config: IndependentConfig) -> list[Dataset]:
    """The pairs of each member where they are disjoint (a prompt is in one share only), else all pairs, once."""
    if config.bootstrap != "disjoint":
        return [pairs]
    keys = prompt_keys(pairs["prompt"])
    distinct = list(dict.fromkeys(keys))
    if len(distinct) < config.members:
        raise DataError(
            f"{len(distinct)} distinct prompts can't be shared out among {config.members} members; give more data, or "
            "set bootstrap: resample"
        )
    order = np.random.default_rng(config.seed).permutation(len(distinct))
    owner = {distinct[i]: place % config.members for place, i in enumerate(order)}
    return [pairs.select([i for i, key in enumerate(keys) if owner[key] == k]) for k in range(config.members)]


def _receipt(config: IndependentConfig, member: int, base: str | Path, encoded: Dataset) -> str:
    settings = {name: value for name, value in asdict(config).items() if name not in ("members", "other_models")}
    return fingerprint([settings, member, str(base), data_hash(encoded)])


def _finished(folder: Path, receipt: str) -> bool:
    return (folder / _RECEIPT).exists() and read_json(folder / _RECEIPT)["receipt"] == receipt


def _train_member(
    encoded: Dataset,
    base: str | Path,
    encoder: TextEncoder,
    folder: Path,
    config: IndependentConfig,
    member: int,
    receipt: str,
    device: str | torch.device | None,
    on_step: Callable[[int, int, int], None] | None,
) -> None:
    seed = (config.seed * 1_000_003 + member) % 2**31
    set_seed(seed)
    target = choose_device(device)
    model, _ = load_base(base, target)
    hidden = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        with whole_directory(folder) as temporary:
            trainer = RewardTrainer(
                model=model,
                args=_arguments(config, seed, temporary, target),
                train_dataset=_resampled(encoded, seed) if config.bootstrap == "resample" else encoded,
                processing_class=encoder.tokenizer,
                peft_config=_adapters(config),
                callbacks=[_Progress(member, on_step)],
            )
            trainer.remove_callback(PrinterCallback)
            trainer.train()
            trained: Any = trainer.model
            whole = trained if config.rank is None else trained.merge_and_unload()
            whole.save_pretrained(temporary)
            encoder.tokenizer.save_pretrained(temporary)
            write_json(temporary / _RECEIPT, {"receipt": receipt, "seed": seed})
    finally:
        if not hidden:
            enable_progress_bars()


def _adapters(config: IndependentConfig) -> LoraConfig | None:
    if config.rank is None:
        return None
    targets = "all-linear" if config.targets is None else list(config.targets)
    return LoraConfig(r=config.rank, lora_alpha=config.alpha, target_modules=targets, task_type=TaskType.SEQ_CLS)


def _resampled(encoded: Dataset, seed: int) -> Dataset:
    return encoded.select(np.random.default_rng(seed).integers(len(encoded), size=len(encoded)))


def _arguments(config: IndependentConfig, seed: int, folder: Path, device: torch.device) -> RewardConfig:
    return RewardConfig(
        output_dir=str(folder),
        learning_rate=config.learning_rate,
        num_train_epochs=config.epochs,
        per_device_train_batch_size=config.batch_size,
        warmup_steps=config.warmup_steps,
        max_length=None,  # encoded already
        seed=seed,
        use_cpu=device.type == "cpu",
        bf16=device.type != "cpu" if config.bf16 is None else config.bf16,
        gradient_checkpointing=False,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


class _Progress(TrainerCallback):
    def __init__(self, member: int, on_step: Callable[[int, int, int], None] | None) -> None:
        self.member = member
        self.on_step = on_step

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.on_step is not None:
            self.on_step(self.member, state.global_step, state.max_steps)
