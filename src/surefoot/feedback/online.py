"""`surefoot online`: rounds of choosing pairs, labelling them and training the reward again (docs/labels.md)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.data.preferences import data_hash, load_preferences
from surefoot.errors import ConfigError
from surefoot.feedback.online_settings import OnlineArguments
from surefoot.feedback.rounds import PREFERENCES, Inputs, Progress, State, Waiting, run_round
from surefoot.files import read_json, write_json
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.gold import gold_spec, load_gold
from surefoot.rewards.registry import load_source

__all__ = ["ONLINE", "run_online"]

ONLINE = "online.json"


def run_online(args: OnlineArguments, settings: dict[str, Any], on_progress: Progress | None = None) -> dict[str, Any]:
    """Run the rounds that can be run, and write `online.json` and, once all are finished, `record.json`.

    Each round has a folder in `args.output_dir/rounds`, named by a hash of the settings and of all that it started
    from. What is finished is kept: the same call goes on. With `labels: page` it ends as soon as answers are missing.

    Args:
        settings: what the user gave; the output directory is bound to it.
        on_progress: called with (what is being done, done, of how many).

    Returns:
        What `online.json` holds: `rounds`, one entry for each finished round (`rounds.run_round` says what is in it);
        `waiting`, the pairs and the answers file that are waited for, with how many answers are missing, or None; and
        `preferences` and `source`, all labels so far as a file and the last reward's directory, or None.

    Raises:
        ConfigError, DataError, ModelError, RunError, VarianceError: before anything is drawn where possible.
    """
    args.check()
    _check_named(args)
    held_out = load_preferences(args.eval_dataset)
    start = None if args.start_dataset is None else load_preferences(args.start_dataset)
    report: Progress = on_progress or (lambda what, done, total: None)
    with claim_directory(args.output_dir, "online", settings) as folder:
        if (folder / RECORD).exists():
            finished: dict[str, Any] = read_json(folder / ONLINE)
            return finished
        result = _rounds(args, Inputs(held_out, start, folder), report)
        write_json(folder / ONLINE, result)
        if result["waiting"] is None:
            tables = [held_out] if start is None else [held_out, start]
            metrics = {"rounds": result["rounds"]}
            record = make_record("online", settings, seed=args.seed, data_hash=data_hash(*tables), metrics=metrics)
            write_record(folder, record)
        return result


def _check_named(args: OnlineArguments) -> None:
    """Load what labels, and look for the policy's config, before completions are drawn or pairs chosen."""
    if args.gold is not None:
        load_gold(gold_spec(args.gold))
    if args.judge is not None:
        load_source(args.judge)
    if args.align_config is not None and not Path(args.align_config).is_file():
        raise ConfigError(f"align_config {args.align_config} does not exist; give a config of `surefoot rloo`")


def _rounds(args: OnlineArguments, inputs: Inputs, report: Progress) -> dict[str, Any]:
    state = State()
    entries: list[dict[str, Any]] = []
    waiting = None
    for number in range(1, args.rounds + 1):
        report("rounds", number - 1, args.rounds)
        outcome = run_round(args, inputs, state, number, report)
        if isinstance(outcome, Waiting):
            waiting = {"round": number, **outcome.to_dict()}
            break
        state, entry = outcome
        entries.append(entry)
    if waiting is None:
        report("rounds", args.rounds, args.rounds)
    last = None if not entries else Path(args.output_dir) / entries[-1]["trained"]
    return {
        "labels": args.labels,
        "rule": args.rule,
        "rounds_wanted": args.rounds,
        "rounds": entries,
        "waiting": waiting,
        "preferences": None if last is None else str(last / PREFERENCES),
        "source": None if last is None else str(last / "reward" / "source"),
    }
