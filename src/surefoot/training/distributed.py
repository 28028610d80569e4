"""End a run on several processes in an order in which none can hang."""

from __future__ import annotations

from transformers import Trainer

__all__ = ["end_training"]


def end_training(trainer: Trainer) -> None:
    """Close the trackers, free the wrapped model, and leave the process group; `trainer.model` stays usable.

    The order matters. DistributedDataParallel's reducer holds the process group. If it is freed after the group was
    left, it is the group's last owner: it joins gloo's threads while it holds the GIL, and a thread that still has a
    tensor of the last collective to free waits for the GIL. Now and then such a process, and its launcher, hangs.
    """
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()  # its list of prepared models, and what only a cycle still keeps
    trainer.accelerator.wait_for_everyone()  # no partner still uses the group
    trainer.accelerator.end_training()
