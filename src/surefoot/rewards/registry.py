"""Find a kind of reward source by its name, and load a saved source.

A kind is one module in `surefoot.rewards.kinds`, named as the kind, or a folder with a `source.py`; its class is
registered:

    @register("heads")
    class SharedTrunkHeads(MemberSource): ...

An installed package adds a kind of its own with an entry point in the group `surefoot.sources`, whose name is the kind
and whose value is the class:

    [project.entry-points."surefoot.sources"]
    mine = "my_package.reward:MySource"

The kind then works in every command and study, as ours do.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from importlib import import_module, metadata
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError

from surefoot.data.training_pairs import TrainingPairs
from surefoot.errors import ConfigError, ModelError, SurefootError
from surefoot.files import read_json
from surefoot.rewards import kinds
from surefoot.rewards.hub import download
from surefoot.rewards.kinds.judge.access import JudgeAccess, given
from surefoot.rewards.saved import CALIBRATION, DIAGNOSIS, SOURCE, check_finite, check_folder, read_source
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.rewards.trunk.dtypes import Dtype, dtype_given
from surefoot.rewards.trunk.reference import trunk_given
from surefoot.types import Calibration

__all__ = ["ENTRY_POINTS", "known_kinds", "load_source", "register", "source_class"]

ENTRY_POINTS = "surefoot.sources"
Source = TypeVar("Source", bound=type[RewardSource])

_REGISTERED: dict[str, type[RewardSource]] = {}
_RENAMED = {"borrowed": "borrowed_variance"}
"""Names in sources that earlier versions saved."""
_BROKEN = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError),
    SafetensorError,
)
"""What loading raises, deep down, on a source whose parts are missing or don't fit."""


def register(kind: str) -> Callable[[Source], Source]:
    """Register a class as the source of a kind, the name that `source.json` and `surefoot reward` use.

    Raises:
        ConfigError: another class has that name already.
    """

    def decorate(source: Source) -> Source:
        held = _REGISTERED.get(kind)
        if held is not None and (held.__module__, held.__qualname__) != (source.__module__, source.__qualname__):
            raise ConfigError(f"kind '{kind}' is {held.__module__}.{held.__qualname__} already; choose another name")
        source.kind = kind
        _REGISTERED[kind] = source
        return source

    return decorate


def known_kinds() -> list[str]:
    """Names of all kinds: ours, those of installed packages, and those registered in this process."""
    return sorted({*_modules(), *_REGISTERED, *(point.name for point in metadata.entry_points(group=ENTRY_POINTS))})


def source_class(kind: str) -> type[RewardSource]:
    """The class of a kind, imported if need be.

    Raises:
        ConfigError: no kind has that name, or its package can't be imported.
    """
    modules = _modules()
    if kind not in _REGISTERED and kind in modules:
        import_module(f"{kinds.__name__}.{kind}" + (".source" if modules[kind] else ""))
    if kind not in _REGISTERED:
        for point in metadata.entry_points(group=ENTRY_POINTS, name=kind):
            try:
                register(kind)(point.load())
            except (ImportError, AttributeError) as error:
                raise ConfigError(f"kind: {kind} is {point.value}, which can't be imported: {error}") from error
    if kind not in _REGISTERED:
        raise ConfigError(f"kind must be one of {', '.join(known_kinds())}, got '{kind}'")
    return _REGISTERED[kind]


def _modules() -> dict[str, bool]:
    """Our kinds by name, and whether each is a folder, whose class is in its `source.py`."""
    return {module.name: module.ispkg for module in pkgutil.iter_modules(kinds.__path__)}


def load_source(
    directory: str | Path,
    device: str | torch.device | None = None,
    *,
    judge: JudgeAccess | Mapping[str, JudgeAccess] | None = None,
    dtype: Dtype | None = None,
    trunk: str | Path | None = None,
) -> RewardSource:
    """Load any saved source by its `source.json`, with its calibration if it has one.

    What is loaded isn't trusted: no code of it runs, and it names nothing outside of its folder but hub models. Its
    kind names a class that is installed here.

    Args:
        directory: what `save` wrote, or the name of a source on the hub (`push_to_hub`).
        device: where to run it; None takes the first accelerator, else the CPU.
        judge: where a judge is asked that is the source or a part of it, or that for each model's name; if None, the
            environment says (`judge.access`). The files never do.
        dtype: precision to run its frozen models in; None takes the one that it was fitted with. LoRA members are
            float32 whatever it says.
        trunk: model whose weights a source refers to that was saved without them (`self_contained: false`); if None,
            the environment variable SUREFOOT_TRUNK or this user's table says where they are. They must be the same.

    Raises:
        ConfigError: it is a judge, and nobody says where to ask it; or `dtype` isn't one of ours.
        ModelError: not a source directory, of a kind that isn't known here, or with a path, link, field or number
            that a source can't have; the message says which.
    """
    folder = Path(directory)
    if not folder.exists():
        folder = download(str(directory))
    if not (folder / SOURCE).exists():
        raise ModelError(f"{folder} is not a reward source: it has no {SOURCE}; train one with `surefoot reward`")
    check_folder(folder)
    kind = read_source(folder).get("kind")
    kind = _RENAMED.get(kind, kind) if isinstance(kind, str) else kind
    if not isinstance(kind, str) or kind not in known_kinds():
        raise ModelError(f"{folder / SOURCE} is of kind {kind!r}; this version knows {', '.join(known_kinds())}")
    source_type = source_class(kind)
    try:
        with given(judge), dtype_given(dtype), trunk_given(trunk):
            source = source_type.load(folder, device)
        return _with_figures(source, folder)
    except SurefootError:
        raise
    except _BROKEN as error:
        said = (
            f"it lacks {error}" if isinstance(error, KeyError) else str(error).split("\n")[0] or type(error).__name__
        )
        raise ModelError(f"{folder} can't be loaded as kind: {kind}: {said or type(error).__name__}") from error


def _with_figures(source: RewardSource, folder: Path) -> RewardSource:
    """The source with what lies beside it: calibration, diagnosis, and which pairs it was trained on."""
    if (folder / CALIBRATION).exists():
        source.calibration = Calibration.from_dict(check_finite(folder / CALIBRATION))
        source.variance_factor = source.calibration.variance_factor
        variance = source.calibration.variance_kind
        if isinstance(source, MemberSource) and variance != "smoothed":
            source.scale_members = any(scale != 1 for scale in source.calibration.scales)
            source.variance_kind = variance
    if (folder / DIAGNOSIS).exists():
        source.diagnosis = dict(read_json(folder / DIAGNOSIS))
    source.training_pairs = TrainingPairs.load(folder)
    return source
