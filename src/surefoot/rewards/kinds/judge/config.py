"""Settings of a judge: what it is asked, beside those of its calls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from surefoot.errors import ConfigError
from surefoot.rewards.kinds.judge.call_config import CallConfig

__all__ = ["JudgeConfig"]


@dataclass(frozen=True)
class JudgeConfig(CallConfig):
    """All settings of one judge but its model's name; those of its calls are in `CallConfig`.

    `samples` are replies for each wording. `min_valid` counts valid replies (pairs of replies, where positions are
    swapped) of a scored completion; if None it is 1 in reading "logprobs", else 2, or 1 where only one is asked.
    `variance_of: reply` is how far one reply of one wording lies from the mean, as members do in other sources.

    Args:
        rubric: name of one in the library, or path of your own file (docs/judge.md).
        wordings: how many of the rubric's wordings are asked, the first ones; all if None.
        references: file of `prompt` and `reference`; completions are then compared with the reference answer, each in
            both positions, rather than rated.
        reading: "samples" reads each reply's rating; "logprobs" reads the distribution of the rating's token from one
            reply for each wording (and position).
        top_logprobs: alternatives of a token that are asked for in reading "logprobs"; if None, the most that the
            server allows, of 20, 8 and 5.

    Raises:
        ConfigError: a value out of range, a contradiction, or a secret in the endpoint or the parameters.
    """

    rubric: str = "helpfulness"
    wordings: int | None = None
    references: str | None = None
    reading: Literal["samples", "logprobs"] = "samples"
    top_logprobs: int | None = None

    CHOICES: ClassVar[Mapping[str, tuple[str, ...]]] = {**CallConfig.CHOICES, "reading": ("samples", "logprobs")}
    AT_LEAST: ClassVar[Mapping[str, float]] = {**CallConfig.AT_LEAST, "wordings": 1, "top_logprobs": 2}

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.reading == "logprobs" and self.reason:
            raise ConfigError("reading: logprobs asks for the rating alone; leave reason out")
        if self.min_valid is not None and self.reading == "samples" and self.wordings is not None:
            most = self.wordings * self.samples
            if self.min_valid > most:
                raise ConfigError(f"min_valid is {self.min_valid}, but {most} replies are asked for each completion")

    @property
    def calls_per_wording(self) -> int:
        """Replies, or pairs of replies in both positions, for each wording."""
        return 1 if self.reading == "logprobs" else self.samples

    @property
    def form_name(self) -> str:
        return "top_logprobs" if self.reading == "logprobs" else super().form_name
