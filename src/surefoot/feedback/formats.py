"""Answers to and from other formats: plain rows, TRL's preferences, Label Studio's tasks, Argilla's records.

Each pair of functions is pure: `to_…(pairs, answers)` gives plain values, `from_…(values, pairs)` gives the answers
back. What a format can't hold is said with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID, uuid5

from surefoot.data.rows import read_pair
from surefoot.errors import DataError
from surefoot.feedback.answers import SIDES, Answer
from surefoot.feedback.pairs import Pair, pair_id

__all__ = [
    "FORMATS",
    "LABEL_STUDIO_CONFIG",
    "from_argilla",
    "from_label_studio",
    "from_plain",
    "from_trl",
    "to_argilla",
    "to_label_studio",
    "to_plain",
    "to_trl",
]

Rows = list[dict[str, Any]]
Held = TypeVar("Held")
Read = TypeVar("Read")

LABEL_STUDIO_CONFIG = """<View>
  <Text name="prompt" value="$prompt"/>
  <Pairwise name="preference" toName="completion_a,completion_b" leftClass="a" rightClass="b"/>
  <Text name="completion_a" value="$completion_a"/>
  <Text name="completion_b" value="$completion_b"/>
  <Choices name="other" toName="prompt" choice="single"><Choice value="tie"/><Choice value="skip"/></Choices>
  <Rating name="strength" toName="prompt" maxRating="2"/>
</View>
"""
"""A labelling interface of Label Studio for the tasks of `to_label_studio`; for chats use its `Paragraphs` tag."""

_ARGILLA_USERS = UUID("6d0f6a5e-5b0b-5f0e-9d55-6b1f7c0e8a11")
"""Namespace of the user ids that stand for annotators' names."""


def to_plain(pairs: Sequence[Pair], answers: Sequence[Answer]) -> Rows:
    """One row for each answer, with its pair's texts; holds everything."""
    known = _by_id(pairs)
    return [
        {
            **_texts(_pair(known, answer.pair)),
            **{name: getattr(answer, name) for name in ("annotator", "choice", "left", "strength", "seconds", "time")},
        }
        for answer in answers
    ]


def from_plain(rows: Iterable[Mapping[str, Any]], pairs: Sequence[Pair]) -> list[Answer]:
    """Answers of rows of `to_plain`; the fields after `choice` may be missing.

    Raises:
        DataError: a pair isn't among `pairs`, or a value can't be one of an answer; the row is named.
    """
    known = _by_id(pairs)

    def read(row: Mapping[str, Any]) -> Answer:
        choice = row["choice"]
        strength = row.get("strength")
        return Answer(
            _pair(known, row["pair"]).id,
            row["annotator"],
            choice,
            row.get("left"),
            (1 if choice in SIDES else 0) if strength is None else int(strength),
            row.get("seconds"),
            _time(row),
        )

    return _read_all(rows, read)


def to_trl(pairs: Sequence[Pair], answers: Sequence[Answer], strong_margin: float = 0.0) -> Rows:
    """TRL's preference format, one row for each preference, with `annotator`, `margin` and `strength`.

    Ties and skips have no place in it and are left out.

    Args:
        strong_margin: the `margin`, in units of reward, of a "much better"; a "better" has 0. A trainer subtracts it
            from the difference of the rewards.
    """
    known, rows = _by_id(pairs), []
    for answer in answers:
        pair = _pair(known, answer.pair)
        if answer.choice not in SIDES:
            continue
        chosen, rejected = (pair.a, pair.b) if answer.choice == "a" else (pair.b, pair.a)
        side = None if answer.left is None else ("left" if answer.left == answer.choice else "right")
        rows.append({
            "prompt": pair.prompt, "chosen": chosen, "rejected": rejected, "annotator": answer.annotator,
            "margin": strong_margin if answer.strength == 2 else 0.0, "strength": answer.strength,
            "chosen_side": side, "seconds": answer.seconds, "time": answer.time, "pair": pair.id,
        })  # fmt: skip
    return rows


