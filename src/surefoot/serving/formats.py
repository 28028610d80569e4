"""The server's formats: each reads a JSON payload into rows to score, and writes the rows' answers as a payload.

Pure functions: they know neither HTTP nor models. A format is one route. Those of other engines have one number per
row and no place for a failure, so a row that failed fails the request there; `/v1/rewards` answers null for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from surefoot.data.messages import as_messages, cut_short
from surefoot.errors import DataError
from surefoot.types import Text

__all__ = ["FORMATS", "Answer", "Format", "Query", "Refusal", "Row", "without_end"]


class Refusal(Exception):
    """A request that isn't answered as asked.

    Args:
        status: of HTTP.
        reason: what is wrong and what to do, for the client.
        retry_after: seconds after which the same request may succeed; None if it never will.
    """

    def __init__(self, status: int, reason: str, retry_after: int | None = None) -> None:
        super().__init__(reason)
        self.status, self.reason, self.retry_after = status, reason, retry_after


@dataclass(frozen=True, slots=True)
class Row:
    """A completion to score with its prompt."""

    prompt: Text
    completion: Text


@dataclass(frozen=True, slots=True)
class Query:
    """What a request asks.

    Args:
        rows: to score.
        raw: give the source's scored rows, without any arithmetic on them.
        group: centre each prompt's rows by their own mean, because the reference policy drew them.
        references: prompts with completions of the reference policy, from which unknown anchors are made.
        model: the model's name as the client gave it; it is returned.
    """

    rows: list[Row]
    raw: bool = False
    group: bool = False
    references: list[tuple[Text, list[Text]]] = field(default_factory=list)
    model: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What is known of one row.

    Args:
        raw: the scored row, NaN where unscored; None if scoring failed.
        mean: reward; None if it is unscored.
        variance, weight: of the anchored reward, and the KL weight w that it gives; None where unknown.
        members: the members' rewards; None for a source that has none.
        anchor: kind of the anchor that the variance was taken from.
        error: why there is no reward; None if there is one.
        fault: "row" if the row is to blame, "model" if the model failed on it.
    """

    raw: list[float] | None = None
    mean: float | None = None
    variance: float | None = None
    weight: float | None = None
    members: list[float | None] | None = None
    anchor: str | None = None
    error: str | None = None
    fault: str = "row"


@dataclass(frozen=True, slots=True)
class Format:
    """A route's format.

    Args:
        read: payload to query; raises `Refusal` (422) for a payload that isn't of this format.
        write: query and one answer per row to payload; raises `Refusal` for a failed row it has no place for.
        full: status that says that the queue is full. verl's client gives up on any status from 400 to 499.
        ends: completions hold the text of the engine's end token, if they were finished.
    """

    read: Callable[[Any], Query]
    write: Callable[[Query, Sequence[Answer]], dict[str, Any]]
    full: int = 503
    ends: bool = False


def read_rewards(payload: Any) -> Query:
    """Our own: `completions` of one `prompt`, or of one of `prompts` each; `group`, `reference`, `rows`, `cut`."""
    held = _object(payload, {"prompt", "prompts", "completions", "group", "reference", "rows", "cut", "model"})
    completions = _texts(held, "completions")
    if ("prompt" in held) == ("prompts" in held):
        raise Refusal(422, "give prompt (one for all completions) or prompts (one for each), and not both")
    one = "prompt" in held
    prompts = [_text(held["prompt"], "prompt")] * len(completions) if one else _texts(held, "prompts")
    if len(prompts) != len(completions):
        raise Refusal(422, f"{len(prompts)} prompts for {len(completions)} completions; give one for each")
    cut = held.get("cut") or [False] * len(completions)
    if not isinstance(cut, list) or len(cut) != len(completions) or not all(isinstance(x, bool) for x in cut):
        raise Refusal(422, "cut must hold true or false for each completion: whether the length limit cut it off")
    completions = [cut_short(text) if short else text for text, short in zip(completions, cut, strict=True)]
    raw, group = _flag(held, "rows"), _flag(held, "group")
    if raw and (group or held.get("reference")):
        raise Refusal(422, "rows gives the source's own rows, which have no anchor; leave out group and reference")
    return Query(_rows(prompts, completions), raw, group, _references(held.get("reference") or []), _model(held))


