"""Token rewards r − β·w·KL of an engine that takes its KL from the reward of each token.

The reward r̃ of a completion stands at its last token; each token is charged β·w times its own log-ratio
ln π(y_t)/π₀(y_t). Summed over the completion that is r̃ − β·w·ln(π/π₀), the reward of docs/method.md 8.2. Everything
here is arithmetic on tensors and knows no engine.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, DataError, RunError
from surefoot.maths.penalty import penalty_share
from surefoot.training.kl_controller import KLController

__all__ = ["RowCoefficient", "batch_share", "check_token_rewards", "expected_token_rewards", "sequence_log_ratio"]

TOLERANCE = 1e-6
"""Largest error of a token's reward, as a share of 1 and the largest numbers that enter it: rounding of float32."""


class RowCoefficient:
    """KL coefficient β·w of each row, behind the interface of an engine's own KL controller (`value`, `update`).

    The engine reads `value` where it would read its scalar β, and so charges each row its own coefficient. β itself is
    constant, or adapts to a KL budget (`KLController`, docs/method.md 10).

    Args:
        beta: first coefficient, in reward per nat.
        target_kl: budget in nats per sequence; None keeps β constant.

    Raises:
        ConfigError: a value out of range.
    """

    def __init__(self, beta: float, target_kl: float | None = None) -> None:
        if not beta > 0:
            raise ConfigError(f"the KL coefficient must be positive, got {beta}")
        self._beta = float(beta)
        self.controller = None if target_kl is None else KLController(target_kl, self._beta)
        self._weight: Float[Tensor, "batch"] | None = None

    @property
    def beta(self) -> float:
        """Current β, in reward per nat."""
        return self._beta if self.controller is None else self.controller.beta

    def set_weights(self, weight: Float[Tensor, "batch"] | None) -> None:
        """Give the weights of the batch that is next; None after it, so that they are never used for another."""
        self._weight = weight

    @property
    def value(self) -> Float[Tensor, "batch 1"]:
        """β·w of the batch's rows, a column that broadcasts over tokens.

        Raises:
            RunError: the batch has no weights.
        """
        if self._weight is None:
            raise RunError("the engine asked for the KL coefficient outside a batch with weights")
        return (self.beta * self._weight)[:, None]

    def update(self, current_kl: float, n_steps: int) -> None:
        """Ignore the engine's own KL, which is a mean over tokens and unweighted; see `learn`."""

    def learn(self, kl: float, share: float) -> None:
        """Adapt β after a batch, if it has a budget.

        Args:
            kl: mean sequence log-ratio of the batch, in nats.
            share: of the penalty (`batch_share`).
        """
        if self.controller is not None:
            self.controller.update(kl, share)

    def state_dict(self) -> dict[str, Any]:
        """β and the controller's state, as JSON values."""
        return {"beta": self.beta, "controller": None if self.controller is None else self.controller.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave. A constant β stays the configured one.

        Raises:
            ConfigError: the state is of a run without a budget and this one has one, or the other way round, or the
                budgets differ.
        """
        held = state["controller"]
        was = None if held is None else held["target"]
        now = None if self.controller is None else self.controller.target
        if was != now:
            raise ConfigError(f"the checkpoint's target_kl is {was} and this run's is {now}; set it to {was} to go on")
        if held is not None:
            self.controller = KLController.from_state(held)


def sequence_log_ratio(
    log_probs: Float[Tensor, "batch tokens"],
    reference: Float[Tensor, "batch tokens"],
    mask: Float[Tensor, "batch tokens"],
) -> Float[Tensor, "batch"]:
    """ln π/π₀ of each completion, in nats: the sum over its tokens, in float64.

    Args:
        log_probs: ln π of the sampled tokens, as the policy had them when it sampled.
        reference: ln π₀ of the same tokens.
        mask: 1 for the completion's tokens, 0 elsewhere.
    """
    return torch.where(mask > 0, log_probs.double() - reference.double(), 0.0).sum(dim=1)


def expected_token_rewards(
    scores: Float[Tensor, "batch tokens"],
    log_probs: Float[Tensor, "batch tokens"],
    reference: Float[Tensor, "batch tokens"],
    mask: Float[Tensor, "batch tokens"],
    weight: Float[Tensor, "batch"],
    beta: float,
) -> Float[Tensor, "batch tokens"]:
    """Token rewards r − β·w·KL, computed apart from the engine, in float64.

    Args:
        scores: r̃ at the last token of each completion, 0 at the others.
        log_probs, reference: ln π and ln π₀ of the tokens; their difference is rounded to their own precision, as in
            the engine.
        mask: 1 for the completion's tokens, 0 elsewhere.
        weight: w, dimensionless.
        beta: in reward per nat.

    >>> one = torch.ones(1, 2)
    >>> expected_token_rewards(torch.tensor([[0.0, 3.0]]), one, 0 * one, one, torch.tensor([2.0]), 0.5).tolist()
    [[-1.0, 2.0]]
    """
    kl = torch.where(mask > 0, (log_probs - reference).double(), 0.0)
    return scores.double() - beta * weight.double()[:, None] * kl


def check_token_rewards(
    made: Float[Tensor, "batch tokens"],
    expected: Float[Tensor, "batch tokens"],
    scores: Float[Tensor, "batch tokens"],
) -> float:
    """Largest difference between the engine's token rewards and the expected ones.

    Args:
        made: the engine's.
        expected: of `expected_token_rewards`.
        scores: the rewards in them, whose size sets what rounding allows.

    Raises:
        RunError: it is more than float32 rounds, so the penalty entered in another way.
    """
    error = float((made.double() - expected).abs().max()) if made.numel() else 0.0
    size = 1.0 + (float(torch.maximum(expected.abs(), scores.double().abs()).max()) if made.numel() else 0.0)
    if not error <= TOLERANCE * size:
        raise RunError(
            f"the engine's token rewards differ from r − β·w·KL by {error:.3g}: the weighted penalty did not enter as "
            "it should; this version of the engine is not supported"
        )
    return error


def batch_share(
    scores: Float[Tensor, "batch tokens"],
    log_ratio: Float[Tensor, "batch"],
    weight: Float[Tensor, "batch"],
    beta: float,
    prompts: list[Any],
) -> float:
    """Share of the penalty in a batch, by which β may fall below the budget (docs/method.md 10).

    Prompts with one completion have no spread within themselves. Where all are such (PPO with a critic and one
    completion per prompt), the spread over the batch is taken, which includes differences between prompts in the
    rewards, so that the share is too small rather than too large.

    Args:
        scores: r̃ at the last token.
        log_ratio: of each completion, in nats.
        prompts: an id for each row.

    Raises:
        DataError: there is not one id for each row.
    """
    if len(prompts) != len(weight):
        raise DataError(f"{len(weight)} rows need as many prompt ids, got {len(prompts)}")
    numbers: dict[Any, int] = {}
    groups = torch.tensor([numbers.setdefault(prompt, len(numbers)) for prompt in prompts])
    alone = len(numbers) == len(prompts)
    penalty = beta * weight.double() * log_ratio.double()
    return penalty_share(scores.double().sum(dim=1), penalty, None if alone else groups)
