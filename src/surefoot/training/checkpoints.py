"""Choose a run's checkpoint to resume from, or to compare at a KL budget."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from surefoot.errors import RunError
from surefoot.files import read_json

__all__ = ["finished_epochs", "last_checkpoint_under", "last_whole_checkpoint"]

_STATE = "trainer_state.json"


def last_whole_checkpoint(output_dir: str | Path) -> str | None:
    """The last complete checkpoint, or None; one whose process was killed while it saved is passed over.

    The trainer's state is written last: a checkpoint in which it is missing or can't be parsed isn't complete.
    """
    for folder in reversed(_in_order(Path(output_dir).glob("checkpoint-*"))):
        try:
            json.loads((folder / _STATE).read_text())
        except (OSError, ValueError):
            warnings.warn(f"{folder} is not whole, as if the run was killed while it saved; passed over", stacklevel=2)
            continue
        return str(folder)
    return None


def finished_epochs(checkpoint: str | Path) -> int:
    """Number of complete epochs before the checkpoint."""
    return int(read_json(Path(checkpoint) / _STATE)["epoch"] or 0)


def _in_order(folders: Iterable[Path]) -> list[Path]:
    numbered = [(int(number), path) for path in folders if (number := path.name.split("-")[1]).isdigit()]
    return [path for _, path in sorted(numbered)]


def last_checkpoint_under(output_dir: str | Path, budget: float, *, window: int = 10) -> Path:
    """The last checkpoint at which the policy was within the KL budget.

    A checkpoint's KL is the mean of the last `window` logged batches before it.

    Args:
        output_dir: of a run of `surefoot rloo` or `grpo` that saved checkpoints.
        budget: nats per sequence.

    Raises:
        RunError: there is no checkpoint, none logged its KL, or all are over the budget (the smallest KL is named).
    """
    folder = Path(output_dir)
    checkpoints = _in_order(path.parent for path in folder.glob(f"checkpoint-*/{_STATE}"))
    if not checkpoints:
        raise RunError(f"{folder} holds no checkpoint; set save_steps")
    kls = {path: _kl(read_json(path / _STATE), window) for path in checkpoints}
    known = {path: kl for path, kl in kls.items() if kl is not None}
    if not known:
        raise RunError(f"no checkpoint in {folder} logged its KL; train with a penalty or a target_kl")
    under = [path for path, kl in known.items() if kl <= budget]
    if not under:
        raise RunError(
            f"every checkpoint in {folder} is over {budget:g} nats (the nearest has {min(known.values()):.3g}); "
            "save more often, or compare at a larger budget"
        )
    return under[-1]


def _kl(state: dict[str, Any], window: int) -> float | None:
    values = [row["sequence_kl"] for row in state["log_history"] if row.get("sequence_kl") is not None][-window:]
    return sum(values) / len(values) if values else None
