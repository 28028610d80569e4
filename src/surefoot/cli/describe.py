"""Write `options.json`, from which `--help` and shell completion read every command's options without importing torch.

    python -m surefoot.cli.describe

A test fails while the file differs from the dataclasses.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from importlib import import_module, metadata
from inspect import get_annotations
from typing import Any

from surefoot.cli.help import DESCRIPTION, OTHERS
from surefoot.cli.parsing import build_parser
from surefoot.files import write_text
from surefoot.rewards.source import RewardSource

__all__ = ["describe", "describe_all", "describe_kind"]

_GROUPS: dict[str, tuple[str, ...]] = {
    "reward and variance": (
        *("kind", "reward", "reward_source", "reward_models", "reward_config", "gold", "preset", "aggregate"),
        *("aggregate_parameter", "weights", "objective", "weight_floor", "weight_ceiling", "variance"),
        *("scale_members", "reference_variance", "objectives", "rule", "kappa", "plain_text"),
    ),
    "KL": ("target_kl", "kl_budgets", "beta", "float32_log_ratio"),
    "anchors": (
        *("anchor", "anchor_completions", "anchor_file", "anchor_memory", "max_anchors", "calibration_prompts"),
    ),
    "data": (
        *(
            "dataset_name",
            "completions",
            "start_dataset",
            "eval_dataset",
            "dataset_config",
            "dataset_split",
            "dataset_train_split",
        ),
        *("dataset_test_split", "held_out", "dataset_prompts", "dataset_streaming", "bad_rows", "exclude"),
    ),
    "model": ("model_name_or_path", "max_length", "overlong", "pooling", "layer"),
    "output": ("output_dir", "output"),
}
"""Title of a group to the options in it, both in the order of the help."""
_OF_CLASSES = {
    "JudgeArguments": "judge (of a saved judge)",
    "SettingsOfCriteria": "kind: criteria",
    "MemoryPlanArguments": "memory of a model (with --plan)",
    "ModelConfig": "model (TRL)",
}
_TRAINING = "training (TRL)"
_REQUIRED: dict[str, tuple[str, ...]] = dict.fromkeys(("rloo", "grpo", "dpo"), ("model_name_or_path", "dataset_name"))
_REQUIRED["study"] = ("settings", "sources")
_REQUIRED["online"] = ("reward",)
"""Options that a command needs although TRL's dataclasses, or a file's, have a default."""
_ACCELERATE = {
    "flags": ["--accelerate_config"],
    "metavar": "NAME",
    "help": "File, or one of TRL's: run under `accelerate launch` with it.",
}


def describe_all() -> dict[str, Any]:
    """Groups of options of every command, and the versions of what other packages' options are from."""
    packages = ("trl", "transformers")
    described = {command: groups for command in OTHERS for groups in [describe(command)]}
    return {"versions": {name: metadata.version(name) for name in packages}, "commands": described}


def describe(command: str) -> dict[str, list[dict[str, Any]]]:
    """The groups of a command: title to options, each the arguments of argparse's `add_argument`."""
    if command == "reward":
        return _describe_reward()
    module = import_module(f"surefoot.cli.{command}")
    types = module.option_types() if hasattr(module, "option_types") else (module.DemoConfig,)
    groups = _grouped(types, command)
    for option in (option for options in groups.values() for option in options):
        if option["flags"][0][2:] in _REQUIRED.get(command, ()):
            option["help"] += " (required)"
    if "--model_revision" in {flag for options in groups.values() for item in options for flag in item["flags"]}:
        groups.setdefault(_TRAINING, []).insert(0, _ACCELERATE)
    return groups


