"""Run a model's forward in float32 although its weights, or its training, are in half precision.

The log-ratio ln π/π₀ of a completion is a small difference of two large sums. In bf16 every layer rounds to 8 bits,
and a policy that has moved a little rounds differently from its reference: the error is several times the difference.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["in_float32", "in_half_precision"]

_HALF = (torch.bfloat16, torch.float16)


def in_half_precision(model: nn.Module, mixed_precision: str) -> bool:
    """Whether a forward of the model rounds to bf16 or fp16.

    Args:
        mixed_precision: of the accelerator ("no", "bf16", …).
    """
    return mixed_precision in ("bf16", "fp16") or any(value.dtype in _HALF for value in model.parameters())


@contextmanager
def in_float32(model: nn.Module, accelerator: Any) -> Iterator[None]:
    """Inside, compute the model's forward (without a gradient) in float32, without autocast and dropout.

    Weights are converted a layer at a time, so that only one layer and the embeddings need float32 memory. Quantized
    layers keep the precision of their own kernels.

    Args:
        model: whole on this process, neither sharded nor offloaded; with adapters or without.
        accelerator: accelerate's, whose autocast it was prepared for.
    """
    layers = _layers(model)
    inside = {module for layer in layers for module in layer.modules()}
    training = model.training
    model.eval()
    with ExitStack() as stack:
        stack.callback(model.train, training)
        stack.enter_context(_without_autocast(model, accelerator))
        stack.enter_context(_without_flash(model))
        stack.enter_context(_raised(module for module in model.modules() if module not in inside))
        for layer in layers:
            stack.enter_context(_raised_while_run(layer))
        yield


def _layers(model: nn.Module) -> nn.ModuleList | list[nn.Module]:
    """The model's layers: its module list with the most parameters."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(value.numel() for value in layers.parameters()), default=[])


@contextmanager
def _without_autocast(model: nn.Module, accelerator: Any) -> Iterator[None]:
    """Undo accelerate's autocast, which wraps the model's forward and which TRL requests as well."""
    wrapped, plain = model.__dict__.get("forward"), model.__dict__.get("_original_forward")
    native, accelerator.native_amp = accelerator.native_amp, False
    if plain is not None:
        model.forward = plain
    try:
        yield
    finally:
        accelerator.native_amp = native
        if plain is not None:
            model.forward = wrapped  # type: ignore[assignment]


@contextmanager
def _without_flash(model: Any) -> Iterator[None]:
    """Use sdpa in place of flash attention, which works in half precision only."""
    configs = {id(config): config for config in (model.config, model.config.get_text_config())}.values()
    held = [(config, config._attn_implementation) for config in configs]
    for config, name in held:
        if name is not None and "flash" in name:
            config._attn_implementation = "sdpa"
    try:
        yield
    finally:
        for config, name in held:
            config._attn_implementation = name


@contextmanager
def _raised(modules: Iterable[nn.Module]) -> Iterator[None]:
    held = _raise(modules)
    try:
        yield
    finally:
        _lower(held)


@contextmanager
def _raised_while_run(layer: nn.Module) -> Iterator[None]:
    held: list[tuple[nn.Module, str, Tensor]] = []

    def before(module: nn.Module, args: Any) -> None:
        held.extend(_raise(module.modules()))

    def after(module: nn.Module, args: Any, output: Any) -> None:
        _lower(held)
        held.clear()

    handles = (layer.register_forward_pre_hook(before), layer.register_forward_hook(after, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _raise(modules: Iterable[nn.Module]) -> list[tuple[nn.Module, str, Tensor]]:
    """Replace half-precision parameters and buffers by float32 copies; returns what was replaced.

    The parameters themselves are not changed, since optimizers and DDP hold references to them.
    """
    held: list[tuple[nn.Module, str, Tensor]] = []
    copies: dict[int, Tensor] = {}
    for module in modules:
        for name, value in _own_tensors(module):
            if value.dtype not in _HALF:
                continue
            if id(value) not in copies:  # tied weights are copied once
                copy = value.detach().float()
                parameter = isinstance(value, nn.Parameter)
                copies[id(value)] = nn.Parameter(copy, requires_grad=False) if parameter else copy
            held.append((module, name, value))
            setattr(module, name, copies[id(value)])
    return held


def _lower(held: list[tuple[nn.Module, str, Tensor]]) -> None:
    for module, name, value in held:
        setattr(module, name, value)


def _own_tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    """The module's own parameters and buffers, without those of its parts."""
    return [
        *module.named_parameters(recurse=False, remove_duplicate=False),
        *module.named_buffers(recurse=False, remove_duplicate=False),
    ]