def write_rewards(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
    """Columns with one value for each completion, null where unknown; `errors` says why, by the row's number."""
    errors = {str(i): answer.error for i, answer in enumerate(answers) if answer.error is not None}
    if query.raw:
        rows = [None if x.raw is None else [_number(value) for value in x.raw] for x in answers]
        return {"rows": rows, "errors": errors}
    names = ("mean", "variance", "weight", "members", "anchor")
    return {name: [getattr(answer, name) for answer in answers] for name in names} | {"errors": errors}


def read_openrlhf(payload: Any) -> Query:
    """OpenRLHF's: `query` holds prompt and completion in one text, `prompts` the prompts."""
    held = _object(payload)
    whole = _texts(held, "query", plain=True)
    prompts = _texts(held, "prompts", plain=True) if held.get("prompts") else [""] * len(whole)
    if len(prompts) != len(whole):
        raise Refusal(422, f"{len(prompts)} prompts for {len(whole)} of query; give one for each")
    return Query([_split(text, prompt) for text, prompt in zip(whole, prompts, strict=True)])


def write_openrlhf(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
    """`extra_logs` reaches each sample's `info` in OpenRLHF; what the source can't tell is left out of it.

    `anchored` is 0 where the variance was centred by the calibration set, since the prompt has no anchor.
    """
    rewards = _means(answers)
    extra: dict[str, list[Any]] = {
        name: [getattr(answer, name) for answer in answers] for name in ("variance", "weight")
    }
    if None not in extra["variance"]:
        extra["anchored"] = [float(answer.anchor != "calibration") for answer in answers]
    known = {name: values for name, values in extra.items() if None not in values}
    return {"rewards": rewards, "scores": rewards, "extra_logs": known}


def without_end(rows: Sequence[Row], end: str) -> list[Row]:
    """Rows whose completions have the end token's text taken off; one without it is marked as cut off."""
    told = [(row, isinstance(row.completion, str) and row.completion.endswith(end)) for row in rows]
    return [Row(x.prompt, x.completion[: -len(end)] if ended else cut_short(x.completion)) for x, ended in told]


def read_inputs(payload: Any) -> Query:
    """vLLM's and OpenAI's: `input`, a text or several, each prompt and completion in one; or `messages`."""
    held = _object(payload)
    if held.get("use_activation") or held.get("activation"):
        raise Refusal(422, "rewards are given as they are: send use_activation: false, or leave it out")
    if "messages" in held:
        return Query([_conversation(held["messages"])], model=_model(held))
    given = held.get("input")
    texts = [given] if isinstance(given, str) else given
    held = {"input": texts}
    return Query([_split(text, "") for text in _texts(held, "input", plain=True)], model=_model(payload))


def write_classify(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
    """vLLM's `/classify` with one class, whose `probs` is the reward; verl reads `data[-1].probs[-1]`."""
    means = _means(answers)
    return _listed(
        query,
        [
            {"index": i, "label": "LABEL_0", "probs": [mean], "num_classes": 1, **_extras(answers[i])}
            for i, mean in enumerate(means)
        ],
    )


def write_pooling(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
    """vLLM's `/pooling` of a reward model: `data` of each row is the reward."""
    items = [{"index": i, "object": "pooling", "data": [mean]} for i, mean in enumerate(_means(answers))]
    return _listed(query, [item | _extras(answer) for item, answer in zip(items, answers, strict=True)])


def write_embeddings(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
    """OpenAI's `/v1/embeddings` with one dimension, the reward; verl with SGLang reads `data[-1].embedding[-1]`."""
    items = [{"index": i, "object": "embedding", "embedding": [mean]} for i, mean in enumerate(_means(answers))]
    return _listed(query, [item | _extras(answer) for item, answer in zip(items, answers, strict=True)])


def read_score(payload: Any) -> Query:
    """vLLM's `/score`: prompts in `text_1` (or `queries`), completions in `text_2` (or `documents`)."""
    held = _object(payload)
    prompts, completions = (_either(held, *names) for names in (("text_1", "queries"), ("text_2", "documents")))
    if len(prompts) == 1:
        prompts = prompts * len(completions)
    if len(prompts) != len(completions):
        raise Refusal(422, f"{len(prompts)} of text_1 for {len(completions)} of text_2; give one for all, or for each")
    return Query(_rows(prompts, completions), model=_model(held))


def write_score(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
    """vLLM's `/score`: `score` of each row is the reward."""
    items = [{"index": i, "object": "score", "score": mean} for i, mean in enumerate(_means(answers))]
    return _listed(query, [item | _extras(answer) for item, answer in zip(items, answers, strict=True)])


def read_slime(payload: Any) -> Query:
    """slime's remote reward: one `prompt`, text or messages, and its `response`."""
    held = _object(payload)
    if not isinstance(held.get("response"), str):
        raise Refusal(422, "response must be text")
    prompt = _text(held.get("prompt"), "prompt")
    said: Text = held["response"] if isinstance(prompt, str) else [_assistant(held["response"])]
    return Query([Row(prompt, said)])


def write_slime(query: Query, answers: Sequence[Answer]) -> dict[str, Any]:
    """A flat object, of which slime's `--reward-key reward` takes one value."""
    return {"reward": _means(answers)[0], **_extras(answers[0])}


FORMATS: dict[str, Format] = {
    "/v1/rewards": Format(read_rewards, write_rewards, full=429),
    "/get_reward": Format(read_openrlhf, write_openrlhf, ends=True),
    "/classify": Format(read_inputs, write_classify),
    "/pooling": Format(read_inputs, write_pooling),
    "/v1/embeddings": Format(read_inputs, write_embeddings),
    "/score": Format(read_score, write_score),
    "/rm": Format(read_slime, write_slime),
}
"""The format of each route."""


def _object(payload: Any, known: set[str] | None = None) -> dict[str, Any]:
    if not isinstance(payload, dict):
        raise Refusal(422, f"the body must be a JSON object, got {type(payload).__name__}")
    unknown = sorted(set(payload) - known) if known is not None else []
    if unknown:
        raise Refusal(422, f"unknown field '{unknown[0]:.40}'; known are {', '.join(sorted(known or ()))}")
    return payload


def _texts(held: dict[str, Any], name: str, *, plain: bool = False) -> list[Text]:
    values = held.get(name)
    if not isinstance(values, list) or not values:
        raise Refusal(422, f"{name} must be a list of at least one text")
    return [_text(value, f"{name}[{i}]", plain=plain) for i, value in enumerate(values)]


def _text(value: Any, where: str, *, plain: bool = False) -> Text:
    if isinstance(value, str):
        return _encodable(value, where)
    if plain:
        raise Refusal(422, f"{where} must be text, got {type(value).__name__}")
    try:
        messages = as_messages(value)
    except DataError as error:
        raise Refusal(422, f"{where}: {error}") from None
    if not messages:
        raise Refusal(422, f"{where} holds no message")
    for message in messages:
        _encodable(message.get("content", ""), where)
    return messages


def _encodable(text: str, where: str) -> str:
    """Refuse lone surrogates, which JSON can write and no tokenizer can read."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise Refusal(422, f"{where} holds half a surrogate pair, which is no character") from None
    return text


def _rows(prompts: Sequence[Text], completions: Sequence[Text]) -> list[Row]:
    return [Row(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]


def _split(whole: Any, prompt: Any) -> Row:
    """A row of one text with its prompt in it; all of it counts as the prompt if its completion can't be told.

    Special tokens of templated text are read as such in a prompt, and as plain text in a completion.
    """
    if prompt and whole.startswith(prompt):
        return Row(prompt, whole[len(prompt) :])
    return Row(whole, "")


def _conversation(value: Any) -> Row:
    messages = _text(value, "messages")
    if isinstance(messages, str):
        raise Refusal(422, "messages must be a list of messages")
    return Row(messages[:-1], messages[-1:])


def _assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": _encodable(text, "response")}


def _either(held: dict[str, Any], *names: str) -> list[Text]:
    name = next((name for name in names if name in held), names[0])
    value = held.get(name)
    return _texts({name: [value] if isinstance(value, str) else value}, name, plain=True)


def _references(items: Any) -> list[tuple[Text, list[Text]]]:
    if not isinstance(items, list):
        raise Refusal(422, "reference must be a list of {prompt, completions}")
    references = []
    for i, item in enumerate(items):
        if not isinstance(item, dict) or set(item) != {"prompt", "completions"}:
            raise Refusal(422, f"reference[{i}] must hold prompt and completions, and nothing else")
        references.append((_text(item["prompt"], f"reference[{i}].prompt"), _texts(item, "completions")))
    return references


def _flag(held: dict[str, Any], name: str) -> bool:
    value = held.get(name, False)
    if not isinstance(value, bool):
        raise Refusal(422, f"{name} must be true or false, got {value!r:.40}")
    return value


def _model(held: dict[str, Any]) -> str:
    value = held.get("model")
    return value if isinstance(value, str) else ""


def _means(answers: Sequence[Answer]) -> list[float]:
    """Every row's reward; a row that has none refuses the request."""
    means = []
    for i, answer in enumerate(answers):
        if answer.mean is None:
            reason = f"row {i} has no reward: {answer.error}"
            raise Refusal(500 if answer.fault == "model" else 422, reason)
        means.append(answer.mean)
    return means


def _extras(answer: Answer) -> dict[str, Any]:
    return {"variance": answer.variance, "weight": answer.weight, "anchor": answer.anchor}


def _listed(query: Query, data: list[dict[str, Any]]) -> dict[str, Any]:
    usage = {"prompt_tokens": 0, "total_tokens": 0, "completion_tokens": 0}
    return {
        "id": "",
        "object": "list",
        "created": int(time.time()),
        "model": query.model,
        "data": data,
        "usage": usage,
    }


def _number(value: float) -> float | None:
    return value if value == value and abs(value) != float("inf") else None
