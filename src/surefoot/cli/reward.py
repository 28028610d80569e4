"""`surefoot reward`: train a reward source with a variance."""

from __future__ import annotations

import shlex
from dataclasses import fields
from typing import Any

from surefoot.cli.parsing import given_settings, parse
from surefoot.progress import progress
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeAccess, JudgeArguments


def run(arguments: list[str]) -> None:
    """Train as the settings say and print what came of it and what it cost."""
    from rich.console import Console
    from rich.table import Table

    folder, record = _train(arguments)
    metrics = record["metrics"]
    count = len(metrics["accuracy_of_members"])
    table = Table(title=f"{metrics.get('description', f'{count} members')}, {metrics['train_pairs']} training pairs")
    table.add_column("")
    table.add_column(f"accuracy on {metrics['held_out_pairs']} held-out pairs", justify="right")
    for name, accuracy in _members(metrics["accuracy_of_members"]):
        table.add_row(name, f"{accuracy:.3f}")
    panel = _of_panel(metrics.get("judge"))
    whole = "their weighted mean" if panel else "their mean" if count else "the model"
    table.add_row(whole, f"{metrics['accuracy_of_mean']:.3f}")
    console = Console()
    console.print(table)
    for line in panel or _of_judge(metrics.get("judge")):
        console.print(line)
    reliability = metrics["calibration"]["notes"].get("reliability")
    if reliability is not None:
        console.print(f"reliability of the variance: {reliability:.2f} (1 at most; weights need about .6)")
    console.print(
        f"took {metrics['train_seconds']:.0f} s; the source is in {folder}/source", soft_wrap=True, markup=False
    )
    if count == 1:
        console.print("One member has no variance: weighting needs at least two.")
    else:
        line = next_command(folder, record["config"])
        console.print(f"Next: {line}", soft_wrap=True, markup=False, highlight=False)


def _of_judge(report: dict[str, Any] | None) -> list[str]:
    """How many of a judge's replies gave a rating, how many criteria an answer, and what the variance is made of."""
    if report is None:
        return []
    lines = []
    if report["replies"] or "criteria" not in report:
        lines.append(f"replies with a rating: {_share(report['replies_read'], report['replies'])}")
    if "criteria" in report:
        lines.append(f"criteria with an answer: {_share(report['criteria_answered'], report['criteria'])}")
        return [*lines, f"variance from {report['variance_from']}, raw mean: {_known(report['variance_raw'])}"]
    within, between = (_known(report[name]) for name in ("variance_within", "variance_between"))
    return [*lines, f"variance of one reply: {within} within wordings, {between} between them"]


def _share(part: int, whole: int) -> str:
    return f"{part} of {whole}" + (f" ({100 * part / whole:.0f}%)" if whole else "")


def _known(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.3f}"


def next_command(folder: str, config: dict[str, Any]) -> str:
    """The command that diagnoses the source, quoted for a shell.

    The source's record has its data; what it hasn't is the hub dataset's configuration, and where judges are asked.

    Args:
        folder: `output_dir`.
        config: settings in the record.
    """
    words = ["surefoot", "diagnose", "--reward_source", f"{folder}/source"]
    own = JudgeAccess.of_settings(config)
    judge = {item.name: config.get(item.name) for item in fields(JudgeArguments)}
    if own is not None:
        judge |= {**vars(own.arguments), "judges": judge["judges"]}
    for name, value in {"dataset_config": config.get("dataset_config"), **judge}.items():
        words += [] if value is None else [f"--{name}", str(value)]
    return shlex.join(words)


def _members(accuracies: list[float]) -> list[tuple[str, float]]:
    """Each member with its accuracy; of more than ten only the lowest, the median and the highest."""
    if len(accuracies) <= 10:
        return [(f"member {k}", accuracy) for k, accuracy in enumerate(accuracies)]
    ordered = sorted(accuracies)
    return [
        ("lowest member", ordered[0]),
        ("median member", ordered[len(ordered) // 2]),
        ("highest member", ordered[-1]),
    ]


def _of_panel(report: dict[str, Any] | None) -> list[str]:
    """As `_of_judge`, of a panel; nothing for other sources."""
    if report is None or "variance_between_families" not in report:
        return []
    names = ("variance_between_families", "variance_within_families")
    between, within = ("unknown" if report[name] is None else f"{report[name]:.3f}" for name in names)
    return [
        f"replies with a rating: {report['replies_read']} of {report['replies']}",
        f"variance between families: {between}; noise of their weighted mean: {within}",
    ]


def train(arguments: list[str]) -> str:
    """Train (or find finished) the source that the settings name, and return its directory."""
    folder, _ = _train(arguments)
    return f"{folder}/source"


def option_types(kind: str) -> tuple[type, ...]:
    """Dataclasses whose fields are the options: those of every kind, the kind's own, and those of judges."""
    from surefoot.rewards.config import RewardSourceArguments, command_settings

    return RewardSourceArguments, command_settings(kind), JudgeArguments


def arguments_of(arguments: list[str]) -> Any:
    """The settings, of which the kind's own are known once the kind is."""
    from surefoot.rewards.config import (
        RewardSourceArguments,
        all_settings,
        check_owners,
        with_kind_settings,
    )

    given = given_settings(arguments)
    kind = given.get("kind")
    if not isinstance(kind, str):  # not given, or refused below
        kind = RewardSourceArguments.kind
    types = option_types(kind)
    own, common = types[1], {item.name for item in fields(RewardSourceArguments)}
    others = set(given) - common - {item.name for item in fields(own)}
    check_owners(kind, others and others & all_settings())
    args, settings = parse(types, arguments, "reward")
    return with_kind_settings(args, {name: value for name, value in vars(settings).items() if value is not None})


def _train(arguments: list[str]) -> tuple[str, dict[str, Any]]:
    from surefoot.rewards.run import run_reward

    quieten()
    args = arguments_of(arguments)
    own = JudgeAccess.of_settings(vars(args))
    if own is not None:  # for whoever loads the source in this process
        own.arguments.publish()
    with progress() as show:
        record = run_reward(args, given_settings(arguments), lambda what, share: show(what, float(share), 1.0))
    return args.output_dir, record
