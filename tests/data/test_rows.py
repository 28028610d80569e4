"""Every layout of a row means one thing: TRL's own reading where it has one, and never Python's repr of anything."""

import json
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset
from trl.data_utils import maybe_extract_prompt

from surefoot.data.messages import CutText, as_messages, cut_short, is_cut, plain_text
from surefoot.data.preferences import check_preferences, load_completions, load_preferences, load_prompts
from surefoot.data.rows import read_completion, read_pair, read_prompt
from surefoot.errors import DataError

CALL = {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome"}}}
SYSTEM = {"role": "system", "content": ""}


def user(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def whole(*reply: dict[str, Any]) -> list[dict[str, Any]]:
    return [SYSTEM, user("Q?"), assistant(""), user("Again: Q?"), *reply]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Q? ", "chosen": "yes", "rejected": "no"},
        {"prompt": [user("Q?")], "chosen": [assistant("yes")], "rejected": [assistant("no")]},
        {"prompt": "Q?", "chosen": whole(assistant("yes")), "rejected": whole(assistant("no"))},
        {"prompt": "", "chosen": whole(assistant("yes")), "rejected": whole(assistant("no"), user("?"))},
        {"chosen": whole(assistant("yes")), "rejected": whole(assistant("yes"), user("Sure?"), assistant("no"))},
        {"chosen": "\n\nHuman: Q?\n\nAssistant: yes", "rejected": "\n\nHuman: Q?\n\nAssistant: no"},
        {"chosen": "Human: Q? Assistant: yes, but", "rejected": "Human: Q? Assistant: yes"},
    ],
)
def test_a_layout_that_trl_reads_is_read_as_trl_reads_it(row: dict[str, Any]) -> None:
    right = maybe_extract_prompt(row)
    assert dict(zip(("prompt", "chosen", "rejected"), read_pair(row), strict=True)) == right
    assert read_prompt(row) == right["prompt"]


@pytest.mark.parametrize(
    ("row", "right"),
    [
        ({"prompt": [user("Q?")], "chosen": "yes", "rejected": "no"}, ([user("Q?")], "yes", "no")),
        ({"prompt": "Q?", "chosen": [assistant("yes")], "rejected": [assistant("no")]}, ([user("Q?")], "yes", "no")),
        (
            {"prompt": [user("Q?")], "chosen": [user("Q?"), assistant("yes")],
             "rejected": [user("Q?"), assistant("no")]}, ([user("Q?")], "yes", "no"),
        ),
        ({"prompt": "Q?", "chosen": assistant("yes"), "rejected": assistant("no")}, ([user("Q?")], "yes", "no")),
        (
            {"chosen": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "yes"}],
             "rejected": [{"from": "human", "value": "Q?"}, {"from": "gpt", "value": "no"}]},
            ([user("Q?")], "yes", "no"),
        ),
        ({"chosen": "yes ", "rejected": "no"}, ("", "yes ", "no")),  # TRL would cut the first side at its end
    ],
)  # fmt: skip
def test_a_layout_that_trl_would_lose_something_of(row: dict[str, Any], right: tuple[Any, str, str]) -> None:
    """Replies in text beside a prompt in messages, a prompt that stands twice, single messages, from and value."""
    prompt, *sides = right
    expected = (prompt, *([assistant(side)] if isinstance(prompt, list) else side for side in sides))
    assert read_pair(row) == expected
    assert read_prompt(row) == prompt


def test_messages_have_one_form() -> None:
    """None at any depth, as Arrow puts it there, is left out; parts are text; a tool call has no content."""
    filled = {"role": "assistant", "content": None, "name": None, "tool_calls": [
        {"type": "function", "function": {"name": "weather", "arguments": {"city": "Rome", "day": None}}},
    ]}  # fmt: skip
    assert as_messages([filled]) == [{"role": "assistant", "tool_calls": [CALL]}]
    parts = [{"type": "text", "text": 'It\'s "4".\n', "image": None}, {"type": "text", "text": "Bye."}]
    assert as_messages([assistant(parts)]) == [assistant('It\'s "4".\nBye.')]
    assert as_messages([{"role": "system", "content": None}]) == [SYSTEM]


