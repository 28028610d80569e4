"""Models and tokenizers for rewards, loaded safely and on the right device."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer
from transformers import logging as hf_logging

from surefoot.errors import ModelError

__all__ = ["choose_device", "load_base", "load_classifier", "load_tokenizer", "load_trunk", "resolve_model"]


def choose_device(device: str | torch.device | None) -> torch.device:
    """The device asked for, or the first accelerator, or the CPU."""
    if device is not None:
        return torch.device(device)
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _dtype(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "cpu" else torch.bfloat16


def resolve_model(name: str | Path, *, weights: bool = True) -> str:
    """The model's directory or hub name; `package:NAME/FOLDER` is a folder inside an installed Python package.

    NAME is a top-level package: looking for a dotted one would import its parents. A loaded `source.json` can't say
    `package:` at all (`surefoot.rewards.saved`).

    Args:
        weights: whether a local directory must hold a model; a tokenizer may stand alone.

    Raises:
        ModelError: the package isn't installed or its name is dotted, the folder leads out of it, or a local directory
            holds no model or no weights.
    """
    text = str(name)
    if text.startswith("package:"):
        text = str(_inside_package(text))
    folder = Path(text)
    if not weights:
        return text
    if folder.is_dir() or text.startswith((".", "/")):
        if not (folder / "config.json").exists():
            raise ModelError(f"{folder} is not a model directory: it has no config.json")
        if not any(folder.glob("*.safetensors*")):
            raise ModelError(f"{folder} holds no *.safetensors weights; save the model there with save_pretrained")
    return text


def _inside_package(text: str) -> Path:
    package, _, inner = text.removeprefix("package:").partition("/")
    if not package.isidentifier() or ".." in Path(inner).parts or Path(inner).is_absolute():
        raise ModelError(f"model '{text}' must be package:NAME/FOLDER: a top-level package, a folder inside it")
    spec = None if package == "__main__" else find_spec(package)
    if spec is None or spec.origin is None or spec.submodule_search_locations is None:
        raise ModelError(f"model '{text}' needs the package {package}; install it (surefoot[examples] has it)")
    return Path(spec.origin).parent / inner


def load_tokenizer(name: str | Path) -> Any:
    return _load(AutoTokenizer, name, weights=False)


def load_trunk(name: str | Path, device: torch.device) -> Any:
    """The model without a head, in eval mode; fp32 on the CPU, bf16 elsewhere."""
    return _load(AutoModel, name, dtype=_dtype(device)).to(device).eval()


def load_classifier(name: str | Path, device: torch.device, *, for_training: bool = False) -> Any:
    """A sequence classifier with one output, the reward; fp32 for training and on the CPU, bf16 elsewhere.

    A checkpoint without a reward head gets a new one, drawn from torch's random state.

    Raises:
        ModelError: it can't be loaded, or a saved reward model has more than one output.
    """
    dtype = torch.float32 if for_training else _dtype(device)
    if not for_training:
        labels = _load(AutoConfig, name).num_labels
        if labels != 1:
            raise ModelError(f"'{name}' has {labels} outputs; a reward model has one")
    model = _load(AutoModelForSequenceClassification, name, num_labels=1, dtype=dtype)
    return model.to(device) if for_training else model.to(device).eval()


def load_base(base: str | Path, device: torch.device) -> tuple[Any, list[str]]:
    """(classifier with one output, fp32; names of the parameters that its checkpoint lacks, which are drawn)."""
    model, told = _load(
        AutoModelForSequenceClassification, base, num_labels=1, dtype=torch.float32, output_loading_info=True
    )
    return model.to(device), sorted(told["missing_keys"])


def _load(factory: Any, name: str | Path, *, weights: bool = True, **keywords: Any) -> Any:
    path = resolve_model(name, weights=weights)
    verbosity, bars = hf_logging.get_verbosity(), hf_logging.is_progress_bar_enabled()
    hf_logging.set_verbosity_error()  # a new head is expected, not news
    hf_logging.disable_progress_bar()
    try:
        found = factory.from_pretrained(path, **keywords)
        _refuse_nan(found[0] if isinstance(found, tuple) else found, path)
        return found
    except (OSError, ValueError) as error:
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