def from_trl(rows: Iterable[Mapping[str, Any]], pairs: Sequence[Pair]) -> list[Answer]:
    """Answers of preferences in any of TRL's layouts; `strength`, or a positive `margin`, tells a "much better".

    Raises:
        DataError: a pair isn't among `pairs`, there is no annotator, or a row can't be read.
    """
    known = _by_id(pairs)

    def read(row: Mapping[str, Any]) -> Answer:
        prompt, chosen, rejected = read_pair(row)
        pair = _pair(known, pair_id(prompt, chosen, rejected))
        choice, other = ("a", "b") if chosen == pair.a else ("b", "a")
        left = {"left": choice, "right": other}.get(row.get("chosen_side") or "")
        strength = row.get("strength") or (2 if (row.get("margin") or 0) > 0 else 1)
        answer: Any = (pair.id, row["annotator"], choice, left, int(strength), row.get("seconds"), _time(row))
        return Answer(*answer)

    return _read_all(rows, read)


def to_label_studio(pairs: Sequence[Pair], answers: Sequence[Answer]) -> Rows:
    """Label Studio's tasks with annotations, for `LABEL_STUDIO_CONFIG`; pairs without an answer are tasks to be done.

    An annotator's name, the sides and the strength go into the result (`meta`), since an annotation's `completed_by`
    must be a user of that server.
    """
    grouped: dict[str, list[Answer]] = {pair.id: [] for pair in pairs}
    for answer in answers:
        _pair(grouped, answer.pair).append(answer)
    return [
        {"data": _texts(pair), "annotations": [_annotation(answer) for answer in grouped[pair.id]]} for pair in pairs
    ]


def _annotation(answer: Answer) -> dict[str, Any]:
    meta = {"annotator": answer.annotator, "left": answer.left, "strength": answer.strength, "time": answer.time}
    if answer.choice in SIDES:
        value: dict[str, Any] = {"selected": "left" if answer.choice == "a" else "right"}
        names = {"from_name": "preference", "to_name": "completion_a,completion_b", "type": "pairwise"}
    else:
        value, names = {"choices": [answer.choice]}, {"from_name": "other", "to_name": "prompt", "type": "choices"}
    result: Rows = [{"id": answer.pair, **names, "value": value, "meta": meta}]
    if answer.choice in SIDES:
        result.append({"id": f"{answer.pair}s", "from_name": "strength", "to_name": "prompt", "type": "rating",
                       "value": {"rating": answer.strength}})  # fmt: skip
    return {"result": result, "was_cancelled": answer.choice == "skip", "lead_time": answer.seconds}


def from_label_studio(tasks: Iterable[Mapping[str, Any]], pairs: Sequence[Pair]) -> list[Answer]:
    """Answers of Label Studio's JSON export; drafts and predictions don't count.

    The left of a Pairwise tag is `completion_a`. A cancelled annotation is a skip. Without a name of ours the
    annotator is what `completed_by` says: an e-mail address or a number.

    Raises:
        DataError: a task isn't of one of `pairs`, or an annotation says nothing that is known here.
    """
    known = _by_id(pairs)

    def read(task: Mapping[str, Any]) -> list[Answer]:
        pair = _pair(known, task["data"]["pair"])
        return [_from_annotation(pair.id, annotation) for annotation in task.get("annotations") or []]

    return [answer for answers in _read_all(tasks, read) for answer in answers]


def _from_annotation(pair: str, annotation: Mapping[str, Any]) -> Answer:
    values = {item["type"]: item for item in annotation.get("result") or []}
    metas = (item["meta"] for item in values.values() if isinstance(item.get("meta"), dict))
    meta: Mapping[str, Any] = next(metas, {})
    choice: Any = "skip"
    if "pairwise" in values and not annotation.get("was_cancelled"):
        choice = {"left": "a", "right": "b"}[values["pairwise"]["value"]["selected"]]
    elif "choices" in values:
        (choice,) = values["choices"]["value"]["choices"]
    elif not annotation.get("was_cancelled"):
        raise DataError("an annotation has neither a pairwise result nor a choice")
    by = annotation.get("completed_by")
    name = meta.get("annotator") or (by.get("email") or by.get("id") if isinstance(by, dict) else by)
    if name is None:
        raise DataError("an annotation doesn't say who made it (completed_by)")
    rating = values["rating"]["value"]["rating"] if "rating" in values else 1
    strength = rating if choice in SIDES else 0
    time = meta.get("time") or (None if meta else annotation.get("created_at"))
    return Answer(pair, str(name), choice, meta.get("left"), int(strength), annotation.get("lead_time"), time)


