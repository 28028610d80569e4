"""Model card of an aligned policy: the cited paper, and a section on reward and objective."""

from __future__ import annotations

import textwrap
from pathlib import Path
from typing import Any

from surefoot.files import write_text
from surefoot.maths.objectives import Objective
from surefoot.rewards.hub import one_line
from surefoot.rewards.source import RewardSource

__all__ = ["PAPER", "complete_card", "policy_card"]

PAPER = {
    "title": "Towards Reliable, Uncertainty-Aware Alignment",
    "id": "2507.15906",
    "citation": textwrap.dedent("""\
        @article{gopalan2025towards,
            title   = {Towards Reliable, Uncertainty-Aware Alignment},
            author  = {Gopalan, Aditya and Banerjee, Debangshu and Saha, Aadirupa},
            year    = 2025,
            journal = {arXiv preprint arXiv:2507.15906}
        }"""),
}
"""The paper that TRL's model card cites."""


def complete_card(directory: str, section: str = "") -> None:
    """Mend TRL's card in a model's directory, if there is one, and add a section to it.

    For want of a name on the hub TRL's example loads the model "None"; here it loads the directory.
    """
    path = Path(directory) / "README.md"
    if path.exists():
        text = path.read_text(encoding="utf-8").replace('model="None"', f'model="{directory}"')
        write_text(path, text + section)


def policy_card(
    source: RewardSource, objective: Objective, target_kl: float | None, beta: float, log: list[dict[str, Any]]
) -> str:
    """Section on the source, the objective, the KL budget and the variance, in Markdown.

    Args:
        target_kl: budget in nats per sequence, or None for a constant β.
        beta: at the end, in reward per nat.
        log: the trainer's log history.
    """
    parameter = "" if objective.parameter is None else f" ({objective.parameter:g})"
    penalty = {
        "none": "the ordinary KL",
        "variance": f"KL weighted by the variance ({objective.form}), weights in "
        f"[{objective.weight_floor:g}, {objective.weight_ceiling:g}]",
    }[objective.weights]
    rows = [
        ("reward source", f"`{one_line(source.name)}`, {source.description}"),
        ("reward", f"`{objective.aggregate}`{parameter}"),
        ("penalty", penalty),
        ("KL budget", "none, β is constant" if target_kl is None else f"{target_kl:g} nats per sequence"),
        ("β at the end", f"{beta:.4g}"),
    ]
    calibration = source.calibration
    if calibration is not None and calibration.reference_variance is not None:
        rows.append(("mean variance on the reference policy, in reward²", f"{calibration.reference_variance:.4g}"))
    for name, key in (("KL at the end, nats per sequence", "sequence_kl"), ("variance at the end", "reward/variance")):
        seen = [row[key] for row in log if row.get(key) is not None]
        if seen:
            rows.append((name, f"{seen[-1]:.4g}"))
    table = [f"| {name} | {value} |" for name, value in rows]
    return "\n".join(["## Reward and objective (surefoot)", "", "| | |", "|---|---|", *table, ""])
