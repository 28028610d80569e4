"""Your own function as a reward source: one that gives members' scores, or one that gives a mean and a variance."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError, ModelError
from surefoot.rewards.registry import register
from surefoot.rewards.source import FitJob, MemberSource, RewardSource, given_estimate, plain_constants
from surefoot.rewards.trunk.text_encoder import check_rows
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

__all__ = ["FunctionMembers", "FunctionReward"]


class FunctionMembers(MemberSource):
    """K members given by one function.

    Args:
        function: (prompts, completions) to K scores for each, as a (batch, members) tensor or nested lists; NaN
            where a member couldn't score.
        num_members: K.
        name: shown in logs.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Text], Sequence[Text]], Float[Tensor, "batch members"] | list[list[float]]],
        num_members: int,
        name: str = "function",
    ) -> None:
        self.function = function
        self.name = name
        self._count = num_members

    @classmethod
    def of(cls, *functions: Callable[..., Sequence[float]], name: str = "functions as members") -> FunctionMembers:
        """Members of one function each, as TRL calls its reward functions: all judge the same thing.

        Args:
            functions: of the keywords `prompts` and `completions` (and any others) to one number for each completion;
                NaN or None where a member couldn't score.

        Raises:
            ModelError: fewer than two functions are given, which can't disagree.
        """
        if len(functions) < 2:
            raise ModelError(f"members are at least two functions, got {len(functions)}")

        def score(prompts: Sequence[Text], completions: Sequence[Text]) -> Tensor:
            columns = [
                [
                    float("nan") if value is None else float(value)
                    for value in function(prompts=prompts, completions=completions)
                ]
                for function in functions
            ]
            return torch.tensor(columns).T

        return cls(score, len(functions), name)

    @property
    def num_members(self) -> int:
        return self._count

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        check_rows(prompts, completions)
        scores = torch.as_tensor(self.function(prompts, completions), dtype=torch.float32)
        if scores.shape != (len(prompts), self._count):
            raise DataError(
                f"reward function '{self.name}' gave scores of shape {tuple(scores.shape)} for {len(prompts)} "
                f"completions and {self._count} members; expected ({len(prompts)}, {self._count})"
            )
        return scores

    def save(self, directory: str | Path) -> None:
        raise ModelError(f"'{self.name}' is a Python function and can't be saved; save the module it lives in")

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> RewardSource:
        raise ModelError(f"{directory} holds no Python function; make the source in your own code")


@register("function")
class FunctionReward(RewardSource):
    """A reward and its variance, both given by one function.

    The variance is taken as it is given: nothing is known of how the errors of one prompt's completions hang together,
    so it can't be centred, and margins add the variances of their sides.

    Args:
        function: (prompts, completions) to (means, variances), each of one number per completion; NaN where unscored.
        name: shown in logs.
    """

    centred = False

    def __init__(
        self,
        function: Callable[[Sequence[Text], Sequence[Text]], tuple[Sequence[float], Sequence[float]]],
        name: str = "function",
    ) -> None:
        self.function, self.name = function, name

    @property
    def num_columns(self) -> int:
        return 2

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        check_rows(prompts, completions)
        mean, variance = (torch.as_tensor(x, dtype=torch.float32) for x in self.function(prompts, completions))
        for what, values in (("means", mean), ("variances", variance)):
            if values.shape != (len(prompts),):
                raise DataError(
                    f"reward function '{self.name}' gave {what} of shape {tuple(values.shape)} for {len(prompts)} "
                    f"completions; expected ({len(prompts)},)"
                )
        if bool((variance < 0).any()):
            row = int((variance < 0).nonzero()[0])
            raise DataError(f"reward function '{self.name}' gave a variance of {float(variance[row])} in row {row}")
        return torch.stack([mean, variance], dim=1)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        return given_estimate(scores[:, 0], scores[:, 1])

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        return MarginEstimate(chosen[:, 0] - rejected[:, 0], chosen[:, 1] + rejected[:, 1])

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        return plain_constants(scores[:, 0])

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        raise ModelError("kind: function is made in Python (surefoot.FunctionReward or FunctionMembers), not trained")

    def save(self, directory: str | Path) -> None:
        raise ModelError(f"'{self.name}' is a Python function and can't be saved; save the module it lives in")

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> RewardSource:
        raise ModelError(f"{directory} holds no Python function; make the source in your own code")
