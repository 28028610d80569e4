"""Which of a run's checkpoints to compare at a KL budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from surefoot.errors import RunError
from surefoot.files import read_json

__all__ = ["last_checkpoint_under"]

_STATE = "trainer_state.json"


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
    states = sorted(folder.glob(f"checkpoint-*/{_STATE}"), key=lambda path: int(path.parent.name.split("-")[1]))
    if not states:
        raise RunError(f"{folder} holds no checkpoint; set save_steps")
    kls = {path.parent: _kl(read_json(path), window) for path in states}
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
