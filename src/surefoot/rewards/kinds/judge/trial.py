"""Try a judge on a few completions: what is sent, what it replies, what is read from that, and what it costs.

The completions are scored as in training (`JudgeSource.score`), against an empty cache of the trial's own. Every reply
is on disk there before anybody sees it, so the calls are read back from it, also after an error or an interrupt.
"""

from __future__ import annotations

import math
import os
import tempfile
import time
import warnings
from collections.abc import Sequence
from copy import copy
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, ModelError, RunError, SurefootError
from surefoot.redaction import redacted
from surefoot.rewards.kinds.judge.client import ask, form_fact
from surefoot.rewards.kinds.judge.costs import Totals, totals
from surefoot.rewards.kinds.judge.estimate import Readings, exact_row
from surefoot.rewards.kinds.judge.messages import Call, Missing, Outcome, Reply
from surefoot.rewards.kinds.judge.reply_cache import ReplyCache
from surefoot.rewards.kinds.judge.reply_counts import ReplyCounts
from surefoot.rewards.kinds.judge.reply_rows import COPY, Reading, copies
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.judge.trial_result import Trial, TriedCall, TriedCompletion
from surefoot.rewards.kinds.judge.trial_texts import TrialText
from surefoot.types import Anchors, Text

__all__ = ["try_judge"]

_UNREACHABLE = {
    "no connection": "no connection to {0.endpoint}: start the server, or mend the address (endpoint)",
    "timeout": "{0.endpoint} gave no reply within timeout_s, {0.timeout_s:g} s; if its model is slow or loading, "
    "raise timeout_s and deadline_s",
    "not a chat completion": "{0.endpoint} answers with something that is no chat completion; endpoint must be the "
    "base address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
}
"""By the reason for which the first call has no reply: what is wrong, and what to do."""
_UNREACHABLE["deadline"] = _UNREACHABLE["timeout"]


def try_judge(source: JudgeSource, texts: Sequence[TrialText]) -> Trial:
    """Ask a judge about completions as training does: the same requests, as many, read in the same way.

    Replies in the judge's cache aren't read, and none is added to it; its budget holds for the trial alone. The first
    call is made before the others and tried twice, so that a wrong address ends the trial at once. The source is left
    as it is.

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
    start, interrupted = time.perf_counter(), False
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        asked = copy(source)
        asked.config, asked.heard = replace(source.config, cache=f"{folder}/replies.sqlite"), ReplyCounts(source.name)
        try:
            _ask_first(asked, calls[0][0])
            error = _score(asked, prompts, completions)
        except KeyboardInterrupt:
            error, interrupted = "interrupted", True
        held = _held(asked, calls, "deadline" if error is None else "not made before the end")
    notes = [str(warning.message) for warning in warned if warning.category is UserWarning]
    if held.form == "none":
        notes.append("The server refuses a JSON schema (response_format), so it is asked without.")
    return Trial(
        source=source.name,
        endpoint=source.config.endpoint,
        scale=source.questions.scale,
        request=_request(calls[0][0], held.form),
        completions=_tried(source, texts, calls, held),
        totals=held.totals,
        seconds=time.perf_counter() - start,
        notes=[_without_key(note, source) for note in notes],
        error=None if error is None else _without_key(error, source),
        interrupted=interrupted,
    )


class _Held(NamedTuple):
    """What the trial's cache holds in the end.

    Args:
        outcomes: of every call, by its key.
        made: (tries, seconds) of the calls that were sent, by key.
        form: which of a call's forms the server takes; None if there is one form, or that isn't known.
    """

    outcomes: dict[str, Outcome]
    made: dict[str, tuple[int, float]]
    form: str | None
    totals: Totals


def _ask_first(source: JudgeSource, call: Call) -> None:
    """Make one call, and raise ModelError if the server can't be reached by it in two tries."""
    config = replace(source.config, retries=1)
    try:
        (outcome,) = ask(source.model, config, [[call]], lambda _, outcomes: outcomes[0]).read
    except RunError as stop:
        raise RunError(_of_trial(stop, source)) from None
    if isinstance(outcome, Missing) and outcome.reason in _UNREACHABLE:
        raise ModelError(_UNREACHABLE[outcome.reason].format(config))


