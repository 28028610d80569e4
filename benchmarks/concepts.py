"""The picture of docs/why.md: five completions, their uncertain rewards, and where three objectives put the policy.

    python benchmarks/concepts.py

Everything is exact (`surefoot.theory`); it takes a second and uses no random numbers.
"""

from __future__ import annotations

from pathlib import Path

import torch

from surefoot.files import write_text
from surefoot.reports.axes import Axes
from surefoot.reports.drawing import GREY, LABEL, Drawing, style_of
from surefoot.theory.budgets import optimum_at_kl

PICTURE = Path(__file__).parents[1] / "docs" / "figures" / "five_completions.svg"
ESTIMATE = (0.0, 0.2, 0.5, 0.9, 1.3)
DEVIATION = (0.2, 0.2, 0.2, 0.2, 1.0)
TRUTH = (0.1, 0.1, 0.6, 0.8, 0.0)
BUDGET = 0.5
KAPPA = 1.0
_WIDTH, _LEFT, _RIGHT = 420.0, 46.0, 412.0


def main() -> None:
    policies = optima()
    for name, policy in policies.items():
        print(f"| {name} | {' | '.join(f'{p:.2f}' for p in policy)} | {true_reward(policy):.2f} |")
    write_text(PICTURE, picture(policies))


def optima() -> dict[str, list[float]]:
    """Policy of each objective at the budget; the reference is uniform over the five."""
    mean, deviation = (torch.tensor([values], dtype=torch.float64) for values in (ESTIMATE, DEVIATION))
    reference = torch.full_like(mean, 1 / len(ESTIMATE)).log()
    weight = deviation**2 / (deviation**2).mean()
    found = {
        "plain": optimum_at_kl(mean, reference, None, BUDGET),
        "weighted": optimum_at_kl(mean, reference, weight, BUDGET),
        "pessimistic": optimum_at_kl(mean - KAPPA * deviation, reference, None, BUDGET),
    }
    uniform = {"reference": reference[0].exp().tolist()}
    return uniform | {name: each.policy[0].tolist() for name, each in found.items()}


def true_reward(policy: list[float]) -> float:
    return sum(p * r for p, r in zip(policy, TRUTH, strict=True))


def picture(policies: dict[str, list[float]]) -> str:
    """Above: estimates with two standard deviations, and the truth. Below: a bar for each policy and completion."""
    drawing = Drawing(_WIDTH, 400)
    names = list(policies)
    colours = {name: GREY if name == "reference" else style_of(place - 1)[0] for place, name in enumerate(names)}
    columns = len(ESTIMATE)
    span = (-0.5, columns - 0.5)
    rewards = Axes(drawing, _LEFT, 30, _RIGHT - _LEFT, 130, span, (-1.0, 3.5))
    rewards.y_axis("reward", 4)
    drawing.legend([("estimate ± 2 standard deviations", LABEL, None), ("true reward", "#E69F00", None)], 0, 14)
    for place, (mean, sd, truth) in enumerate(zip(ESTIMATE, DEVIATION, TRUTH, strict=True)):
        rewards.error_bar(place - 0.06, mean - 2 * sd, mean + 2 * sd, LABEL)
        rewards.mark(place - 0.06, mean, LABEL, radius=4.2)
        rewards.mark(place + 0.06, truth, "#E69F00", radius=4.2)
    top = drawing.legend([(name, colours[name], None) for name in names], 0, 196) + 6
    shares = Axes(drawing, _LEFT, top, _RIGHT - _LEFT, 140, span, (0.0, 0.7))
    shares.y_axis("probability", 3)
    for place in range(columns):
        for number, name in enumerate(names):
            x, y = shares.at(place + (number - 1.5) * 0.2, policies[name][place])
            drawing.bar(x - 6, y, 12, shares.bottom - y, colours[name])
        drawing.text(shares.at(place, 0)[0], shares.bottom + 16, str(place + 1), anchor="middle", size=11)
    drawing.text((_LEFT + _RIGHT) / 2, shares.bottom + 33, "completion", anchor="middle", size=11.5, colour=LABEL)
    drawing.height = shares.bottom + 40
    drawing.words = "Five completions: " + "; ".join(
        f"{name} has a true reward of {true_reward(policy):.2f}" for name, policy in policies.items()
    )
    return drawing.svg(standalone=True)


if __name__ == "__main__":
    main()
