"""Try criteria on a few completions: what verifiers say, what a judge is sent and replies, and the reward."""

from __future__ import annotations

import math
from collections.abc import Sequence
from copy import copy
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError
from surefoot.rewards.kinds.criteria.answers import Answers
from surefoot.rewards.kinds.criteria.config import CriteriaConfig
from surefoot.rewards.kinds.criteria.counts import CriteriaCounts
from surefoot.rewards.kinds.criteria.criterion import Criterion
from surefoot.rewards.kinds.criteria.rows import is_decided, row_of
from surefoot.rewards.kinds.criteria.source import CriteriaSource
from surefoot.rewards.kinds.judge.reply_rows import copies
from surefoot.rewards.kinds.judge.trial_result import Read, Trial, TriedCall, TriedCompletion, TriedCriterion
from surefoot.rewards.kinds.judge.trial_run import TrialRun, run_trial
from surefoot.rewards.kinds.judge.trial_texts import TrialText

if TYPE_CHECKING:
    from surefoot.rewards.kinds.judge.messages import Call

__all__ = ["try_criteria"]


def try_criteria(source: CriteriaSource, texts: Sequence[TrialText]) -> Trial:
    """Decide the criteria of completions as training does; as `try_judge`.

    Verifiers run once, before the calls.

    Returns:
        The trial. Ctrl-C during the calls, or an error after the first, ends it early: see `error`.

    Raises:
        DataError: a prompt has no criteria, or a function of a criterion fails. ConfigError: there is no completion,
            or no key. ModelError, RunError: as of `try_judge`.
    """
    if not texts:
        raise ConfigError("there is no completion to try the criteria on; give at least one")
    prompts, completions = [text.prompt for text in texts], [text.completion for text in texts]
    criteria = source.criteria_of(prompts)
    verified = source.verifiers.answers(prompts, completions, criteria)
    asked = [source.asked(*row) for row in zip(criteria, verified, strict=True)]
    calls = [source.calls_about(*row) for row in zip(prompts, completions, asked, strict=True)]

    def score(config: CriteriaConfig) -> None:
        made = copy(source)
        made.config, made.heard = config, CriteriaCounts(source.name)
        made.score_verified(prompts, completions, verified)

    run = run_trial(source.model, source.config, calls, score)
    rows = zip(calls, asked, strict=True)
    answers = [source.read(some, run.of(some), judged) for some, judged in rows]
    tables = source.tables(criteria, verified, answers)
    copied = copies(answer for some in answers for answer in some)
    shown = [
        [_tried_call(source, run, call, answer, copied, of) for call, answer, of in zip(*row, strict=True)]
        for row in zip(calls, answers, _questions(source, criteria, asked), strict=True)
    ]
    return run.as_trial(source.name, source.config.endpoint, None, _tried(source, texts, criteria, tables, shown))


def _questions(
    source: CriteriaSource, criteria: Sequence[Sequence[Criterion]], asked: Sequence[Sequence[Criterion]]
) -> list[list[str]]:
    """What each call is about, in the numbers of the prompt's list."""
    samples = source.config.samples
    if source.together:
        return [["all criteria"] * (samples * bool(judged)) for judged in asked]
    return [
        [f"criterion {some.index(one) + 1}" for one in judged for _ in range(samples)]
        for some, judged in zip(criteria, asked, strict=True)
    ]


def _tried_call(
    source: CriteriaSource, run: TrialRun, call: Call, answer: Answers, copied: set[str], question: str
) -> TriedCall:
    rating: Read | None = None
    if answer.rating is not None:
        read = tuple(_known(value) for value in answer.rating)
        rating = read if source.together else read[0]
    return run.call(question, call, rating, answer.why, copied=answer.key in copied)


def _tried(
    source: CriteriaSource,
    texts: Sequence[TrialText],
    criteria: Sequence[Sequence[Criterion]],
    tables: Sequence[Float[Tensor, "replies criteria"]],
    calls: Sequence[list[TriedCall]],
) -> list[TriedCompletion]:
    made = [row_of(some, table, source.config).columns for some, table in zip(criteria, tables, strict=True)]
    scores = torch.full((len(texts), source.num_columns), torch.nan)
    for row, columns in enumerate(made):
        scores[row, : len(columns)] = torch.tensor(columns)
    variances = source.raw_variance(scores).tolist()
    return [
        TriedCompletion(
            *(text.about, text.role, text.prompt, text.completion),
            mean=_known(columns[0]),
            variance=_known(variance),
            calls=some_calls,
            criteria=[_criterion(source, *column) for column in zip(some, table.T.tolist(), strict=True)],
            decided=is_decided(some, table[0].tolist()) and not some_calls,
        )
        for text, columns, variance, some_calls, some, table in zip(
            texts, made, variances, calls, criteria, tables, strict=True
        )
    ]


def _criterion(source: CriteriaSource, criterion: Criterion, column: list[float]) -> TriedCriterion:
    answers = [_known(value) for value in (column if criterion.judged else column[:1])]
    valid = [value for value in answers if value is not None]
    enough = len(valid) >= (source.config.valid if criterion.judged else 1)
    return TriedCriterion(
        criterion.text,
        criterion.kind,
        criterion.weight,
        criterion.required,
        answers,
        sum(valid) / len(valid) if enough else None,
    )


def _known(value: float) -> float | None:
    return None if math.isnan(value) else value
