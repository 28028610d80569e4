"""JSON into dataclasses: what fits is read, and the first field that doesn't is named."""

from dataclasses import dataclass
from typing import Any

import pytest

from surefoot.typed_json import Misfit, decode


@dataclass(frozen=True)
class Inner:
    name: str
    value: float | None


@dataclass(frozen=True)
class Outer:
    count: int
    rows: tuple[Inner, ...]
    extra: dict[str, Any]
    later: tuple[float | None, ...] | None = None


WHOLE: dict[str, Any] = {"count": 2, "rows": [{"name": "a", "value": 1}, {"name": 400, "value": None}], "extra": {}}


def test_what_fits_is_read() -> None:
    rows = (Inner("a", 1), Inner("400", None))  # YAML reads a name such as 400 as a number
    assert decode(Outer, WHOLE) == Outer(2, rows, {})
    assert decode(Outer, WHOLE | {"later": [0.5, None], "unknown": 1}) == Outer(2, rows, {}, (0.5, None))
    assert decode(Outer, WHOLE | {"rows": list(rows)}).rows == rows  # instances are taken as they are


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"count": True}, "'count' is no whole number"),
        ({"count": 1.5}, "'count' is no whole number"),
        ({"rows": None}, "'rows' is no list"),
        ({"rows": [{"name": "a", "value": 1}, {"name": "b"}]}, r"'rows\[1\].value' is missing"),
        ({"rows": [{"name": "a", "value": "high"}]}, r"'rows\[0\].value' is no number"),
        ({"rows": [7]}, r"'rows\[0\].name' is no object"),
        ({"extra": []}, "'extra' is no object"),
        ({"later": [True]}, r"'later\[0\]' is no number"),
    ],
)
def test_the_first_misfit_is_named(changes: dict[str, Any], said: str) -> None:
    with pytest.raises(Misfit, match=said):
        decode(Outer, WHOLE | changes)


def test_a_missing_field_is_named() -> None:
    with pytest.raises(Misfit, match="'count' is missing"):
        decode(Outer, {})