def to_argilla(pairs: Sequence[Pair], answers: Sequence[Answer]) -> Rows:
    """Argilla 2's records, as its `Dataset.records.to_json` writes and `from_json` reads them.

    Fields `prompt`, `completion_a`, `completion_b`; a label question `preference` (a, b, tie, skip) and a rating
    question `strength` (1, 2). Argilla knows users by a UUID: a name's is made of it, and the names are kept in the
    metadata. Sides, times and seconds have no place in it.
    """
    grouped: dict[str, list[Answer]] = {pair.id: [] for pair in pairs}
    for answer in answers:
        _pair(grouped, answer.pair).append(answer)
    return [_record(pair, grouped[pair.id]) for pair in pairs]


def _record(pair: Pair, answers: Sequence[Answer]) -> dict[str, Any]:
    def said(values: Iterable[tuple[str, Any]]) -> Rows:
        return [{"value": value, "user_id": _user(name)} for name, value in values]

    texts = _texts(pair)
    del texts["pair"]
    responses = {"preference": said((answer.annotator, answer.choice) for answer in answers)}
    strengths = said((answer.annotator, answer.strength) for answer in answers if answer.choice in SIDES)
    if strengths:
        responses["strength"] = strengths
    names = [answer.annotator for answer in answers]
    return {
        "id": pair.id,
        "fields": texts,
        "metadata": {"annotators": names} if names else {},
        "suggestions": {},
        "responses": responses if answers else {},
        "vectors": {},
    }


def from_argilla(records: Iterable[Mapping[str, Any]], pairs: Sequence[Pair]) -> list[Answer]:
    """Answers of Argilla's records; a user whose name isn't in the metadata is named by the id.

    Raises:
        DataError: a record isn't of one of `pairs`, or its question `preference` was answered with another value.
    """
    known = _by_id(pairs)

    def read(record: Mapping[str, Any]) -> list[Answer]:
        pair = _pair(known, record["id"])
        names = {_user(name): name for name in (record.get("metadata") or {}).get("annotators") or []}
        responses = record.get("responses") or {}
        strengths = {item["user_id"]: int(item["value"]) for item in responses.get("strength") or []}
        return [
            Answer(
                pair.id,
                names.get(item["user_id"], item["user_id"]),
                item["value"],
                strength=strengths.get(item["user_id"], 1) if item["value"] in SIDES else 0,
            )
            for item in responses.get("preference") or []
        ]

    return [answer for answers in _read_all(records, read) for answer in answers]


def _time(row: Mapping[str, Any]) -> str | None:
    """The time as text; readers of JSON lines make datetimes of it, in UTC without saying so."""
    value = row.get("time")
    if isinstance(value, datetime):
        return (value if value.tzinfo else value.replace(tzinfo=UTC)).isoformat()
    return value


def _user(name: str) -> str:
    return str(uuid5(_ARGILLA_USERS, name))


def _texts(pair: Pair) -> dict[str, Any]:
    return {"pair": pair.id, "prompt": pair.prompt, "completion_a": pair.a, "completion_b": pair.b}


def _by_id(pairs: Sequence[Pair]) -> dict[str, Pair]:
    return {pair.id: pair for pair in pairs}


def _pair(known: Mapping[str, Held], name: str) -> Held:
    if name not in known:
        raise DataError(f"pair '{name}' is not among the {len(known)} pairs; give the pairs that were labelled")
    return known[name]


def _read_all(rows: Iterable[Mapping[str, Any]], read: Callable[[Mapping[str, Any]], Read]) -> list[Read]:
    """Read every row, naming the one that can't be read."""
    answers = []
    for place, row in enumerate(rows):
        try:
            answers.append(read(row))
        except (DataError, KeyError, TypeError, ValueError, AttributeError) as error:
            what = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            raise DataError(f"row {place}: {what}") from None
    return answers


FORMATS: dict[str, tuple[Callable[..., Rows], Callable[..., list[Answer]]]] = {
    "trl": (to_trl, from_trl),
    "plain": (to_plain, from_plain),
    "label_studio": (to_label_studio, from_label_studio),
    "argilla": (to_argilla, from_argilla),
}
"""Each format's two functions, by its name."""
