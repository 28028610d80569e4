"""One criterion, and the forms in which datasets hold a prompt's list of them."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal, get_args

from surefoot.errors import DataError, nearest

__all__ = ["Criterion", "Kind", "read_criteria"]

Kind = Literal["judged", "exact_match", "function", "unit_tests"]

_TEXT = ("criterion", "text", "description")
_WEIGHT = ("weight", "points")
_ANSWERS = ("answer", "answers")
_KEYS = (*_TEXT, "title", *_WEIGHT, "required", "kind", "scale", *_ANSWERS, "extract", "function", "tests")
_WIDEST = 100
"""Most steps of a scale."""
_NEEDS = {"exact_match": "answers", "function": "function", "unit_tests": "tests"}
"""What a verifier has beside its text."""


@dataclass(frozen=True)
class Criterion:
    """What a completion is checked for.

    Args:
        text: what a judge reads; of a verifier, a name for people.
        weight: w, negative where meeting it is bad.
        required: whether the reward is the least possible one if it isn't met.
        kind: who decides: a judge, or one of the verifiers.
        scale: lowest and highest whole number of a judge's rating, read as 0 to 1; None is met (1) or not met (0).
        answers: exact_match: the right answers, in any order.
        extract: exact_match: name of the pattern that finds the answer in the completion; None compares all of it.
        function: function: its name in the settings.
        tests: unit_tests: Python that raises where the completion's code is wrong.

    Raises:
        DataError: values that contradict each other.
    """

    text: str
    weight: float = 1.0
    required: bool = False
    kind: Kind = "judged"
    scale: tuple[int, int] | None = None
    answers: tuple[str, ...] = ()
    extract: str | None = None
    function: str | None = None
    tests: str | None = None

    def __post_init__(self) -> None:
        if not math.isfinite(self.weight):
            raise DataError(f"has the weight {self.weight}; give a finite number")
        if self.required and self.weight < 0:
            raise DataError(
                f"is required but has the weight {self.weight:g}; say it the other way round, or not required"
            )
        if self.required and self.scale is not None:
            raise DataError("is required but has a scale; what is required is met or not met")
        if self.scale is not None and (self.kind != "judged" or not 0 < self.scale[1] - self.scale[0] <= _WIDEST):
            raise DataError(f"has the scale {list(self.scale)}; a judged one may have two rising whole numbers")
        for kind, name in _NEEDS.items():
            if (self.kind == kind) != bool(getattr(self, name)):
                which = f"kind: {kind}" if self.kind == kind else f"kind: {self.kind}, which takes no {name},"
                raise DataError(f"is of {which} {'without' if self.kind == kind else 'but with'} {name}")
        if self.extract is not None and self.kind != "exact_match":
            raise DataError(f"is of kind: {self.kind}, which takes no extract")

    @property
    def judged(self) -> bool:
        return self.kind == "judged"

    @property
    def ends(self) -> tuple[int, int]:
        """Lowest and highest rating."""
        return self.scale or (0, 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values that `read_criteria` reads; defaults are left out."""
        usual = asdict(Criterion(""))
        return {name: value for name, value in asdict(self).items() if name == "text" or value != usual[name]}


def read_criteria(held: Any) -> tuple[Criterion, ...]:
    """Read a prompt's criteria in any of the forms.

    | each is | as in |
    |---|---|
    | a text | a plain list; weight 1 |
    | criterion, points, tags | HealthBench |
    | title, description, weight | Rubrics as Rewards |
    | criterion or text, weight, required, kind, scale, … | surefoot |

    The list may be JSON text. Values of None count as absent, since Arrow puts them where another criterion has a
    value. Keys that are no misspelling of a known one are ignored. A criterion with the weight 0 that isn't required
    is left out; the weights of equal ones are added.

    Raises:
        DataError: what is wrong with the list, or with which of its criteria.
    """
    if isinstance(held, str):
        try:
            held = json.loads(held)
        except (ValueError, RecursionError):
            raise DataError(f"is text that is no JSON list: {held[:60]!r}") from None
    if not isinstance(held, Sequence) or isinstance(held, str) or not held:
        what = f"an object with the keys {', '.join(map(str, held))}" if isinstance(held, Mapping) else f"{held!r:.60}"
        raise DataError(f"must be a list of criteria, got {what}")
    merged: dict[Criterion, float] = {}
    for place, item in enumerate(held):
        try:
            criterion = _read(item)
        except DataError as error:
            raise DataError(f"criterion {place} {error}") from None
        same = replace(criterion, weight=0.0)
        merged[same] = merged.get(same, 0.0) + criterion.weight
    criteria = tuple(replace(same, weight=weight) for same, weight in merged.items() if weight or same.required)
    if not any(criterion.weight > 0 for criterion in criteria):
        raise DataError("has no criterion with a positive weight, and rewards are in units of their sum; give one")
    return criteria


def _read(item: Any) -> Criterion:
    if isinstance(item, str):
        item = {"text": item}
    if not isinstance(item, Mapping):
        raise DataError(f"is {item!r:.60}, neither text nor an object")
    given = {str(key): value for key, value in item.items() if value is not None}
    for key in given:
        meant = None if key in _KEYS else nearest(key, set(_KEYS) - set(given), likeness=0.8)
        if meant is not None:
            raise DataError(f"has a key '{key}'; did you mean '{meant}'?")
    kind = given.get("kind", "judged")
    if kind not in get_args(Kind):
        raise DataError(f"has kind {kind!r:.40}; kinds are {', '.join(get_args(Kind))}")
    names = [name for name in _TEXT if name in given]
    text = given[names[0]] if names else given.get("title") if kind != "judged" else None
    if text is None and kind == "judged":
        keys = ", ".join(given) or "none"
        raise DataError(f"needs one of the keys {', '.join(_TEXT)}; it has {keys}")
    if text is not None and (not isinstance(text, str) or not text.strip()):
        raise DataError(f"has {names[0] if names else 'title'} {text!r:.60}; give a text that isn't empty")
    return Criterion(
        " ".join(str(text or kind).split()),
        _weight(given),
        _required(given),
        kind,
        _scale(given.get("scale")),
        _answers(given),
        *(_text(given, name) for name in ("extract", "function", "tests")),
    )


def _weight(given: Mapping[str, Any]) -> float:
    names = [name for name in _WEIGHT if name in given]
    if len(names) > 1:
        raise DataError("has both weight and points; keep one")
    value = given[names[0]] if names else 1.0
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise DataError(f"has the {names[0]} {value!r:.40}; give a number")
    return float(value)


def _required(given: Mapping[str, Any]) -> bool:
    value = given.get("required", False)
    if not isinstance(value, bool):
        raise DataError(f"has required {value!r:.40}; give true or false")
    return value


def _scale(value: Any) -> tuple[int, int] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or len(value) != 2 or not all(type(end) is int for end in value):
        raise DataError(f"has the scale {value!r:.40}; give two whole numbers, such as [1, 5]")
    return value[0], value[1]


def _answers(given: Mapping[str, Any]) -> tuple[str, ...]:
    names = [name for name in _ANSWERS if name in given]
    if not names:
        return ()
    value = given[names[0]]
    values = [value] if isinstance(value, str | int | float) else value
    if not isinstance(values, Sequence) or not all(isinstance(one, str | int | float) for one in values):
        raise DataError(f"has {names[0]} {value!r:.40}; give a text or a list of texts")
    return tuple(str(one) for one in values)


def _text(given: Mapping[str, Any], name: str) -> str | None:
    value = given.get(name)
    if value is not None and not isinstance(value, str):
        raise DataError(f"has {name} {value!r:.40}; give a text")
    return value
