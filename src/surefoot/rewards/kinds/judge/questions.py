"""From a completion to the calls that are made for it: wording by wording, replicate by replicate, both positions."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Any, TypedDict

from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.messages import ALTERNATIVES, Call, replicates
from surefoot.rewards.kinds.judge.prompts import (
    COMPARISON,
    Message,
    comparison_messages,
    rating_messages,
    response_format,
)
from surefoot.rewards.kinds.judge.rubrics import Rubric

if TYPE_CHECKING:
    from surefoot.types import Text

__all__ = ["Questions"]


class _How(TypedDict):
    reason: bool
    bare: bool


class Questions:
    """One judge's questions.

    Args:
        wordings: how many of the rubric's are asked.
        paired: completions are compared with a reference answer, in both positions.
    """

    def __init__(self, model: str, config: JudgeConfig, rubric: Rubric, wordings: int, *, paired: bool) -> None:
        self.model, self.config, self.rubric = model, config, rubric
        self.wordings, self.paired = wordings, paired
        self.bare = config.reading == "logprobs"
        self.scale = COMPARISON if paired else (rubric.lowest, rubric.highest)
        kind = "json_schema" if config.structured == "auto" else config.structured
        asked = kind != "none" and not self.bare
        self._form = response_format(kind, *self.scale, config.reason) if asked else None

    def calls(self, prompt: Text, completion: Text, reference: Text | None) -> list[Call]:
        """The calls, wording by wording; with a reference, pairs of calls: the completion first, then second."""
        one = [self._wording(wording, prompt, completion, reference) for wording in range(self.wordings)]
        return list(chain.from_iterable(one))

    def reader(self) -> Any:
        """What reads the answers."""
        from surefoot.rewards.kinds.judge.readings import Reader

        return Reader(self.scale, paired=self.paired, distribution=self.bare)

    def _wording(self, wording: int, prompt: Text, completion: Text, reference: Text | None) -> list[Call]:
        how = _How(reason=self.config.reason, bare=self.bare)
        if reference is None:
            return self._replicates(rating_messages(self.rubric, wording, prompt, completion, **how))
        orders = [(completion, reference), (reference, completion)]
        sides = [
            self._replicates(comparison_messages(self.rubric, wording, prompt, *order, **how)) for order in orders
        ]
        return list(chain.from_iterable(zip(*sides, strict=True)))

    def _replicates(self, messages: list[Message]) -> list[Call]:
        config = self.config
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": config.temperature,
            config.token_parameter: config.max_tokens,
            **config.parameters,
        }
        if self.bare:
            body |= {"logprobs": True, "top_logprobs": config.top_logprobs or ALTERNATIVES[0]}
        return replicates(
            config.endpoint, body, self._form, config.structured, config.calls_per_wording, config.sample_seed
        )
