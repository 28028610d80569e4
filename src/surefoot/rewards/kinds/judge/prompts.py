"""The requests for one completion: the rubric's wording, the rules, and the texts to be judged, fenced as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any

from surefoot.rewards.kinds.judge.call_config import CallConfig
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.fencing import RULES, Message, data_message
from surefoot.rewards.kinds.judge.messages import Call, Form
from surefoot.rewards.kinds.judge.rubrics import Rubric

if TYPE_CHECKING:
    from surefoot.types import Text

__all__ = [
    "COMPARISON",
    "Message",
    "Questions",
    "comparison_messages",
    "rating_messages",
    "replicates",
    "response_format",
    "schema_format",
]

COMPARISON = (1, 7)
"""The scale of comparisons: 1, the first answer is much better; 4, equal; 7, the second is."""
_ALTERNATIVES = (20, 8, 5)
"""Log-probabilities for a token that are asked for until the server allows it: OpenAI's most, two usual limits."""

_RATING = "Rate on a scale of whole numbers from {lowest} to {highest}; higher is better."
_COMPARISON = (
    "Two answers to the same request are given. Compare them by that question, on a scale of whole numbers from 1 "
    "to 7: 1, the first answer is much better; 4, they are equally good; 7, the second answer is much better. Their "
    "order means nothing."
)


class Questions:
    """The calls that one judge is asked for a completion: wordings × replicates (× both positions).

    Args:
        model: the judge's name at its endpoint.
        wordings: how many of the rubric's are asked.
        paired: completions are compared with a reference answer, in both positions.

    Attributes:
        scale: lowest and highest rating.
        bare: the rating's number alone is asked for, to read its token's probabilities.
    """

    def __init__(self, model: str, config: JudgeConfig, rubric: Rubric, wordings: int, *, paired: bool) -> None:
        self.model, self.config, self.rubric = model, config, rubric
        self.wordings, self.paired = wordings, paired
        self.bare = config.reading == "logprobs"
        self.scale = COMPARISON if paired else (rubric.lowest, rubric.highest)
        kind = "json_schema" if config.structured == "auto" else config.structured
        json_asked = kind != "none" and not self.bare
        self._format = response_format(kind, *self.scale, config.reason) if json_asked else None
        self._forms = _forms(config, self._format)

    def calls(self, prompt: Text, completion: Text, reference: Text | None) -> list[Call]:
        """The calls, wording by wording; with a reference, pairs of calls: the completion first, then second."""
        by_wording = [self._wording(wording, prompt, completion, reference) for wording in range(self.wordings)]
        return list(chain.from_iterable(by_wording))

    def _wording(self, wording: int, prompt: Text, completion: Text, reference: Text | None) -> list[Call]:
        reason, bare = self.config.reason, self.bare
        if reference is None:
            messages = rating_messages(self.rubric, wording, prompt, completion, reason=reason, bare=bare)
            return self._replicates(messages)
        sides = [
            self._replicates(comparison_messages(self.rubric, wording, prompt, *order, reason=reason, bare=bare))
            for order in ((completion, reference), (reference, completion))
        ]
        return list(chain.from_iterable(zip(*sides, strict=True)))

    def _replicates(self, messages: list[Message]) -> list[Call]:
        more: dict[str, Any] = {}
        if self.bare:
            more = {"logprobs": True, "top_logprobs": self.config.top_logprobs or _ALTERNATIVES[0]}
        count = self.config.calls_per_wording
        return replicates(self.model, self.config, messages, self._format, count, more=more, forms=self._forms)


