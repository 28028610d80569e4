"""Try a judge on a few completions: what is sent, what it replies, what is read from that, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from itertools import chain

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.estimate import Readings, exact_row
from surefoot.rewards.kinds.judge.messages import Call
from surefoot.rewards.kinds.judge.reply_counts import ReplyCounts
from surefoot.rewards.kinds.judge.reply_rows import Reading, copies
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.judge.trial_result import Trial, TriedCall, TriedCompletion
from surefoot.rewards.kinds.judge.trial_run import TrialRun, run_trial
from surefoot.rewards.kinds.judge.trial_texts import TrialText
from surefoot.types import Anchors

__all__ = ["try_judge"]


def try_judge(source: JudgeSource, texts: Sequence[TrialText]) -> Trial:
    """Ask a judge about completions as training does: the same requests, as many, read in the same way.

    `run_trial` says how its calls differ from those of training. The source is left as it is.

    Returns:
        The trial. Ctrl-C, or an error after the first call, ends it early: see `error`.

    Raises:
        ModelError: the endpoint can't be reached, or refuses the key or the model. DataError: a prompt has no
            reference answer. ConfigError: there is no completion, or no key. RunError: the budget holds no call.
    """
    if not texts:
        raise ConfigError("there is no completion to try the judge on; give at least one")
    prompts, completions = [text.prompt for text in texts], [text.completion for text in texts]
    calls = list(source.calls(prompts, completions))

    def score(config: JudgeConfig) -> None:
        asked = copy(source)
        asked.config, asked.heard = config, ReplyCounts(source.name)
        asked.score(prompts, completions)

    run = run_trial(source.model, source.config, calls, score)
    return run.as_trial(source.name, source.config.endpoint, source.questions.scale, _tried(source, texts, calls, run))


def _tried(
    source: JudgeSource, texts: Sequence[TrialText], calls: Sequence[Sequence[Call]], run: TrialRun
) -> list[TriedCompletion]:
    """Read the outcomes as `JudgeSource.score` does."""
    readings = [source.reader.read(some, run.of(some)) for some in calls]
    copied, scores = copies(chain.from_iterable(readings)), source.rows(readings)
    known = (
        [None if math.isnan(value) else value for value in values]
        for values in (scores[:, 0].tolist(), _variances(source, scores).tolist())
    )
    tried = []
    for text, mean, variance, some, read in zip(texts, *known, calls, readings, strict=True):
        size = len(some) // source.num_wordings
        of_calls = [
            _tried_call(run, place // size, call, reading, copied)
            for place, (call, reading) in enumerate(zip(some, read, strict=True))
        ]
        tried.append(TriedCompletion(text.about, text.role, text.prompt, text.completion, mean, variance, of_calls))
    return tried


def _tried_call(run: TrialRun, wording: int, call: Call, reading: Reading, copied: set[str]) -> TriedCall:
    rating, variance = reading.rating or (None, None)
    return run.call(
        f"wording {wording + 1}", call, rating, reading.why, copied=reading.key in copied, variance=variance
    )


def _variances(source: JudgeSource, scores: Float[Tensor, "batch columns"]) -> Float[Tensor, "batch"]:
    """s² of one reply, raw; NaN if unknown.

    Each wording is centred by its mean over the calibration set, or over these completions where there is none.
    """
    if source.calibration is not None:
        return source.components(scores).reply
    means = Readings.of(scores, source.num_wordings).means
    row = exact_row(means.nanmean(dim=0))
    anchors = Anchors(row.expand_as(scores), "calibration", scores.new_full((len(scores),), torch.inf))
    variances = source.components(scores, anchors).reply
    if source.num_wordings > 1 and int((~scores[:, 0].isnan()).sum()) < 2:  # centred by itself alone
        return torch.full_like(variances, torch.nan)
    return variances
