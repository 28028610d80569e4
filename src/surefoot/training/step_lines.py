"""Print one short line for each logging step of a trainer, instead of every metric that it logs."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import Any

from transformers import PrinterCallback, ProgressCallback, TrainerCallback
from trl import ScriptArguments

__all__ = ["PrintingArguments", "StepLines", "print_short_lines", "step_line"]

_SHOWN = {
    "reward/mean_of_members": "reward",
    "sequence_kl": "KL",
    "beta": "beta",
    "reward/variance": "variance",
    "completions/mean_length": "tokens",
    "loss": "loss",
    "rewards/accuracies": "accuracy",
    "rewards/margins": "margin",
}
"""Logged names and what they are called in the line, in its order."""
_ONLINE_ONLY = ("reward/mean_of_members",)
"""Where one of these is logged the loss is left out: a policy gradient's says nothing about progress."""


@dataclass
class PrintingArguments(ScriptArguments):
    """TRL's script arguments, and how much is printed."""

    all_metrics: bool = field(
        default=False,
        metadata={
            "help": "Print every metric at each logging step, not a short line. Trackers (report_to) and "
            "trainer_state.json have all of them either way."
        },
    )


def print_short_lines(trainer: Any, target_kl: float | None = None) -> None:
    """Replace what transformers prints at each logging step; trackers and `trainer_state.json` keep everything.

    Args:
        target_kl: of the run, in nats per sequence, shown beside the KL.
    """
    for stock in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(stock)
    bar = not trainer.args.disable_tqdm and sys.stderr.isatty()
    trainer.add_callback(_BarAndLines(target_kl) if bar else StepLines(target_kl))


def step_line(logs: dict[str, Any], target_kl: float | None = None) -> str:
    """The figures of a logging step in a few words; empty if it logs none of them.

    >>> step_line({"reward/mean_of_members": 1.234, "sequence_kl": 3.0, "beta": 0.25, "loss": 0.1}, 8.0)
    'reward 1.23, KL 3 of 8 nats, beta 0.25'
    >>> step_line({"loss": 0.693, "rewards/accuracies": 0.5})
    'loss 0.693, accuracy 0.5'
    """
    online = any(name in logs for name in _ONLINE_ONLY)
    said = []
    for name, called in _SHOWN.items():
        if name not in logs or (online and called == "loss"):
            continue
        bound = "" if target_kl is None else f" of {target_kl:g}"
        said.append(f"{called} {float(logs[name]):.3g}" + (f"{bound} nats" if called == "KL" else ""))
    return ", ".join(said)


class StepLines(TrainerCallback):
    """Writes a line to standard output at each logging step: the step, the time left, and a few figures."""

    def __init__(self, target_kl: float | None = None) -> None:
        self.target_kl = target_kl
        self._start, self._first = 0.0, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        """Note where the run begins; a resumed one doesn't begin at 0."""
        self._start, self._first = time.monotonic(), state.global_step

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **keywords: Any) -> None:
        """Write the line of the main process."""
        line = step_line(logs or {}, self.target_kl)
        if state.is_world_process_zero and line:
            print(f"step {state.global_step}/{state.max_steps}{self._left(state)}: {line}", flush=True)  # noqa: T201

    def _left(self, state: Any) -> str:
        done, missing = state.global_step - self._first, state.max_steps - state.global_step
        if done < 1 or missing < 1:
            return ""
        seconds = (time.monotonic() - self._start) / done * missing
        return f", about {seconds:.0f} s left" if seconds < 100 else f", about {seconds / 60:.0f} min left"


class _BarAndLines(ProgressCallback):
    """transformers' bar, with short lines above it."""

    def __init__(self, target_kl: float | None) -> None:
        super().__init__()
        self.target_kl = target_kl

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **keywords: Any) -> None:
        line = step_line(logs or {}, self.target_kl)
        if state.is_world_process_zero and line and self.training_bar is not None:
            self.training_bar.write(f"step {state.global_step}/{state.max_steps}: {line}")
