"""One round of `surefoot online`: completions, pairs, labels, the reward trained again, and what it is worth."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset

from surefoot.data.preferences import check_preferences, data_hash, load_completions, load_prompts
from surefoot.errors import DataError, RunError
from surefoot.feedback.agreement import summary
from surefoot.feedback.answers import Answer, open_answers, read_answers
from surefoot.feedback.automatic import rated_answers, simulated_answers
from surefoot.feedback.online_settings import OnlineArguments
from surefoot.feedback.pairs import Pair, read_pairs
from surefoot.feedback.select import PAIRS, SelectArguments, run_select
from surefoot.feedback.training_rows import training_rows
from surefoot.files import fingerprint, read_json, write_json, write_text
from surefoot.forecast.candidates import draw_candidates
from surefoot.maths.label_noise import preference_labels
from surefoot.metrics.intervals import wilson
from surefoot.rewards.config import reward_arguments
from surefoot.rewards.gold import gold_spec, load_gold
from surefoot.rewards.registry import load_source
from surefoot.rewards.run import run_reward
from surefoot.rewards.source import RewardSource

__all__ = ["PREFERENCES", "Inputs", "Progress", "State", "Waiting", "run_round"]

Progress = Callable[[str, float, float], None]
"""Called with (what is being done, done, of how many)."""
ANSWERS = "answers.jsonl"
PREFERENCES = "preferences.jsonl"
ROUND = "round.json"
_NOT_CONTENT = ("output_dir", "rounds")
"""Settings that change nothing in a round."""


@dataclass(frozen=True, eq=False)
class Inputs:
    """What all rounds read.

    Args:
        held_out: preferences on which every round is measured.
        start: preferences to start from, or None.
        folder: of the run.
    """

    held_out: Dataset
    start: Dataset | None
    folder: Path


@dataclass(frozen=True, slots=True)
class State:
    """What a round starts from.

    Args:
        files: pairs that were asked in earlier rounds.
        pairs, answers: those pairs, and what was answered.
        source: the reward that the last round trained; None before the first.
        policy: the policy that the last round trained; None for the first one.
        address: hash of everything before; "" at the beginning.
    """

    files: tuple[str, ...] = ()
    pairs: tuple[Pair, ...] = ()
    answers: tuple[Answer, ...] = ()
    source: Path | None = None
    policy: Path | None = None
    address: str = ""


@dataclass(frozen=True, slots=True)
class Waiting:
    """A round whose answers aren't there yet.

    Args:
        pairs, answers: the two files of `surefoot label`.
        missing: answers that are to come.
    """

    pairs: str
    answers: str
    missing: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def run_round(
    args: OnlineArguments, inputs: Inputs, state: State, number: int, report: Progress
) -> tuple[State, dict[str, Any]] | Waiting:
    """Run one round, or what of it isn't finished.

    Returns:
        What the next round starts from, and the entry of this one: `trained` (the folder that holds `reward/source`
        and `preferences.jsonl`, relative to the run's), `asked` and `labels` (pairs so far, and those with an answer),
        `accuracy` on the held-out pairs with its interval, `log_likelihood` of their labels (mean, in nats, with the
        flip rate), `margin_variance` (mean, in reward²), `reliability` of the variance, `flip_rate`, `answers` (of
        this round: counts and agreement). Unknown figures are None. Or, that answers are missing.
    """
    if state.source is None and inputs.start is not None:
        state = replace(state, source=_start_source(args, inputs, report))
    completions = _completions(args, inputs, state, number, report)
    address = _address(args, inputs, state, number, completions)
    folder = inputs.folder / "rounds" / f"{number:02d}-{address}"
    files = (*state.files, str(folder / "selected" / PAIRS))
    pairs = _select(args, state, number, completions, folder, report)
    outcome = _answers(args, pairs, folder)
    if isinstance(outcome, Waiting):
        return outcome
    asked, answers = (*state.pairs, *pairs), (*state.answers, *outcome)
    # People may answer more once the reward has been trained: it then is trained anew, in a folder of its own.
    address = fingerprint([address, [asdict(answer) for answer in outcome]])
    trained = folder / f"trained-{address}"
    source = _train(args, inputs, asked, answers, trained, f"round {number}: ", report, state.source)
    policy = None if args.align_config is None else _align(args, source, trained)
    if not (trained / ROUND).exists():
        write_json(trained / ROUND, _entry(inputs, number, asked, answers, outcome, trained))
    return State(files, asked, answers, source, policy, address), read_json(trained / ROUND)


def _address(args: OnlineArguments, inputs: Inputs, state: State, number: int, completions: str) -> str:
    """Hash of the settings and the content that a round depends on."""
    settings = {name: value for name, value in asdict(args).items() if name not in _NOT_CONTENT}
    content = [data_hash(load_completions(completions)), data_hash(inputs.held_out)]
    content += [] if inputs.start is None else [data_hash(inputs.start)]
    return fingerprint([settings, number, content, state.address])


def _completions(args: OnlineArguments, inputs: Inputs, state: State, number: int, report: Progress) -> str:
    """The file of completions: given, or drawn from the policy; drawn once unless the policy changes."""
    if args.completions is not None:
        return args.completions
    assert args.model_name_or_path is not None
    assert args.dataset_name is not None
    table = load_prompts(args.dataset_name, split=args.dataset_split, config=args.dataset_config)
    prompts = list(table["prompt"])[: args.dataset_prompts]
    policy = args.model_name_or_path if state.policy is None else str(state.policy)
    settings: dict[str, Any] = {
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
        "seed": args.seed if state.policy is None else args.seed + number,
    }
    address = fingerprint([prompts, args.n, settings, "" if state.policy is None else state.address])
    path = draw_candidates(
        policy,
        prompts,
        args.n,
        inputs.folder / "completions" / address,
        **settings,
        prompts_per_batch=args.prompts_per_batch,
        on_progress=lambda done, total: report(_stage(args, number, "completions"), done, total),
    )
    return str(path)


def _stage(args: OnlineArguments, number: int, what: str) -> str:
    return what if args.align_config is None else f"round {number}: {what}"


def _select(
    args: OnlineArguments, state: State, number: int, completions: str, folder: Path, report: Progress
) -> list[Pair]:
    """The round's pairs, none of which was asked before or is held out."""
    exclude = [*state.files, args.eval_dataset, *([] if args.start_dataset is None else [args.start_dataset])]
    select = SelectArguments(
        completions=completions,
        count=args.count,
        rule="random" if state.source is None else args.rule,
        reward_source=None if state.source is None else str(state.source),
        output_dir=str(folder / "selected"),
        exclude=exclude,
        max_pairs=args.max_pairs,
        kappa=args.kappa,
        draws=args.draws,
        seed=args.seed + number,
    )
    # Paths would bind the folder to where the run lies, and the round's address holds the content already.
    settings = {"rule": select.rule, "count": select.count, "seed": select.seed}
    run_select(select, settings, lambda what, done, total: report(f"round {number}: {what}", done, total))
    return read_pairs(folder / "selected" / PAIRS)


def _answers(args: OnlineArguments, pairs: list[Pair], folder: Path) -> list[Answer] | Waiting:
    path = folder / ANSWERS
    if args.labels != "page" and (not path.exists() or len(read_answers(path)) < len(pairs)):
        given = _of_judge(args, pairs) if args.labels == "judge" else _of_gold(args, pairs)
        with open_answers(path, pairs, args.seed) as file:
            for answer in given:
                file.add(answer)
    answers = read_answers(path) if path.exists() else []
    wanted = args.annotators if args.labels == "page" else 1
    given_to = {pair.id: 0 for pair in pairs}
    for answer in answers:
        if answer.pair not in given_to:
            raise RunError(f"{path} holds answers on other pairs than the round's; move it away, and label again")
        given_to[answer.pair] += 1
    missing = sum(max(0, wanted - count) for count in given_to.values())
    if missing:
        return Waiting(str(folder / "selected" / PAIRS), str(path), missing)
    return answers


def _of_judge(args: OnlineArguments, pairs: list[Pair]) -> list[Answer]:
    assert args.judge is not None
    judge = load_source(args.judge)
    prompts = [pair.prompt for pair in pairs]
    a, b = (judge.reward_of(rows).tolist() for rows in judge.score_pairs(prompts, *_sides(pairs)))
    return rated_answers(pairs, a, b, judge.name, args.tie_margin)


def _of_gold(args: OnlineArguments, pairs: list[Pair]) -> list[Answer]:
    assert args.gold is not None
    gold, prompts = load_gold(gold_spec(args.gold)), [pair.prompt for pair in pairs]
    a, b = (gold(prompts, side) for side in _sides(pairs))
    return simulated_answers(
        pairs, a, b, "gold", temperature=args.gold_temperature, flips=args.gold_flips, seed=args.seed
    )


def _sides(pairs: list[Pair]) -> tuple[list[Any], list[Any]]:
    return [pair.a for pair in pairs], [pair.b for pair in pairs]


def _start_source(args: OnlineArguments, inputs: Inputs, report: Progress) -> Path:
    """The reward of the preferences to start from."""
    assert inputs.start is not None
    address = fingerprint([args.reward, args.seed, data_hash(inputs.start), data_hash(inputs.held_out)])
    return _train(args, inputs, (), (), inputs.folder / "start" / address, "start: ", report)


def _train(
    args: OnlineArguments,
    inputs: Inputs,
    pairs: tuple[Pair, ...],
    answers: tuple[Answer, ...],
    folder: Path,
    before: str,
    report: Progress,
    last: Path | None = None,
) -> Path:
    """Train the reward on all labels so far, and write them beside it; a finished one is kept.

    Args:
        last: the last round's reward; heads on a frozen trunk start from it.
    """
    rows = _rows(args, inputs, pairs, answers)
    write_text(folder / PREFERENCES, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    train = check_preferences(Dataset.from_list(rows), str(folder / PREFERENCES))
    given = {"seed": args.seed, **_usual(args), **args.reward}
    frozen = args.reward.get("kind") == "heads" and not args.reward.get("trunk_epochs")
    start = {"start_heads": str(last)} if last is not None and frozen else {}
    paths = {"output_dir": str(folder / "reward"), "dataset_name": str(folder / PREFERENCES)}
    reward = reward_arguments(**{**given, **start, **paths})
    settings = {**given, "data_hash": data_hash(train, inputs.held_out)}
    run_reward(
        reward, settings, lambda what, share: report(before + what, float(share), 1.0), pairs=(train, inputs.held_out)
    )
    return folder / "reward" / "source"


def _usual(args: OnlineArguments) -> dict[str, Any]:
    """`linear` reads shares of answers, and estimates the flip rate unless it is told not to."""
    return {"flip_rate_by": "evidence"} if _counted(args) else {}


def _counted(args: OnlineArguments) -> bool:
    return bool(args.reward.get("kind", "linear") == "linear")


def _rows(
    args: OnlineArguments, inputs: Inputs, pairs: tuple[Pair, ...], answers: tuple[Answer, ...]
) -> list[dict[str, Any]]:
    counted = _counted(args)
    rows = [] if inputs.start is None else _start_rows(inputs.start, counted)
    rows += training_rows(pairs, answers, counted=counted)
    if not rows:
        raise DataError("no pair has a label that the reward can be trained on: all were skipped, or are ties")
    return rows


def _start_rows(start: Dataset, counted: bool) -> list[dict[str, Any]]:
    """The preferences to start from, with the shares of an earlier run's `preferences.jsonl`; ties only if counted."""
    shares: dict[str, Any] = {"chosen_share": 1.0, "answers": 1}
    texts = ["prompt", "chosen", "rejected"]
    kept = start.select_columns([*texts, *(name for name in shares if name in start.column_names)])
    if counted:
        return [{**shares, **row} for row in kept]
    return [{name: row[name] for name in texts} for row in kept if row.get("chosen_share") != 0.5]


def _align(args: OnlineArguments, source: Path, folder: Path) -> Path:
    """Train the policy against the round's reward with `surefoot rloo`, in a process of its own."""
    policy = folder / "policy"
    given = {
        "config": args.align_config,
        "model_name_or_path": args.model_name_or_path,
        "reward_source": source,
        "output_dir": policy,
    }
    words = [f"--{name}={value}" for name, value in given.items()]
    done = subprocess.run([sys.executable, "-m", "surefoot.cli.main", "rloo", *words], stdout=subprocess.DEVNULL)
    if done.returncode:
        raise RunError(
            f"`surefoot rloo` with {args.align_config} failed with exit status {done.returncode}; see above"
        )
    return policy


def _entry(
    inputs: Inputs,
    number: int,
    pairs: tuple[Pair, ...],
    answers: tuple[Answer, ...],
    own: list[Answer],
    trained: Path,
) -> dict[str, Any]:
    selected = read_json(trained.parent / "selected" / "record.json")["metrics"]
    return {
        "round": number,
        "trained": str(trained.relative_to(inputs.folder)),
        "rule": selected["rule"],
        "candidates": selected["candidates"],
        "asked": len(pairs),
        "labels": len({answer.pair for answer in answers if answer.choice != "skip"}),
        "start_pairs": 0 if inputs.start is None else len(inputs.start),
        **_measured(load_source(trained / "reward" / "source"), inputs.held_out),
        "answers": summary(own),
    }


def _measured(source: RewardSource, held_out: Dataset) -> dict[str, Any]:
    """What the reward and its variance are worth on held-out pairs; unknown figures are None."""
    chosen, rejected = source.score_pairs(held_out["prompt"], held_out["chosen"], held_out["rejected"])
    margins = source.margins(chosen, rejected)
    known = ~margins.mean.isnan()
    if not bool(known.any()):
        raise DataError(f"'{source.name}' could score no held-out pair")
    rate = getattr(source, "figures", {}).get("flip_rate")
    labels = preference_labels(int(known.sum()), flip_rate=0.0 if rate is None else float(rate))
    variance = margins.variance[known]
    variance = variance[~variance.isnan()]
    notes = {} if source.calibration is None else source.calibration.notes
    return {
        "accuracy": wilson(int((margins.mean[known] > 0).sum()), int(known.sum())).to_dict(),
        "log_likelihood": -float(labels.loss(margins.mean[known]).mean()),
        "margin_variance": float(variance.mean()) if len(variance) else None,
        "reliability": notes.get("reliability"),
        "flip_rate": rate,
    }