def _score(source: JudgeSource, prompts: list[Text], completions: list[Text]) -> str | None:
    """Make all calls, and return the error that ended it early; what was read is read again from the cache."""
    try:
        source.score(prompts, completions)
    except SurefootError as stop:
        return _of_trial(stop, source)
    return None


def _of_trial(stop: SurefootError, source: JudgeSource) -> str:
    """The error's text, in which the cache is no file that can be gone back to."""
    return str(stop).replace(str(source.config.cache), "the trial's own cache, which is gone")


def _held(source: JudgeSource, calls: Sequence[Sequence[Call]], unsent: str) -> _Held:
    """Read the cache.

    Args:
        unsent: why calls that were never sent have no reply.
    """
    keys, config = [call.key for call in chain.from_iterable(calls)], source.config
    cache = ReplyCache(str(config.cache), config.account(source.model))
    try:
        rows = cache.rows("select key, outcome, tries, latency from calls order by rowid")
        why, replies = {key: outcome for key, outcome, *_ in rows}, cache.replies(keys)
        outcomes = {key: replies.get(key) or Missing(why.get(key, unsent)) for key in keys}
        made = {key: (tries, seconds) for key, _, tries, seconds in rows}
        return _Held(outcomes, made, cache.fact(form_fact(source.model, config)), totals(cache))
    finally:
        cache.close()


def _request(call: Call, form: str | None) -> dict[str, Any]:
    """Fields of a request but its messages, as it was sent in the form that the server takes."""
    changes = call.forms[form or next(iter(call.forms))].changes
    return redacted({name: value for name, value in (call.body | changes).items() if name != "messages"})


def _tried(
    source: JudgeSource, texts: Sequence[TrialText], calls: Sequence[Sequence[Call]], held: _Held
) -> list[TriedCompletion]:
    """Read the outcomes as `JudgeSource.score` does."""
    readings = [source.reader.read(some, [held.outcomes[call.key] for call in some]) for some in calls]
    copied, scores = copies(chain.from_iterable(readings)), source.rows(readings)
    known = (
        [None if math.isnan(value) else value for value in values]
        for values in (scores[:, 0].tolist(), _variances(source, scores).tolist())
    )
    tried = []
    for text, mean, variance, some, read in zip(texts, *known, calls, readings, strict=True):
        size = len(some) // source.num_wordings
        of_calls = [
            _tried_call(source, place // size, call, reading, reading.key in copied, held)
            for place, (call, reading) in enumerate(zip(some, read, strict=True))
        ]
        tried.append(TriedCompletion(text.about, text.role, text.prompt, text.completion, mean, variance, of_calls))
    return tried


def _tried_call(
    source: JudgeSource, wording: int, call: Call, reading: Reading, copied: bool, held: _Held
) -> TriedCall:
    outcome, (tries, seconds) = held.outcomes[call.key], held.made.get(call.key, (0, 0.0))
    reply = outcome if isinstance(outcome, Reply) else None
    rating, variance = (None, None) if copied or reading.rating is None else reading.rating
    return TriedCall(
        wording=wording,
        sample=call.sample,
        messages=call.body["messages"],
        reply=None if reply is None else _without_key(reply.content, source),
        finish="" if reply is None else reply.finish,
        rating=rating,
        variance=variance,
        why=COPY if copied else reading.why,
        tries=tries,
        seconds=seconds,
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


def _without_key(text: str, source: JudgeSource) -> str:
    """The text without the judge's key, which a server may repeat."""
    key = os.environ.get(source.config.variable or "")
    return text.replace(key, "[key]") if key else text
