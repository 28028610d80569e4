"""`surefoot judge try`: show what a judge is sent, what it replies, what is read from that, and what it costs.

Of a judge that rates, and of criteria, some of which verifiers decide.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from surefoot.cli.parsing import given_settings, parse
from surefoot.quiet import quieten
from surefoot.rewards.kinds.judge.access import JudgeArguments

if TYPE_CHECKING:
    from surefoot.rewards.config import RewardSourceArguments
    from surefoot.rewards.kinds.criteria.source import CriteriaSource
    from surefoot.rewards.kinds.judge.source import JudgeSource
    from surefoot.rewards.kinds.judge.trial_result import Read, Trial, TriedCall, TriedCriterion
    from surefoot.rewards.kinds.judge.trial_texts import TrialText

_KINDS = ("judge", "criteria")

_LONGEST = 1500
"""Most characters of a message or reply that are shown without `full`."""
_CONTROL = re.compile(r"[^\n\t\x20-\x7e\xa0-\U0010ffff]|[\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that move a terminal's cursor, change its colours or turn its text round."""


@dataclass
class JudgeTryArguments:
    """Settings of `surefoot judge try`. Give a judge's settings, or the `reward_source` that was saved with them."""

    kind: str = field(default="judge", metadata={"help": "As for `surefoot reward`.", "choices": _KINDS})
    model_name_or_path: str | None = field(default=None, metadata={"help": "The judge's name at its endpoint."})
    reward_source: str | None = field(
        default=None, metadata={"help": "Directory or hub name of a saved judge, instead of its settings."}
    )
    dataset_name: str | None = field(
        default=None,
        metadata={
            "help": "prompt and completion, or chosen and rejected; file or hub. Unless given on the command line: "
            "ten completions that come with surefoot, or of kind criteria the pairs that `surefoot reward` holds out."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    n: int = field(default=10, metadata={"help": "Completions that are tried, the first ones."})
    full: bool = field(default=False, metadata={"help": "Show long and repeated texts whole."})
    json: str | None = field(default=None, metadata={"help": "Write everything to this file too."})


def _check_writable(path: str) -> None:
    from surefoot.errors import ConfigError
    from surefoot.files import scratch

    reason = "it is a directory" if Path(path).is_dir() else ""
    try:
        with scratch(path):
            pass
    except OSError as error:
        reason = reason or f"{error.strerror}: {error.filename}"
    if reason:
        raise ConfigError(f"json: can't write {path}: {reason}; name another file")


def option_types() -> tuple[type, ...]:
    """Dataclasses whose fields are the options."""
    from surefoot.rewards.config import command_settings

    shared = {item.name for item in fields(command_settings("judge"))}
    return JudgeTryArguments, command_settings("judge"), command_settings("criteria", shared), JudgeArguments


def run(arguments: list[str]) -> None:
    """Ask the judge, print everything that came of it, and raise if nothing did."""
    from rich.console import Console

    from surefoot.errors import ModelError, RunError
    from surefoot.files import write_json

    quieten()
    words = _after_action(arguments)
    args, *settings = parse(option_types(), words, "judge", unread=_of_reward())
    given = {name: value for some in settings for name, value in vars(some).items() if value is not None}
    source, made = _source(args, given, given_settings(words))
    texts = _texts(args, source, made)
    if args.json is not None:
        _check_writable(args.json)  # before anything is paid
    console = Console()
    for line in _beginning(source, texts):
        _print(console, line)
    with console.status("asking …"):
        trial = _tried(source, texts)
    for line in _report(trial, args.full):
        _print(console, line)
    console.print(_table(trial))
    for line in _summary(trial, source):
        _print(console, line)
    if args.json is not None:
        _print(console, f"everything: {write_json(args.json, trial.to_dict()).resolve()}")
    if trial.interrupted:
        raise KeyboardInterrupt("the same command asks from the beginning")
    if trial.error is not None:
        raise RunError(trial.error)
    if trial.calls and not trial.read:
        raise ModelError(f"none of {len(trial.calls)} calls gave a rating; what to do is said above")


def _after_action(arguments: list[str]) -> list[str]:
    """The words after `try`.

    Raises:
        ConfigError: it isn't there.
    """
    from surefoot.cli.help import ACTIONS
    from surefoot.errors import ConfigError, did_you_mean

    known = ACTIONS["judge"]
    if arguments and arguments[0] in known:
        return arguments[1:]
    word = "" if not arguments or arguments[0].startswith("-") else arguments[0]
    what = f"there is no action '{word}'{did_you_mean(word, known)}" if word else "say first what to do with the judge"
    raise ConfigError(f"{what}: `surefoot judge try --config FILE`; see `surefoot judge --help`")


def _of_reward() -> set[str]:
    """Settings of `surefoot reward` that a judge's config holds, and a trial has no use for."""
    from surefoot.rewards.config import RewardSourceArguments

    return {item.name for item in fields(RewardSourceArguments)} - {"kind", "model_name_or_path"}


def _source(
    args: Any, given: dict[str, Any], settings: dict[str, Any]
) -> tuple[JudgeSource | CriteriaSource, RewardSourceArguments | None]:
    """The source, and the settings of `surefoot reward` that name its held-out pairs; None if nothing does.

    Args:
        given: the kind's settings that were given.
        settings: all that were given, of the config too.
    """
    from surefoot.errors import ConfigError
    from surefoot.rewards.config import reward_arguments
    from surefoot.rewards.kinds.criteria.source import CriteriaSource
    from surefoot.rewards.kinds.judge.source import JudgeSource
    from surefoot.rewards.registry import load_source

    if (args.reward_source is None) == (args.model_name_or_path is None):
        raise ConfigError("give a judge's config (with model_name_or_path and endpoint), or reward_source, not both")
    if args.reward_source is None:
        common = {"output_dir": "", "dataset_name": "", "model_name_or_path": args.model_name_or_path}
        if args.kind == "judge":
            made = reward_arguments(kind="judge", **common, **given)
            return JudgeSource(args.model_name_or_path, made.kind_settings), None
        made = reward_arguments(kind="criteria", **common | _data_of(settings, "the config"), **given)
        made.check()
        return CriteriaSource(args.model_name_or_path, made.kind_settings), made if made.dataset_name else None
    if given:
        raise ConfigError(
            f"{', '.join(given)}: a saved judge has its own settings; where it is asked is said by --judge_endpoint, "
            "--judge_key_variable"
        )
    loaded = load_source(args.reward_source)
    if isinstance(loaded, CriteriaSource):
        return loaded, _recorded(args.reward_source)
    if not isinstance(loaded, JudgeSource):
        raise ConfigError(f"{args.reward_source} is of kind {loaded.kind}, not a judge or criteria")
    return loaded, None


def _data_of(settings: dict[str, Any], where: str) -> dict[str, Any]:
    """Those of the settings of `surefoot reward` that say which pairs are held out."""
    from surefoot.rewards.config import RewardSourceArguments
    from surefoot.setting_types import checked_kinds

    names = ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "held_out", "bad_rows")
    given = {name: settings[name] for name in (*names, "seed") if settings.get(name) is not None}
    return checked_kinds(given, (RewardSourceArguments,), where)


def _recorded(directory: str) -> RewardSourceArguments | None:
    """The settings in the record beside a saved source of kind criteria; None where none names its pairs."""
    from surefoot.files import read_json
    from surefoot.records import RECORD
    from surefoot.rewards.config import reward_arguments

    path = Path(directory).parent / RECORD
    data = _data_of(read_json(path).get("config", {}), str(path)) if path.exists() else {}
    common = {"output_dir": "", "model_name_or_path": "", "kind": "criteria"}
    return reward_arguments(**common | data) if "dataset_name" in data else None


def _texts(args: Any, source: JudgeSource | CriteriaSource, made: RewardSourceArguments | None) -> list[TrialText]:
    from surefoot.errors import ConfigError
    from surefoot.rewards.kinds.criteria.source import CriteriaSource
    from surefoot.rewards.kinds.judge.trial_texts import built_in_texts, load_texts, texts_of_pairs

    if args.dataset_name is not None:
        return load_texts(args.dataset_name, args.n, split=args.dataset_split, config=args.dataset_config)
    if isinstance(source, CriteriaSource):
        if made is None:
            raise ConfigError(
                "criteria are those of a prompt: give completions of their prompts, --dataset_name, or a config that "
                "names the preferences of `surefoot reward`"
            )
        from surefoot.rewards.run import load_pairs

        return texts_of_pairs(load_pairs(made)[1], args.n)
    if source.references is not None:
        raise ConfigError(
            "this judge compares with reference answers: give completions of their prompts, --dataset_name"
        )
    return built_in_texts()[: args.n]


def _beginning(source: JudgeSource | CriteriaSource, texts: list[TrialText]) -> Iterator[str]:
    """What will be asked, and where."""
    from surefoot.rewards.kinds.criteria.source import CriteriaSource

    most = "up to " if isinstance(source, CriteriaSource) else ""  # verifiers may decide before a judge is asked
    calls = sum(map(len, source.calls([text.prompt for text in texts], [text.completion for text in texts])))
    if calls:
        yield f"'{source.name}' at {source.config.endpoint}; completions: {len(texts)}, calls: {most}{calls}"
        yield "Every call is made: replies in the judge's cache are not read, and these are not kept there."
    else:
        yield f"'{source.name}'; completions: {len(texts)}, and verifiers alone decide: no judge is asked"


def _tried(source: JudgeSource | CriteriaSource, texts: list[TrialText]) -> Trial:
    from surefoot.rewards.kinds.judge.packages import check_packages
    from surefoot.rewards.kinds.judge.source import JudgeSource

    check_packages()  # verifiers alone don't need them, a trial does
    if isinstance(source, JudgeSource):
        from surefoot.rewards.kinds.judge.trial import try_judge

        return try_judge(source, texts)
    from surefoot.rewards.kinds.criteria.trial import try_criteria

    return try_criteria(source, texts)


def _print(console: Any, line: str) -> None:
    """Print text as it is: nothing in it is markup, and no line is broken."""
    console.print(line, soft_wrap=True, markup=False, highlight=False, emoji=False)


def _report(trial: Trial, full: bool) -> Iterator[str]:
    """Every completion with its messages, replies and readings."""
    from surefoot.data.messages import plain_text

    if trial.calls:
        yield f"request, beside its messages: {json.dumps(trial.request, ensure_ascii=False)}"
    shown: dict[str, str] = {}
    for place, item in enumerate(trial.completions, 1):
        yield f"\n===== completion {place} of {len(trial.completions)}: {item.about} ====="
        if not item.calls:
            yield from (_quoted(plain_text(text), full) for text in (item.prompt, item.completion))
        for question, calls in groupby(item.calls, lambda call: call.question):
            yield from _question(f"completion {place}, {question}", list(calls), shown, full)
        yield from _criteria(item.criteria, decided=item.decided)
        variance = "variance" if item.criteria else "variance of one reply"
        yield f"reward: {_number(item.mean)}, {variance}: {_number(item.variance)}"


def _question(where: str, calls: list[TriedCall], shown: dict[str, str], full: bool) -> Iterator[str]:
    """The different messages of one question, each followed by what came of it."""
    yield f"--- {where} ---"
    sent: list[list[dict[str, str]]] = []
    for call in calls:
        sent += [] if call.messages in sent else [call.messages]
    for messages in sent:
        for message in messages:
            known = shown.setdefault(message["content"], where)
            if known != where and not full:
                yield f"{message['role']}: the same as in {known}"
            else:
                yield f"{message['role']}:"
                yield _quoted(message["content"], full)
        for call in (call for call in calls if call.messages == messages):
            yield from _outcome(call, full)


def _criteria(criteria: list[TriedCriterion], *, decided: bool) -> Iterator[str]:
    """The answers to a completion's criteria."""
    for number, one in enumerate(criteria, 1):
        told = [f"weight {one.weight:g}", *(["required"] if one.required else [])]
        if one.kind != "judged":
            answer = f"{one.kind}: {_short(one.answer)}"
        elif decided:
            answer = "not asked, since a required verifier isn't met"
        else:
            answer = f"{_short(one.answer)} (of {', '.join(map(_short, one.answers))})"
        yield _CONTROL.sub(_written_out, f"criterion {number}, {', '.join(told)}, “{one.text}”: {answer}")


def _outcome(call: TriedCall, full: bool) -> Iterator[str]:
    spread = f", variance {call.variance:.2f}" if call.variance else ""
    read = f"not read: {call.why}" if call.rating is None else f"read as {_shown(call.rating)}{spread}"
    tries = "" if call.tries < 2 else f", {call.tries} tries"
    finish = "" if call.finish in ("", "stop") else f", finish_reason {call.finish}"
    if call.reply is None:
        yield f"sample {call.sample + 1}: no reply: {call.why} ({call.seconds:.2f} s{tries})"
    else:
        yield f"sample {call.sample + 1}: {read} ({call.seconds:.2f} s{tries}{finish})"
        yield _quoted(call.reply, full)


def _shown(rating: Read) -> str:
    return ", ".join(map(_short, rating)) if isinstance(rating, tuple) else _short(rating)


def _short(value: float | None) -> str:
    return "missing" if value is None else f"{value:.3g}"


def _written_out(found: re.Match[str]) -> str:
    return ascii(found[0])[1:-1]


def _quoted(text: str, full: bool) -> str:
    """The text behind bars, its middle left out where it is long, its control characters written out."""
    if len(text) > _LONGEST and not full:
        half = _LONGEST // 2
        text = f"{text[:half]}\n[… {len(text) - 2 * half:,} characters; --full shows them …]\n{text[-half:]}"
    text = _CONTROL.sub(_written_out, text)
    return "\n".join(f"  | {line}" for line in text.split("\n"))


def _table(trial: Trial) -> Any:
    from rich.table import Table

    title = "weighted criteria, 1 at most" if trial.scale is None else "rated from {} to {}".format(*trial.scale)
    table = Table(title=title)
    for name in ("", "completion", "reward", "variance", "read"):
        table.add_column(name, justify="left" if name == "completion" else "right")
    for place, item in enumerate(trial.completions, 1):
        read = sum(call.rating is not None for call in item.calls)
        numbers = (_number(item.mean), _number(item.variance), f"{read} of {len(item.calls)}" if item.calls else "–")
        table.add_row(str(place), item.about, *numbers)
    return table


def _summary(trial: Trial, source: JudgeSource | CriteriaSource) -> Iterator[str]:
    """What it took, and the verdict."""
    spent, config = trial.totals, source.config
    priced = config.price_input is not None or config.price_output is not None
    cost = f"cost {spent.money:.4g}" if priced else "cost unknown (price_input, price_output aren't set)"
    if trial.calls:
        yield f"tokens: {spent.tokens[0]:,} of prompts, {spent.tokens[1]:,} of replies; {cost}"
    times = "" if spent.latency is None else "; a call {:.2f} s (median), {:.2f} s (95%)".format(*spent.latency)
    retries = f", {spent.retries} tries repeated" if spent.retries else ""
    yield f"time: {trial.seconds:.1f} s for {len(trial.calls)} calls{retries}{times}"
    yield f"variance: {_variance(source)}"
    yield from (f"- {line}" for line in trial.verdict)


def _variance(source: JudgeSource | CriteriaSource) -> str:
    """What the variance is of."""
    from surefoot.rewards.kinds.judge.source import JudgeSource

    if isinstance(source, JudgeSource):
        over = "these completions" if source.calibration is None else "the calibration set"
        return f"of one reply, raw; each wording is centred by its mean over {over}"
    if source.centred:
        return "of which criteria were drawn, raw; not paired with an anchor"
    return f"of {'one reply' if source.config.variance_of == 'reply' else 'the mean of all replies'}, raw"


def _number(value: float | None) -> str:
    return "unknown" if value is None else f"{value:.2f}"
