"""Your own function as a reward source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError, ModelError
from surefoot.rewards.source import MemberSource
from surefoot.types import Text

__all__ = ["FunctionMembers"]


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

    @property
    def num_members(self) -> int:
        return self._count

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        scores = torch.as_tensor(self.function(prompts, completions), dtype=torch.float32)
        if scores.shape != (len(prompts), self._count):
            raise DataError(
                f"reward function '{self.name}' gave scores of shape {tuple(scores.shape)} for {len(prompts)} "
                f"completions and {self._count} members; expected ({len(prompts)}, {self._count})"
            )
        return scores

    def save(self, directory: str | Path) -> None:
        raise ModelError(f"'{self.name}' is a Python function and can't be saved; save the module it lives in")