def replicates(
    model: str,
    config: CallConfig,
    messages: list[Message],
    format: dict[str, Any] | None,
    count: int,
    *,
    more: Mapping[str, Any] | None = None,
    forms: Mapping[str, Form] | None = None,
) -> list[Call]:
    """The same request `count` times; with `sample_seed`, call i carries that seed plus i.

    Args:
        format: the `response_format` that is asked for, if any.
        more: further fields of the request.
        forms: instead of with that format and, if `structured` is "auto", without it.
    """
    seed = config.sample_seed
    body: dict[str, Any] = {
        "model": model,
        "messages": messages,
        "temperature": config.temperature,
        config.token_parameter: config.max_tokens,
        **config.parameters,
        **(more or {}),
    }
    whole = json.dumps([config.endpoint, body, format, config.structured, seed], sort_keys=True)
    question = hashlib.sha256(whole.encode()).hexdigest()[:48]
    bodies = [body if seed is None else {**body, "seed": seed + i} for i in range(count)]
    return [Call(body, forms or _formatted(config, format), question, i) for i, body in enumerate(bodies)]


def _forms(config: JudgeConfig, format: dict[str, Any] | None) -> dict[str, Form]:
    """With fewer and fewer alternatives of a token, or with the form of JSON and without it; or just one."""
    if config.reading == "logprobs" and config.top_logprobs is None:
        return {f"{most}": Form({"top_logprobs": most}, f"-top{most}") for most in _ALTERNATIVES}
    return _formatted(config, format)


def _formatted(config: CallConfig, format: dict[str, Any] | None) -> dict[str, Form]:
    if format is None:
        return {"none": Form({}, "")}
    with_format = Form({"response_format": format}, "-json")
    if config.structured != "auto":
        return {config.structured: with_format}
    return {"json_schema": with_format, "none": Form({}, "")}


def rating_messages(
    rubric: Rubric, wording: int, prompt: Text, completion: Text, *, reason: bool, bare: bool
) -> list[Message]:
    """The messages that ask for a rating of one completion.

    Args:
        wording: number of the rubric's wording.
        reason: ask for a short reason first.
        bare: ask for the number alone, so that its token's probabilities can be read.
    """
    scale = _RATING.format(lowest=rubric.lowest, highest=rubric.highest)
    system = _system(rubric.wordings[wording], scale, (rubric.lowest, rubric.highest), reason, bare)
    return [system, data_message([("REQUEST", prompt), ("ANSWER", completion)])]


def comparison_messages(
    rubric: Rubric, wording: int, prompt: Text, first: Text, second: Text, *, reason: bool, bare: bool
) -> list[Message]:
    """The messages that ask which of two answers is better, on `COMPARISON`; see `rating_messages`."""
    system = _system(rubric.wordings[wording], _COMPARISON, COMPARISON, reason, bare)
    return [system, data_message([("REQUEST", prompt), ("FIRST ANSWER", first), ("SECOND ANSWER", second)])]


def response_format(kind: str, lowest: int, highest: int, reason: bool) -> dict[str, Any]:
    """The request's `response_format`: kind "json_schema" or "json_object"."""
    return schema_format(kind, {"rating": range(lowest, highest + 1)}, reason)


def schema_format(kind: str, numbers: Mapping[str, range], reason: bool) -> dict[str, Any]:
    """`response_format` of an object that holds these whole numbers, after a reason if one is asked for."""
    if kind == "json_object":
        return {"type": "json_object"}
    names: dict[str, Any] = {"reason": {"type": "string"}} if reason else {}
    names |= {name: {"type": "integer", "enum": list(allowed)} for name, allowed in numbers.items()}
    schema = {"type": "object", "properties": names, "required": list(names), "additionalProperties": False}
    return {"type": "json_schema", "json_schema": {"name": "rating", "strict": True, "schema": schema}}


def _system(wording: str, scale: str, ends: tuple[int, int], reason: bool, bare: bool) -> Message:
    """The wording stands here, where a model takes instructions from, and not behind the texts.

    So all completions share it in a server's prefix cache, and a request is read once for each wording.
    """
    number = f"a whole number from {ends[0]} to {ends[1]}"
    if bare:
        reply = f"Reply with the rating alone: {number}, and nothing else."
    elif reason:
        reply = f'Reply with JSON and nothing else: {{"reason": "one or two sentences", "rating": {number}}}.'
    else:
        reply = f'Reply with JSON and nothing else: {{"rating": {number}}}.'
    return {"role": "system", "content": "\n\n".join([wording, scale, RULES, reply])}
