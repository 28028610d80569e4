"""Make the calls of a trial against an empty cache of its own, and read back what was said.

Every reply is on disk there before anybody sees it, so nothing is lost by an error or an interrupt.
"""

from __future__ import annotations

import os
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, TypeVar

from surefoot.errors import ModelError, RunError, SurefootError
from surefoot.redaction import redacted
from surefoot.rewards.kinds.judge.call_config import CallConfig
from surefoot.rewards.kinds.judge.client import ask, form_fact
from surefoot.rewards.kinds.judge.costs import Totals, totals
from surefoot.rewards.kinds.judge.messages import Call, Missing, Outcome, Reply
from surefoot.rewards.kinds.judge.reply_cache import ReplyCache
from surefoot.rewards.kinds.judge.reply_rows import COPY
from surefoot.rewards.kinds.judge.trial_result import Read, Trial, TriedCall, TriedCompletion

__all__ = ["TrialRun", "run_trial"]

Config = TypeVar("Config", bound=CallConfig)
_UNREACHABLE = {
    "no connection": "no connection to {0.endpoint}: start the server, or mend the address (endpoint)",
    "timeout": "{0.endpoint} gave no reply within timeout_s, {0.timeout_s:g} s; if its model is slow or loading, "
    "raise timeout_s and deadline_s",
    "not a chat completion": "{0.endpoint} answers with something that is no chat completion; endpoint must be the "
    "base address of an OpenAI-compatible server, such as http://127.0.0.1:8000/v1",
}
"""By the reason for which the first call has no reply: what is wrong, and what to do."""
_UNREACHABLE["deadline"] = _UNREACHABLE["timeout"]


@dataclass(frozen=True)
class TrialRun:
    """What came of a trial's calls.

    Args:
        outcomes: of every call, by its key.
        made: (tries, seconds) of the calls that were sent, by key.
        key_variable: environment variable whose value is taken out of all texts.
        request, totals, seconds, notes, error, interrupted: as in `Trial`.
    """

    outcomes: dict[str, Outcome]
    made: dict[str, tuple[int, float]]
    key_variable: str | None
    request: dict[str, Any]
    totals: Totals
    seconds: float
    notes: list[str]
    error: str | None
    interrupted: bool

    def as_trial(
        self, source: str, endpoint: str, scale: tuple[int, int] | None, completions: list[TriedCompletion]
    ) -> Trial:
        """The trial that these calls make; arguments as in `Trial`."""
        return Trial(
            source=source,
            endpoint=endpoint,
            scale=scale,
            request=self.request,
            completions=completions,
            totals=self.totals,
            seconds=self.seconds,
            notes=self.notes,
            error=self.error,
            interrupted=self.interrupted,
        )

    def of(self, calls: Sequence[Call]) -> list[Outcome]:
        """Outcomes of these calls."""
        return [self.outcomes[call.key] for call in calls]

    def call(
        self, question: str, call: Call, rating: Read | None, why: str, *, copied: bool, variance: float | None = None
    ) -> TriedCall:
        """One call as a trial shows it.

        Args:
            question, rating, why, variance: as in `TriedCall`.
            copied: the reply is another call's, so its rating doesn't count.
        """
        outcome, (tries, seconds) = self.outcomes[call.key], self.made.get(call.key, (0, 0.0))
        reply = outcome if isinstance(outcome, Reply) else None
        return TriedCall(
            question=question,
            sample=call.sample,
            messages=call.body["messages"],
            reply=None if reply is None else _without_key(reply.content, self.key_variable),
            finish="" if reply is None else reply.finish,
            rating=None if copied else rating,
            variance=None if copied else variance,
            why=COPY if copied else why,
            tries=tries,
            seconds=seconds,
        )


def run_trial(
    model: str, config: Config, calls: Sequence[Sequence[Call]], score: Callable[[Config], object]
) -> TrialRun:
    """Make the calls of all completions as scoring does.

    Replies in the judge's cache aren't read, and none is added to it; its budget holds for the trial alone. The first
    call is made before the others and tried twice, so that a wrong address ends the trial at once.

    Args:
        score: makes all calls, by settings with the trial's own cache.

    Raises:
        ModelError: the endpoint can't be reached, or refuses the key or the model. ConfigError: there is no key.
            RunError: the budget holds no call.
    """
    start, interrupted, every = time.perf_counter(), False, list(chain.from_iterable(calls))
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        own = replace(config, cache=f"{folder}/replies.sqlite")
        try:
            if every:
                _ask_first(model, own, every[0])
            error = _error_of(lambda: score(own), own)
        except KeyboardInterrupt:
            error, interrupted = "interrupted", True
        unsent = "deadline" if error is None else "not made before the end"
        outcomes, made, form, spent = _held(model, own, every, unsent)
    notes = [str(warning.message) for warning in warned if warning.category is UserWarning]
    if form == "none":
        notes.append("The server refuses a JSON schema (response_format), so it is asked without.")
    key = config.variable
    return TrialRun(
        outcomes=outcomes,
        made=made,
        key_variable=key,
        request=_request(every[0], form) if every else {},
        totals=spent,
        seconds=time.perf_counter() - start,
        notes=[_without_key(note, key) for note in notes],
        error=None if error is None else _without_key(error, key),
        interrupted=interrupted,
    )


def _ask_first(model: str, config: CallConfig, call: Call) -> None:
    """Make one call, and raise ModelError if the server can't be reached by it in two tries."""
    try:
        (outcome,) = ask(model, replace(config, retries=1), [[call]], lambda _, outcomes: outcomes[0]).read
    except RunError as stop:
        raise RunError(_of_trial(stop, config)) from None
    if isinstance(outcome, Missing) and outcome.reason in _UNREACHABLE:
        raise ModelError(_UNREACHABLE[outcome.reason].format(config))


def _error_of(score: Callable[[], object], config: CallConfig) -> str | None:
    """Make all calls, and return the error that ended it early; what was read is read again from the cache."""
    try:
        score()
    except SurefootError as stop:
        return _of_trial(stop, config)
    return None


def _of_trial(stop: SurefootError, config: CallConfig) -> str:
    """The error's text, in which the cache is no file that can be gone back to."""
    return str(stop).replace(str(config.cache), "the trial's own cache, which is gone")


def _held(
    model: str, config: CallConfig, calls: Sequence[Call], unsent: str
) -> tuple[dict[str, Outcome], dict[str, tuple[int, float]], str | None, Totals]:
    """Read the cache: outcomes and (tries, seconds) by key, the form that the server takes if known, and totals.

    Args:
        unsent: why calls that were never sent have no reply.
    """
    keys = [call.key for call in calls]
    cache = ReplyCache(str(config.cache), config.account(model))
    try:
        rows = cache.rows("select key, outcome, tries, latency from calls order by rowid")
        why, replies = {key: outcome for key, outcome, *_ in rows}, cache.replies(keys)
        outcomes = {key: replies.get(key) or Missing(why.get(key, unsent)) for key in keys}
        made = {key: (tries, seconds) for key, _, tries, seconds in rows}
        return outcomes, made, cache.fact(form_fact(model, config)), totals(cache)
    finally:
        cache.close()


def _request(call: Call, form: str | None) -> dict[str, Any]:
    """Fields of a request but its messages, as it was sent in the form that the server takes."""
    changes = call.forms[form or next(iter(call.forms))].changes
    return redacted({name: value for name, value in (call.body | changes).items() if name != "messages"})


def _without_key(text: str, variable: str | None) -> str:
    """The text without the judge's key, which a server may repeat."""
    key = os.environ.get(variable or "")
    return text.replace(key, "[key]") if key else text
