"""Settings of `surefoot reward`: those of every kind, and beside them the chosen kind's own."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, fields, make_dataclass
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from surefoot.errors import ConfigError
from surefoot.ranges import check_ranges
from surefoot.rewards.registry import known_kinds, source_class
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.rewards.trunk.dtypes import check_dtype

__all__ = [
    "RewardSourceArguments",
    "all_settings",
    "check_owners",
    "command_settings",
    "reward_arguments",
    "with_kind_settings",
]


@dataclass
class RewardSourceArguments:
    """What to train, on what, and where it goes; the chosen kind's own settings are in `kind_settings`."""

    output_dir: str = field(metadata={"help": "The source's directory; the same again resumes."})
    model_name_or_path: str = field(
        metadata={"help": "Base model: a directory, a hub name, or package:NAME/FOLDER inside an installed package."}
    )
    dataset_name: str = field(metadata={"help": "Preferences: parquet, json, jsonl, csv, directory or hub name."})
    kind: str = field(
        default="linear",
        metadata={"help": "Where the variance comes from (docs/sources.md); kinds of other packages work too."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_train_split: str | None = field(default=None, metadata={"help": "Split to train on; all rows if none."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Held-out split; if none, `held_out` of the prompts are set aside."}
    )
    held_out: float = field(default=0.1, metadata={"help": "Share of prompts held out where there is no test split."})
    bad_rows: str = field(
        default="error",
        metadata={"help": "error names unusable rows, drop leaves them out.", "choices": ("error", "drop")},
    )
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})
    scale_members: bool = field(
        default=False, metadata={"help": "Divide each member by its standard deviation on the calibration set."}
    )
    variance: str = field(
        default="moderated",
        metadata={
            "help": "smoothed: fitted to the features of a frozen trunk; raw: the sample variance, which from few "
            "members is riskier than none.",
            "choices": ("moderated", "smoothed", "raw"),
        },
    )
    max_length: int = field(default=512, metadata={"help": "In tokens."})
    overlong: str = field(
        default="drop",
        metadata={"help": "Pairs over max_length; truncate cuts on the left.", "choices": ("drop", "truncate")},
    )
    pooling: str | None = field(
        default=None, metadata={"help": "Of the hidden states that are read: last (decoders), mean, or cls (BERT)."}
    )
    layer: int | None = field(default=None, metadata={"help": "Hidden state that is read, −1 the last."})
    dtype: str | None = field(
        default=None,
        metadata={"help": "Precision of frozen models: auto (float32 on a CPU, else bfloat16), float32 or bfloat16."},
    )
    self_contained: bool = field(
        default=True,
        metadata={
            "help": "false: the source refers to its frozen trunk by a digest of its weights in place of a copy."
        },
    )
    kind_settings: Any = field(default=None, init=False)

    def check(self) -> None:
        """Refuse values that no kind knows, and settings that this kind has no use for, before anything is loaded.

        Raises:
            ConfigError: what is wrong, and what to do.
        """
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        check_ranges(vars(self))
        source = source_class(self.kind)
        if source.fit.__func__ is RewardSource.fit.__func__:  # type: ignore[attr-defined]
            raise ConfigError(f"kind: {self.kind} isn't made by `surefoot reward`; choose another")
        own, smoothed = _fields(source.settings), self.variance == "smoothed"
        if smoothed and source.made_from not in ("model", "reward model"):
            raise ConfigError(
                f"variance: smoothed reads the features of a trunk, which kind: {self.kind} hasn't; it is for heads, "
                "independent, lora, dropout and kinds like them"
            )
        of_members = self.scale_members or (self.variance != "moderated" and "variance" not in own)
        if of_members and not issubclass(source, MemberSource):
            raise ConfigError(f"kind: {self.kind} has no members: scale_members and variance don't apply to it")
        if smoothed and getattr(self.kind_settings, "members", 2) < 2:
            raise ConfigError("variance: smoothed needs at least two members")
        for name in ("pooling", "layer", "dtype"):
            if getattr(self, name) is not None and not smoothed and name not in own:
                raise _foreign(self.kind, [name])
        if not self.self_contained:
            if not smoothed and "pooling" not in own:
                raise ConfigError(f"self_contained: false needs a frozen trunk, which kind: {self.kind} hasn't")
            if getattr(self.kind_settings, "trunk_epochs", 0) > 0:
                raise ConfigError(
                    "self_contained: false needs a frozen trunk: with trunk_epochs it is the source's own"
                )


def reward_arguments(**given: Any) -> RewardSourceArguments:
    """The settings of `surefoot reward`, given flat, as a config file has them.

    Raises:
        ConfigError: a setting that the kind doesn't have, or a value that it can't have.
    """
    common = {item.name for item in fields(RewardSourceArguments) if item.init}
    args = RewardSourceArguments(**{name: value for name, value in given.items() if name in common})
    return with_kind_settings(args, {name: value for name, value in given.items() if name not in common})


def with_kind_settings(args: RewardSourceArguments, given: dict[str, Any]) -> RewardSourceArguments:
    """The arguments with an instance of the kind's own settings, made of what was given and of what is common.

    Args:
        given: of the kind's settings; None stands for what wasn't given.

    Raises:
        ConfigError: see `reward_arguments`.
    """
    check_owners(args.kind, given)
    if args.dtype is not None:
        check_dtype(args.dtype)  # before `Literal` is checked: it says why not float16
    settings = source_class(args.kind).settings
    if settings is not None:
        hints = get_type_hints(settings)
        values = {name: _as_declared(value, hints[name]) for name, value in given.items() if value is not None}
        for name in _fields(settings):
            value = getattr(args, name) if name in _COMMON else None
            if value is not None and (name != "variance" or value in _choices(hints[name])):  # `check` refuses others
                values[name] = value
        check_ranges(values)
        for name, value in values.items():
            allowed = _choices(hints[name])
            if allowed and value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, got '{value}'")
        args.kind_settings = settings(**values)
    return args


def command_settings(kind: str, but: Collection[str] = ()) -> type:
    """A dataclass of the kind's own settings for the command line: each None until given, with the same help.

    Args:
        but: names that are left out.
    """
    settings = source_class(kind).settings
    hints = {} if settings is None else get_type_hints(settings)
    described = {} if settings is None else {item.name: item.metadata for item in fields(settings)}
    return make_dataclass(
        f"SettingsOf{kind.title()}",
        [
            (
                name,
                _on_command_line(hints[name]),
                field(default=None, metadata={**described[name], **_shown_choices(hints[name])}),
            )
            for name in _fields(settings)
            if name not in {*_COMMON, *but}
        ],
    )


def all_settings() -> set[str]:
    """Names of the settings of all kinds."""
    return {name for kind in known_kinds() for name in _fields(source_class(kind).settings)}


def check_owners(kind: str, given: Iterable[str]) -> None:
    """Refuse settings that the kind doesn't have.

    Raises:
        ConfigError: names them, and the kinds that have them.
    """
    own = _fields(source_class(kind).settings)
    foreign = sorted(name for name in given if name not in own)
    if foreign:
        raise _foreign(kind, foreign)


def _foreign(kind: str, names: Iterable[str]) -> ConfigError:
    owners = {
        name: [other for other in known_kinds() if name in _fields(source_class(other).settings)] for name in names
    }
    said = ", ".join(
        f"{name} (kind: {' or '.join(kinds)})" if kinds else f"{name}, nor has any other kind"
        for name, kinds in owners.items()
    )
    return ConfigError(f"kind: {kind} has no {said}; remove what doesn't belong, or change the kind")


_CHOICES: dict[str, tuple[str, ...]] = {
    "bad_rows": ("error", "drop"),
    "overlong": ("drop", "truncate"),
    "variance": ("moderated", "raw", "smoothed"),
}
_COMMON = ("seed", "max_length", "overlong", "variance", "pooling", "layer", "dtype")
"""Settings of every kind that are handed on to a kind whose own settings have them."""


def _fields(settings: type | None) -> list[str]:
    return [] if settings is None else [item.name for item in fields(settings)]


def _alternatives(hint: Any) -> tuple[Any, ...]:
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return tuple(kind for kind in kinds if kind is not type(None))


def _choices(hint: Any) -> tuple[Any, ...]:
    """What a `Literal` allows; nothing for other types."""
    return tuple(value for kind in _alternatives(hint) if get_origin(kind) is Literal for value in get_args(kind))


def _shown_choices(hint: Any) -> dict[str, Any]:
    return {"choices": _choices(hint)} if _choices(hint) else {}


def _on_command_line(hint: Any) -> Any:
    """The type that a parser of words understands: choices as text, which is checked later, and tuples as lists."""
    (kind,) = _alternatives(hint)
    if get_origin(kind) is Literal:
        kind = str
    elif get_origin(kind) is tuple:
        kind = list[get_args(kind)[0]]  # type: ignore[misc]
    return kind | None


def _as_declared(value: Any, hint: Any) -> Any:
    return tuple(value) if isinstance(value, list) and get_origin(_alternatives(hint)[0]) is tuple else value