def test_the_text_of_messages_is_never_a_repr() -> None:
    given = [assistant(None) | {"tool_calls": [CALL]}, {"role": "tool", "content": [{"type": "text", "text": "3°"}]}]
    assert plain_text(given) == '{"name": "weather", "arguments": {"city": "Rome"}}\n3°'
    as_json = CALL | {"function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    assert plain_text([{"role": "assistant", "tool_calls": [as_json]}]) == plain_text(given[:1])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "p", "chosen": "a", "rejected": [assistant("b")]}, "chosen is str, but rejected is list"),
        ({"prompt": 3, "chosen": "a", "rejected": "b"}, "prompt is int, not text or messages"),
        ({"chosen": [{"content": "a"}], "rejected": "b"}, r"chosen\[0\] has no role"),
        ({"chosen": ["a"], "rejected": ["b"]}, r"chosen\[0\] is str, not a message"),
        ({"chosen": [assistant([{"type": "image", "url": "x"}])], "rejected": [assistant("b")]},
         r"chosen\[0\].content has a part of type 'image'; only text can be read"),
        ({"chosen": [user("Q?"), assistant([{"type": "text", "text": " "}])], "rejected": [user("Q?")]},
         "chosen is empty"),
        ({"chosen": "same", "rejected": "same"}, "chosen and rejected are the same"),
        ({"prompt": "p", "chosen": [user("p"), assistant("")], "rejected": [user("p"), assistant("b")]},
         "chosen is empty"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_read(row: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_pair(row)


def test_rows_that_mix_layouts_are_named_or_dropped(tmp_path: Path) -> None:
    rows = [{"prompt": [user(f"Q{i}?")], "chosen": f"yes {i}", "rejected": f"no {i}"} for i in range(4)]
    rows[1] = {"prompt": "Q1?", "chosen": "yes", "rejected": "no"}
    path = write(tmp_path / "mixed.jsonl", rows)
    with pytest.raises(DataError, match=r"mixed.jsonl has 1 .*row 1: holds text, but most rows hold messages"):
        load_preferences(path)
    with pytest.raises(DataError, match=r"mixed.jsonl has 1 .*row 1: holds text, but most rows hold messages"):
        load_prompts(path)
    with pytest.warns(UserWarning, match=r"1 of 4 rows left out \(rows 1\)"):
        kept = load_preferences(path, bad_rows="drop")
    assert kept["chosen"] == [[assistant(f"yes {i}")] for i in (0, 2, 3)]


def test_tool_calls_of_different_arguments_stay_apart_in_a_table(tmp_path: Path) -> None:
    """Arrow would give each call the other's arguments, with None."""
    other = {"type": "function", "function": {"name": "time", "arguments": {"zone": "CET"}}}
    sides = [[assistant(None) | {"tool_calls": [call]}, {"role": "tool", "content": "3"}] for call in (CALL, other)]
    table = Dataset.from_list([{"prompt": "Q?", "chosen": side, "rejected": [assistant("no")]} for side in sides])
    assert table[0]["chosen"][0]["tool_calls"][0]["function"]["arguments"] == {"city": "Rome", "zone": None}
    chosen = check_preferences(table)["chosen"]
    assert [side[0] for side in chosen] == [{"role": "assistant", "tool_calls": [call]} for call in (CALL, other)]


def test_a_model_s_objection_makes_a_row_bad(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl", [{"prompt": p, "chosen": "a", "rejected": "b"} for p in ("x", "y", "z")])
    with pytest.raises(DataError, match=r"p.jsonl has 1 unusable rows \(row 1: no y, please\); mend them"):
        load_preferences(path, objection=lambda prompt, side: "no y, please" if prompt == "y" else None)


def test_prompts_are_those_of_the_pairs(tmp_path: Path) -> None:
    """A policy is trained on the same prompts that its reward model was trained on."""
    rows = [{"prompt": f"Q{i}?", "chosen": [user(f"Q{i}?"), assistant("yes")],
             "rejected": [user(f"Q{i}?"), assistant("no")]} for i in (0, 1, 0)]  # fmt: skip
    path = write(tmp_path / "p.jsonl", rows)
    assert load_prompts(path)["prompt"] == [[user("Q0?")], [user("Q1?")]] == load_preferences(path)["prompt"][:2]
    beside = load_prompts(path, beside=("completion", "chosen", "rejected"))
    assert beside[1] == {"prompt": [user("Q1?")], "chosen": [assistant("yes")], "rejected": [assistant("no")]}


def test_completions(tmp_path: Path) -> None:
    assert read_completion({"prompt": [user("Q?")], "completion": ""}) == ([user("Q?")], [assistant("")])
    assert read_completion({"prompt": "Q?", "completion": [assistant("a")]}) == ([user("Q?")], [assistant("a")])
    turns = [SYSTEM, user("Q?"), assistant(None) | {"tool_calls": [CALL]}, {"role": "tool", "content": "3"}]
    prompt, completion = read_completion({"prompt": "Q?", "completion": [*turns, assistant("a")]})
    assert (len(prompt), completion[-1]) == (2, assistant("a"))
    with pytest.raises(DataError, match="ends without a reply"):
        read_completion({"prompt": "", "completion": [user("Q?")]})
    path = write(tmp_path / "c.jsonl", [{"prompt": "p", "completion": "a"}, {"prompt": "p", "completion": None}])
    with pytest.raises(DataError, match=r"c.jsonl has 1 unusable rows \(row 1: completion is None\); mend or remove"):
        load_completions(path)


def test_a_cut_completion_is_marked_in_both_formats() -> None:
    marked = cut_short([assistant("half a")])
    assert marked == [assistant("half a")]
    assert is_cut(marked)
    assert is_cut(cut_short("half a"))
    assert not is_cut("half a")
    assert is_cut(read_completion({"prompt": [user("Q?")], "completion": CutText("half a")})[1])
