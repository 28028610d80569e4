"""Load models and tokenizers for rewards on the right device; a checkpoint's code is never run."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)
from transformers import logging as hf_logging

from surefoot.data.preferences import Objection
from surefoot.errors import ModelError
from surefoot.rewards.trunk.chat_templates import ChatReader
from surefoot.rewards.trunk.dtypes import dtype_of
from surefoot.rewards.trunk.model_names import resolve_model
from surefoot.rewards.trunk.reference import place_of_weights
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.types import Text

__all__ = [
    "check_templates",
    "choose_device",
    "load_base",
    "load_classifier",
    "load_encoder",
    "load_skeleton",
    "load_tokenizer",
    "load_trunk",
    "positions",
    "template_objection",
]

_SPECIAL = ("pad", "eos", "bos", "cls", "sep")


def choose_device(device: str | torch.device | None) -> torch.device:
    """The given device, else the first accelerator, else the CPU."""
    if device is not None:
        return torch.device(device)
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return accelerator or torch.device("cpu")


def load_tokenizer(name: str | Path) -> Any:
    """Load a tokenizer; raises ModelError if it can't be loaded."""
    return _load(AutoTokenizer, name, weights=False)


def load_trunk(name: str | Path, device: torch.device, dtype: str = "auto") -> Any:
    """Load a model without its head, in eval mode; its weights may lie elsewhere (`surefoot.rewards.trunk.reference`).

    Args:
        dtype: precision of its weights (`surefoot.rewards.trunk.dtypes`).

    Raises:
        ConfigError: the precision isn't one of ours. ModelError: the model can't be loaded.
    """
    precision = dtype_of(dtype, device)
    name = place_of_weights(name)
    _config(name)
    return _load(AutoModel, name, dtype=precision).to(device).eval()


def template_objection(*tokenizers: str | PreTrainedTokenizerBase) -> Objection:
    """Make an `Objection` that reports messages that the tokenizers' chat templates refuse.

    Args:
        tokenizers: or models' names, whose tokenizers are loaded when the first messages come.
    """
    readers: list[ChatReader] = []

    def objection(prompt: Text, completion: Text) -> str | None:
        if isinstance(prompt, str):
            return None
        if not readers:
            readers.extend(
                ChatReader(load_tokenizer(tokenizer) if isinstance(tokenizer, str) else tokenizer)
                for tokenizer in tokenizers
            )
        objections = (reader.objection(prompt, completion) for reader in readers)
        return next((problem for problem in objections if problem is not None), None)

    return objection


def load_classifier(name: str | Path, device: torch.device, dtype: str = "auto") -> Any:
    """Load a trained reward model (a classifier with one output) in eval mode.

    Args:
        dtype: precision of its weights (`surefoot.rewards.trunk.dtypes`).

    Raises:
        ConfigError: the precision isn't one of ours.
        ModelError: it can't be loaded, has more than one output, or its checkpoint lacks weights, the head's, say.
    """
    precision = dtype_of(dtype, device)
    config = _config(name)
    if config.num_labels != 1:
        kind = ", ".join(config.architectures or [])
        raise ModelError(f"'{name}' ({kind or 'model'}) has {config.num_labels} outputs; a reward model has one")
    model, told = _load(AutoModelForSequenceClassification, name, dtype=precision, output_loading_info=True)
    lost = sorted(told["missing_keys"])
    if lost:
        raise ModelError(
            f"'{name}' is not a trained reward model: its checkpoint has no {', '.join(lost[:3])}, which would be "
            "drawn at random; give a reward model, or train one from this checkpoint with `surefoot reward` "
            "(kind: linear, heads, lora or independent)"
        )
    return model.to(device).eval()


def load_base(base: str | Path, device: torch.device) -> tuple[Any, list[str]]:
    """Load a classifier with one output in fp32 for training: (model, names of parameters drawn at random).

    A head of another number of outputs than one is replaced by a new one.

    Raises:
        ModelError: it can't be loaded, or weights of its trunk don't fit its config.
    """
    _config(base)
    model, told = _load(
        AutoModelForSequenceClassification,
        base,
        num_labels=1,
        dtype=torch.float32,
        output_loading_info=True,
        ignore_mismatched_sizes=True,
    )
    others = sorted(name for name, *_ in told["mismatched_keys"])
    unfit = [name for name in others if name.startswith(f"{model.base_model_prefix}.")]
    if unfit:
        raise ModelError(f"'{base}' holds weights that don't fit its config.json: {', '.join(unfit[:3])}")
    return model.to(device), sorted({*told["missing_keys"], *others})