def _describe_reward() -> dict[str, list[dict[str, Any]]]:
    """What all kinds share, and a group for the settings of each of our kinds."""
    from surefoot.cli.reward import option_types
    from surefoot.rewards.registry import known_kinds, source_class

    ours = [kind for kind in known_kinds() if source_class(kind).__module__.startswith("surefoot.")]
    shared, _, judge = option_types(ours[0])
    kinds = {f"kind: {kind}": describe_kind(kind) for kind in ours}
    general = _grouped((shared,), "reward")
    kind = next(option for options in general.values() for option in options if option["flags"] == ["--kind"])
    kind["choices"] = [name for name in ours if _is_trained(source_class(name))]
    del kind["metavar"]
    groups = general | {title: options for title, options in kinds.items() if options}
    return groups | _grouped((judge,), "reward")


def _is_trained(source: type[RewardSource]) -> bool:
    """Whether `surefoot reward` makes sources of this class."""
    return any("fit" in vars(one) for one in source.__mro__ if one is not RewardSource)


def describe_kind(kind: str) -> list[dict[str, Any]]:
    """The settings that a kind of reward source has beside those of all kinds.

    Raises:
        ConfigError: there is no such kind.
    """
    from surefoot.cli.reward import option_types

    own = option_types(kind)[1:2]
    return [_option(action) for action in _actions(build_parser(own, "reward"), own)]


def _grouped(types: tuple[type, ...], command: str) -> dict[str, list[dict[str, Any]]]:
    parser, titles = build_parser(types, command), _titles(types)
    order = [*_GROUPS, "settings", *_OF_CLASSES.values(), _TRAINING]
    groups: dict[str, list[dict[str, Any]]] = {title: [] for title in order}
    actions = {action.dest: action for action in _actions(parser, types)}
    first = [name for names in _GROUPS.values() for name in names if name in actions]
    for name in (*first, *(name for name in actions if name not in first)):
        groups[titles[name]].append(_option(actions[name]))
    return {title: options for title, options in groups.items() if options}


def _titles(types: tuple[type, ...]) -> dict[str, str]:
    """The group of each field: by its name, else by its class, else ours before TRL's."""
    by_name = {name: title for title, names in _GROUPS.items() for name in names}
    titles = {}
    for settings_class in types:
        for item in dataclasses.fields(settings_class):
            home = next(one for one in reversed(settings_class.__mro__) if item.name in get_annotations(one))
            usual = "settings" if home.__module__.startswith(("surefoot", "types")) else _TRAINING
            by_class = _OF_CLASSES.get(settings_class.__name__)
            named = None if by_class and settings_class.__name__ == "MemoryPlanArguments" else by_name.get(item.name)
            titles[item.name] = named or by_class or usual
    return titles


def _actions(parser: Any, types: tuple[type, ...]) -> Iterator[Any]:
    """The parser's action of each field; those that only switch a field off are part of it."""
    seen = {item.name for settings_class in types for item in dataclasses.fields(settings_class)}
    for action in parser._actions:
        if action.dest in seen:
            seen.discard(action.dest)
            yield action


def _option(action: Any) -> dict[str, Any]:
    """The arguments of `add_argument` for help and completion: no types, since nothing is parsed by them."""
    is_switch = action.nargs == "?" and action.const is True
    option: dict[str, Any] = {"flags": [f"--{action.dest}"]}
    if is_switch:
        option["choices"] = ["true", "false"]
    elif action.choices is not None:
        option["choices"] = list(map(str, action.choices))
    else:
        option["metavar"] = {int: "N", float: "X"}.get(action.type, "TEXT")
    if action.nargs is not None:
        option["nargs"] = action.nargs
    option["help"] = " ".join((action.help or "").split()).replace("%%", "%") + _default(action, is_switch)
    return option


def _default(action: Any, is_switch: bool) -> str:
    if action.required:
        return " (required)"
    if action.default is None or action.default in ([], {}, ""):
        return ""
    value = str(action.default).lower() if is_switch else getattr(action.default, "value", action.default)
    return f" (default: {' '.join(map(str, value)) if isinstance(value, list) else value})"


if __name__ == "__main__":
    write_text(DESCRIPTION, json.dumps(describe_all(), indent=1, ensure_ascii=False) + "\n")
