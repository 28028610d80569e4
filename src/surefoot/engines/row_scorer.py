"""Rewards and variances of single completions, from a source in this process or behind a server."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass

from surefoot.data.messages import cut_short
from surefoot.engines.row_weights import VARIANCE
from surefoot.engines.settings import EngineSettings
from surefoot.errors import ConfigError, DataError, RowError
from surefoot.maths.objectives import aggregate
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.remote import connect
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource
from surefoot.types import Text

__all__ = ["RowReward", "RowScorer", "as_texts", "open_source"]


@dataclass(frozen=True, slots=True)
class RowReward:
    """Reward of one completion, with what it was made of.

    Args:
        reward: r̃, what the objective makes of the estimate.
        mean: of the estimate, in reward.
        variance: of the estimate, in reward²; None if unknown.
        members: the members' rewards; empty for a source without.
    """

    reward: float
    mean: float
    variance: float | None
    members: tuple[float, ...] = ()

    def fields(self) -> dict[str, float]:
        """Numbers by name, as engines carry them beside a reward and average them in validation."""
        held = {"score": self.reward, "surefoot_mean": self.mean}
        if self.variance is not None:
            held[VARIANCE] = self.variance
        return held | {f"surefoot_member_{k}": value for k, value in enumerate(self.members)}


class RowScorer:
    """Score rows and apply the objective; a row's reward doesn't depend on the other rows of its batch.

    Args:
        source: calibrated, if it compares members.
        settings: name the objective, and whether anchors come from a file.
        anchors: of every prompt that is scored; None centres variances by the calibration set.

    Raises:
        ConfigError: the objective needs anchors and there are none, or the source isn't calibrated.
    """

    def __init__(self, source: RewardSource, settings: EngineSettings, anchors: AnchorStore | None = None) -> None:
        self.source, self.objective, self.anchors = source, settings.objective, anchors
        if source.calibration is None and source.num_members not in (None, 1):
            raise ConfigError(
                f"the source '{source.name}' isn't calibrated, so its constants would be fitted to each batch; "
                "calibrate it (`surefoot reward` does) and save it"
            )
        needed = self.objective.needs_anchor and source.centred and settings.anchor == "file"
        if needed and anchors is None:
            raise ConfigError(
                "surefoot.anchor_file is missing: make anchors of the training and validation prompts with `surefoot "
                "anchors`, or set surefoot.anchor: calibration"
            )

    @classmethod
    def open(cls, settings: EngineSettings) -> RowScorer:
        """Load the source and its anchors."""
        source = open_source(settings)
        use = settings.anchor == "file" and settings.anchor_file is not None
        return cls(source, settings, AnchorStore.load(str(settings.anchor_file), source) if use else None)

    def __call__(self, rows: Sequence[tuple[Text, Text]]) -> list[RowReward]:
        """Score (prompt, completion) pairs.

        Raises:
            RowError: the source left a row unscored, or without a variance that the objective needs.
            DataError: a prompt has no anchor. VarianceError: the source has no variance, and the objective needs one.
        """
        prompts, completions = [row[0] for row in rows], [row[1] for row in rows]
        anchors = None if self.anchors is None or not self.source.centred else self.anchors.of(prompts)
        estimate = self.source.estimate(self.source.score(prompts, completions), anchors)
        needed = self.objective.needs_variance
        count = len(rows)
        variance = estimate.variance.tolist() if needed or estimate.has_variance else [None] * count
        members = [()] * count if estimate.members is None else [tuple(row) for row in estimate.members.tolist()]
        columns = (aggregate(estimate, self.objective).tolist(), estimate.mean.tolist(), variance, members)
        rewards = [RowReward(*values) for values in zip(*columns, strict=True)]
        for place, reward in enumerate(rewards):
            if not math.isfinite(reward.reward) or (needed and not math.isfinite(reward.variance or 0.0)):
                raise RowError(place, f"'{self.source.name}' gave it no reward or no variance")
        return rewards


def open_source(settings: EngineSettings) -> RewardSource:
    """The source that the settings name: a saved one, or that of a server.

    Raises:
        ConfigError: they name none, or a key's variable that holds no key.
    """
    if settings.url is None and settings.source is None:
        raise ConfigError("give surefoot.source (a folder of `surefoot reward`) or surefoot.url (`surefoot serve`)")
    if settings.url is None:
        return load_source(str(settings.source), settings.device)
    key = os.environ.get(settings.key_variable) if settings.key_variable else None
    if settings.key_variable and not key:
        raise ConfigError(f"surefoot.key_variable names {settings.key_variable}, which holds no key; set it")
    return connect(settings.url, key)


def as_texts(messages: list[dict[str, str]], answer: str, finished: bool, texts: str) -> tuple[Text, Text]:
    """Prompt and completion as the source reads them.

    Args:
        messages: the prompt's.
        answer: decoded completion, without special tokens.
        finished: False where the length limit cut it off, so that it isn't scored as if it were finished.
        texts: "messages", or "text" for the content of a prompt of one message.

    Raises:
        DataError: plain text is wanted of a prompt of several messages.
    """
    completion: Text
    if texts == "messages":
        prompt: Text = [dict(message) for message in messages]
        completion = [{"role": "assistant", "content": answer}]
    elif len(messages) == 1:
        prompt, completion = messages[0]["content"], answer
    else:
        raise DataError(f"surefoot.texts: text needs prompts of one message, got one of {len(messages)}")
    return prompt, completion if finished else cut_short(completion)