def load_skeleton(name: str | Path) -> Any:
    """Build the classifier of a config without weights, to read its embeddings and positions."""
    config = _config(name)
    with torch.device("meta"):
        return AutoModelForSequenceClassification.from_config(config, trust_remote_code=False)


def load_encoder(name: str | Path, model: Any, max_length: int) -> TextEncoder:
    """Load the text encoder of a model, which pads with the model's own pad token.

    Args:
        name: of the tokenizer.
        model: whose config names the pad token (a RoBERTa counts its positions by it); without one the tokenizer's
            is taken.
        max_length: in tokens; a model that takes fewer keeps its own limit.

    Raises:
        ModelError: the tokenizer can't pad, or a special token of it lies outside the model's embedding.
    """
    tokenizer, size = load_tokenizer(name), model.get_input_embeddings().weight.shape[0]
    outside = {
        kind: number
        for kind in _SPECIAL
        if (number := getattr(tokenizer, f"{kind}_token_id", None)) is not None and number >= size
    }
    if outside:
        kind, number = next(iter(outside.items()))
        raise ModelError(
            f"the {kind} token of the tokenizer of '{name}' has the number {number}, but the model's embedding has "
            f"{size} rows; resize the model's embedding and save it again, or choose another {kind} token"
        )
    own = model.config.get_text_config().pad_token_id
    known = tokenizer.convert_ids_to_tokens(own) if isinstance(own, int) and 0 <= own < size else None
    if known is not None:
        tokenizer.pad_token = known
    return TextEncoder(tokenizer, min(max_length, positions(model) or max_length))


def positions(model: Any) -> int | None:
    """Largest number of tokens of a row; None where the model has no limit.

    RoBERTa and its kin count positions from their pad token's number on, so that 514 positions take 512 tokens.
    """
    for name, module in model.named_modules():
        first = module.padding_idx if isinstance(module, nn.Embedding) else None
        if name.endswith("position_embeddings") and first is not None:
            return module.num_embeddings - first - 1
    limit = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None  # XLNet's is -1


def check_templates(places: Sequence[str | Path], text: Text) -> None:
    """Refuse reward models that can't read messages, before any of them is loaded.

    Args:
        places: models or sources.
        text: a prompt or completion of what they are to read; plain text needs no template.

    Raises:
        ModelError: a tokenizer has no chat template.
    """
    if isinstance(text, str):
        return
    for place in places:
        for name in _tokenizers(place):
            TextEncoder(load_tokenizer(name), 1).check_reads(text)


def _tokenizers(place: str | Path) -> list[str | Path]:
    """Folders of the tokenizers of a model or source; none for a source on the hub, which keeps them in subfolders."""
    folder, file = Path(resolve_model(place, weights=False)), "tokenizer_config.json"
    if folder.is_dir() and not (folder / file).exists():
        return sorted(path.parent for path in folder.rglob(file))
    try:
        load_tokenizer(place)
    except ModelError:  # if it is meant to be a model, loading it says so
        return []
    return [place]


def _config(name: str | Path) -> Any:
    """Load a config and check its pad token, on which transformers would fail without saying where."""
    config = _load(AutoConfig, name)
    text = config.get_text_config()
    pad, size = text.pad_token_id, getattr(text, "vocab_size", None)
    if pad is not None and size is not None and pad >= size:
        raise ModelError(
            f"pad_token_id {pad} in the config.json of '{name}' lies outside its embedding of {size} rows; set it to "
            "a token of the model"
        )
    return config


def _load(factory: Any, name: str | Path, *, weights: bool = True, **keywords: Any) -> Any:
    path = resolve_model(name, weights=weights)
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # what is missing is checked here
    hf_logging.disable_progress_bar()
    try:
        loaded = factory.from_pretrained(path, trust_remote_code=False, **keywords)
        _refuse_nan(loaded[0] if isinstance(loaded, tuple) else loaded, path)
        return loaded
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"can't load '{path}': {error}") from error
    finally:
        hf_logging.set_verbosity(verbosity)
        if bars:
            hf_logging.enable_progress_bar()


def _refuse_nan(loaded: Any, path: str) -> None:
    if not isinstance(loaded, torch.nn.Module):
        return
    for name, value in loaded.named_parameters():
        if not bool(torch.isfinite(value).all()):
            raise ModelError(f"the weights of '{path}' hold NaN or infinite numbers, first in {name}")
