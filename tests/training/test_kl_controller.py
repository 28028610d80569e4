"""The controller reaches a budget from below, holds it, and doesn't wind up."""

import math
import random

import pytest

from surefoot.errors import ConfigError
from surefoot.training.kl_controller import KLController


def simulate(
    beta: float, target: float, noise: float, steps: int = 400, lag: float = 0.05, share_known: bool = True
) -> tuple[list[float], list[float]]:
    """KL and β of a policy whose KL moves towards (c/β)^1.5 by a lagging step of bounded speed, as RLOO runs do.

    The penalty's share is 1 where β is what keeps the KL where it is.
    """
    rng = random.Random(0)
    controller, kl, kls, betas = KLController(target, beta), 0.0, [], []
    for _ in range(steps):
        goal = (0.5 / controller.beta) ** 1.5
        kl += max(-0.5, min(0.5, lag * (goal - kl)))
        controller.update(kl + rng.gauss(0.0, noise), controller.beta * kl ** (2 / 3) / 0.5 if share_known else 1.0)
        kls.append(kl)
        betas.append(controller.beta)
    return kls, betas


@pytest.mark.parametrize("start", [0.2, 1.0, 20.0])
@pytest.mark.parametrize("target", [4.0, 10.0, 30.0])
def test_reaches_and_holds_the_budget_without_overshoot(start: float, target: float) -> None:
    path, _ = simulate(start, target, noise=0.08 * target)
    assert max(path) < 1.2 * target
    held = path[-100:]
    assert sum(held) / len(held) == pytest.approx(target, rel=0.1)


def test_a_slow_policy_climbs_under_a_penalty_that_counts() -> None:
    """β starts at twice where it ends; what keeps it from falling to nothing is the penalty's share."""
    paths = [simulate(0.3, 6.0, noise=0.5, steps=2000, lag=0.002, share_known=known) for known in (True, False)]
    (kls, least), (without, least_without) = ((kls, min(betas) / (sum(betas[-300:]) / 300)) for kls, betas in paths)
    assert least > 0.33 > 0.15 > least_without
    assert max(kls) < 1.1 * 6.0 < max(without)  # and what climbs without a penalty shoots over


def test_lowers_beta_by_the_penalty_s_share() -> None:
    def after(share: float) -> float:
        return math.log(KLController(target=8.0, beta=1.0).update(4.0, share))

    assert after(0.0) == after(0.3) == after(math.nan) == 0.0
    assert after(0.5) == pytest.approx(0.06 * 2.0 * 0.5 * math.log(0.5))
    assert after(0.7) == after(math.inf) == pytest.approx(0.06 * 2.0 * math.log(0.5))


def test_raises_beta_above_the_budget_whatever_the_share() -> None:
    assert KLController(target=8.0, beta=1.0).update(16.0, 0.0) == KLController(target=8.0, beta=1.0).update(16.0, 1.0)


def test_one_update_by_hand() -> None:
    controller = KLController(
        target=10.0, beta=1.0, smoothing=1.0, integral=0.05, proportional=1.0, return_gain=5.0, max_step=0.2
    )
    log2 = math.log(2)
    first = 0.05 * (log2 + 5 * (log2 - 0.05))
    assert controller.update(20.0) == pytest.approx(math.exp(first))  # 0.195: no change of the error is known yet
    assert controller.update(10.0) == pytest.approx(math.exp(first - 0.2))  # −log 2, limited to max_step
    assert controller.update(9.5) == pytest.approx(math.exp(first - 0.2 + (1.0 + 2.0 * 0.05) * math.log(0.95)))


def test_the_proportional_part_begins_near_the_budget() -> None:
    """p = max(e, −near): from .4 to .5 of the budget it stays −near; from there to .8 it rises by ln .8 + .6."""
    controller = KLController(target=10.0, beta=1.0, smoothing=1.0, near=0.6)
    assert [controller.update(kl, share=0.0) for kl in (4.0, 5.0, 4.0)] == [1.0, 1.0, 1.0]
    assert controller.update(8.0, share=0.0) == pytest.approx(math.exp(2.0 * (math.log(0.8) + 0.6)))


def test_near_sets_where_the_proportional_part_begins() -> None:
    def after(near: float) -> float:
        controller = KLController(target=10.0, beta=1.0, smoothing=1.0, near=near, max_step=9.0)
        controller.update(4.0, share=0.0)
        return math.log(controller.update(10.0, share=0.0))

    assert after(0.2) == pytest.approx(2.0 * 0.2)
    assert after(0.5) == pytest.approx(2.0 * 0.5)
    assert after(9.0) == pytest.approx(-2.0 * math.log(0.4))


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
