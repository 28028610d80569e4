"""The forms in which datasets hold criteria, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import DataError, ModelError
from surefoot.rewards.kinds.criteria.criteria_by_prompt import load_criteria, saved_criteria
from surefoot.rewards.kinds.criteria.criterion import Criterion, read_criteria
from surefoot.rewards.trunk.text_encoder import prompt_keys


def written(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_healthbench(tmp_path: Path) -> None:
    prompt = [{"role": "user", "content": "My chest hurts."}]
    rubrics = [
        {"criterion": "Says to call an ambulance.", "points": 10, "tags": ["level:example", "axis:accuracy"]},
        {"criterion": "Names a dose.", "points": -5, "tags": ["level:example"]},
    ]
    name = written(tmp_path / "h.jsonl", {"prompt": prompt, "rubrics": rubrics, "prompt_id": "a"})
    assert load_criteria(name) == {
        prompt_keys([prompt])[0]: (
            Criterion("Says to call an ambulance.", 10.0),
            Criterion("Names a dose.", -5.0),
        )
    }


def test_rubrics_as_rewards(tmp_path: Path) -> None:
    rubric = [{"title": "Depth", "description": "Essential: names the valve.", "weight": 5}]
    name = written(tmp_path / "r.jsonl", {"question": "Which valve?", "reference_answer": "x", "rubric": rubric})
    assert load_criteria(name) == {"Which valve?": (Criterion("Essential: names the valve.", 5.0),)}


def test_plain_texts_json_text_and_our_own() -> None:
    assert read_criteria(["Is short.", "Is kind."]) == (Criterion("Is short."), Criterion("Is kind."))
    own = [
        {"text": "Is right.", "weight": 2, "required": True, "scale": None},
        {"text": "Is\n clear.", "scale": [1, 5]},
        {"kind": "exact_match", "answer": "7", "extract": "boxed", "text": "7"},
        {"kind": "function", "function": "polite"},
        {"kind": "unit_tests", "tests": "assert f()", "title": "Works"},
    ]
    expected = (
        Criterion("Is right.", 2.0, required=True),
        Criterion("Is clear.", scale=(1, 5)),
        Criterion("7", kind="exact_match", answers=("7",), extract="boxed"),
        Criterion("function", kind="function", function="polite"),
        Criterion("Works", kind="unit_tests", tests="assert f()"),
    )
    assert read_criteria(json.dumps(own)) == read_criteria(own) == expected
    assert read_criteria([one.to_dict() for one in expected]) == expected


def test_a_weight_of_0_and_equal_ones() -> None:
    found = read_criteria([{"text": "a", "weight": 0}, {"text": "b"}, {"text": "b", "weight": 2}])
    assert found == (Criterion("b", 3.0),)
    gate = read_criteria([{"text": "a", "weight": 0, "required": True}, {"text": "b"}])
    assert gate[0] == Criterion("a", 0.0, required=True)


@pytest.mark.parametrize(
    ("held", "message"),
    [
        ("not JSON", "is text that is no JSON list: 'not JSON'"),
        ({"a": 1, "b": 2}, "must be a list of criteria, got an object with the keys a, b"),
        ([], "must be a list of criteria"),
        (None, "must be a list of criteria, got None"),
        (
            [{"name": "x", "value": 1}],
            "criterion 0 needs one of the keys criterion, text, description; it has name",
        ),
        (["a", 7], "criterion 1 is 7, neither text nor an object"),
        (["  "], "criterion 0 has text '  '; give a text that isn't empty"),
        ([{"text": "a", "wieght": 2}], "criterion 0 has a key 'wieght'; did you mean 'weight'?"),
        ([{"text": "a", "weight": "2"}], "has the weight '2'; give a number"),
        ([{"text": "a", "points": float("nan")}], "has the weight nan"),
        ([{"text": "a", "points": 1, "weight": 1}], "has both weight and points"),
        ([{"text": "a", "weight": -1}], "has no criterion with a positive weight"),
        ([{"text": "a", "weight": -1, "required": True}], "is required but has the weight -1"),
        ([{"text": "a", "scale": [1, 5], "required": True}], "is required but has a scale"),
        ([{"text": "a", "scale": [5, 1]}], r"has the scale \[5, 1\]"),
        ([{"text": "a", "scale": "1-5"}], "has the scale '1-5'; give two whole numbers"),
        ([{"text": "a", "required": "yes"}], "has required 'yes'; give true or false"),
        ([{"text": "a", "kind": "magic"}], "has kind 'magic'; kinds are judged, exact_match, function, unit_tests"),
        ([{"text": "a", "kind": "exact_match"}], "is of kind: exact_match without answers"),
        ([{"text": "a", "function": "f"}], "is of kind: judged, which takes no function, but with function"),
        ([{"text": "a", "extract": "boxed"}], "which takes no extract"),
    ],
)
def test_what_is_refused(held: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_criteria(held)


def test_errors_name_file_and_row(tmp_path: Path) -> None:
    good = {"prompt": "p", "criteria": ["a"]}
    name = written(tmp_path / "c.jsonl", good, {"prompt": "q", "criteria": [""]})
    with pytest.raises(DataError, match=r"c.jsonl: row 1: criteria criterion 0 has text ''"):
        load_criteria(name)
    name = written(tmp_path / "d.jsonl", good, {"prompt": "q", "criteria": ["a"]}, {"prompt": "p", "criteria": ["b"]})
    with pytest.raises(DataError, match=r"d.jsonl: row 2 has the same prompt as row 0, but other criteria; keep one"):
        load_criteria(name)
    name = written(tmp_path / "e.jsonl", {"prompt": "p", "score": 1})
    with pytest.raises(DataError, match=r"one of criteria \(criteria, rubrics, rubric\); it has prompt, score"):
        load_criteria(name)
    assert load_criteria(written(tmp_path / "f.jsonl", good, good)) == {"p": (Criterion("a"),)}


def test_a_saved_list_is_checked_too() -> None:
    with pytest.raises(ModelError, match=r"criteria.json must hold an object of criteria by prompt, got a list"):
        saved_criteria([], "criteria.json")
    with pytest.raises(ModelError, match=r"criteria.json: criterion 0 has kind"):
        saved_criteria({"p": [{"text": "a", "kind": "shell"}]}, "criteria.json")
