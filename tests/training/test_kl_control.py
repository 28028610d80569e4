"""The controller reaches a budget from below, holds it, and doesn't wind up."""

import math
import random

import pytest

from surefoot.errors import ConfigError
from surefoot.training.kl_control import KLController


def simulate(beta: float, target: float, noise: float, seed: int, steps: int = 400) -> list[float]:
    """A policy whose KL moves towards (c/β)^1.5 by a lagging step of bounded speed, as measured in RLOO runs."""
    rng = random.Random(seed)
    controller, kl, path = KLController(target, beta), 0.0, []
    for _ in range(steps):
        goal = (0.5 / controller.beta) ** 1.5
        kl += max(-0.5, min(0.5, 0.05 * (goal - kl)))
        controller.update(kl + rng.gauss(0.0, noise))
        path.append(kl)
    return path


@pytest.mark.parametrize("start", [0.2, 1.0, 20.0])
@pytest.mark.parametrize("target", [4.0, 10.0, 30.0])
def test_reaches_and_holds_the_budget_without_overshoot(start: float, target: float) -> None:
    path = simulate(start, target, noise=0.08 * target, seed=0)
    assert max(path) < 1.2 * target
    held = path[-100:]
    assert sum(held) / len(held) == pytest.approx(target, rel=0.1)


def test_one_update_by_hand() -> None:
    controller = KLController(
        target=10.0, beta=1.0, smoothing=1.0, integral=0.05, proportional=1.0, return_gain=5.0, max_step=0.2
    )
    log2 = math.log(2)
    first = 0.05 * (log2 + 5 * (log2 - 0.05))
    assert controller.update(20.0) == pytest.approx(math.exp(first))  # 0.195: no change of the error is known yet
    assert controller.update(10.0) == pytest.approx(math.exp(first - 0.2))  # −log 2, limited to max_step
    assert controller.update(9.5) == pytest.approx(math.exp(first - 0.2 + 1.05 * math.log(0.95)))


def test_noise_of_either_sign_counts_alike_within_the_tolerance() -> None:
    controller, after = KLController(target=6.0, beta=0.5), []
    for _ in range(200):
        controller.update(6.0 * 1.04)
        after.append(controller.update(6.0 * 0.96))
    assert after[-1] == pytest.approx(after[20], rel=1e-2)


def test_does_not_wind_up_at_a_bound() -> None:
    controller = KLController(target=10.0, beta=1.0, minimum=0.5, maximum=2.0)
    for _ in range(200):
        controller.update(0.1)
    assert controller.beta == 0.5
    for _ in range(5):
        controller.update(40.0)
    assert controller.beta > 0.6  # leaves the bound at once, not after unwinding 200 steps


def test_unknown_kl_changes_nothing() -> None:
    controller = KLController(target=5.0, beta=0.3)
    controller.update(4.0)
    state = controller.state_dict()
    assert controller.update(float("nan")) == state["beta"]
    assert controller.state_dict() == state


def test_state_round_trip_continues_the_same_path() -> None:
    first = KLController(target=5.0, beta=0.3)
    for kl in (0.5, 2.0, 4.0):
        first.update(kl)
    second = KLController.from_state(first.state_dict())
    assert [first.update(kl) for kl in (6.0, 7.0)] == [second.update(kl) for kl in (6.0, 7.0)]


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="positive number of nats"):
        KLController(target=0.0, beta=0.1)
    with pytest.raises(ConfigError, match="beta must start within"):
        KLController(target=1.0, beta=1e9)
