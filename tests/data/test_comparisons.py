"""TRL's pairs, RewardBench's and RewardBench 2's items become the same rows; what is wrong is said with its row."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset

from surefoot.data.comparisons import Comparisons, load_comparisons
from surefoot.errors import DataError

PAIRS: dict[str, list[Any]] = {"prompt": ["p0", "p1"], "chosen": ["good", "fine"], "rejected": ["bad", "worse"]}
BENCH = PAIRS | {
    "subset": ["hep-go", "math-prm"], "chosen_model": ["a", "b"], "rejected_model": ["c", "d"], "id": [30, 7],
}  # fmt: skip
BEST: dict[str, list[Any]] = {
    "id": ["0", "ref:3", "tied:3"],
    "prompt": ["p0", "p1", "p2"],
    "chosen": [["r"], ["blue"], ["red", "green"]],
    "rejected": [["w1", "w2", "w3"], ["wet"], ["loud", "fast"]],
    "num_correct": [1, 1, 2],
    "num_incorrect": [3, 1, 2],
    "total_completions": [4, 2, 4],
    "subset": ["Math", "Ties", "Ties"],
}


def user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def assistant(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def load(folder: Path, columns: dict[str, list[Any]], **keywords: Any) -> Comparisons:
    path = folder / "data.parquet"
    Dataset.from_dict(columns).to_parquet(path)
    return load_comparisons(path, **keywords)


def changed(columns: dict[str, list[Any]], column: str, row: int, value: Any) -> dict[str, list[Any]]:
    return columns | {column: [value if i == row else old for i, old in enumerate(columns[column])]}


def test_plain_pairs(tmp_path: Path) -> None:
    found = load(tmp_path, PAIRS)
    assert (found.format, len(found), found.name) == ("pairs", 2, str(tmp_path / "data.parquet"))
    assert found.prompts == ["p0", "p0", "p1", "p1"]
    assert found.completions == ["good", "bad", "fine", "worse"]
    assert found.items.tolist() == [0, 0, 1, 1]
    assert found.correct.tolist() == [True, False, True, False]
    assert (found.subsets, found.ids) == (["", ""], ["0", "1"])
    assert found.items.dtype == np.int64
    assert found.correct.dtype == np.bool_


def test_pairs_keep_their_subset_and_id(tmp_path: Path) -> None:
    found = load(tmp_path, PAIRS | {"subset": ["math", None], "id": ["x", None]})
    assert (found.format, found.subsets, found.ids) == ("pairs", ["math", ""], ["x", "1"])


def test_pairs_with_an_implicit_prompt(tmp_path: Path) -> None:
    found = load(tmp_path, {"chosen": ["good"], "rejected": ["bad"]})
    assert (found.prompts, found.completions) == (["", ""], ["good", "bad"])


@pytest.mark.parametrize("prompt", [None, "hello", user("hello")], ids=["implicit", "text", "messages"])
def test_conversational_pairs(tmp_path: Path, prompt: Any) -> None:
    """A prompt in text beside whole conversations is the prompt that they begin with."""
    whole = [] if isinstance(prompt, list) else user("hello")
    columns = {"chosen": [whole + assistant("hi")], "rejected": [whole + assistant("go")]}
    found = load(tmp_path, columns if prompt is None else columns | {"prompt": [prompt]})
    assert found.format == "pairs"
    assert found.prompts == [user("hello")] * 2
    assert found.completions == [assistant("hi"), assistant("go")]


def test_a_prompt_in_text_is_not_lost_beside_replies_in_messages(tmp_path: Path) -> None:
    found = load(tmp_path, {"prompt": ["hello"], "chosen": [assistant("hi")], "rejected": [assistant("go")]})
    assert (found.prompts[0], found.completions[0]) == (user("hello"), assistant("hi"))


def test_replies_in_text_join_a_prompt_in_messages(tmp_path: Path) -> None:
    found = load(tmp_path, {"prompt": [user("hello")], "chosen": ["hi"], "rejected": ["go"]})
    assert found.completions == [assistant("hi"), assistant("go")]


def test_rewardbench_pairs_are_read_as_a_chat(tmp_path: Path) -> None:
    found = load(tmp_path, BENCH)
    assert (found.format, found.subsets, found.ids) == ("rewardbench", ["hep-go", "math-prm"], ["30", "7"])
    assert found.prompts[2:] == [user("p1")] * 2
    assert found.completions == [assistant(text) for text in ("good", "bad", "fine", "worse")]
    plain = load(tmp_path, BENCH, conversational=False)
    assert plain.completions == ["good", "bad", "fine", "worse"]


def test_best_of_four_and_ties(tmp_path: Path) -> None:
    found = load(tmp_path, BEST, conversational=False)
    assert (found.format, found.ids, found.subsets) == ("rewardbench2", BEST["id"], BEST["subset"])
    assert found.completions == ["r", "w1", "w2", "w3", "blue", "wet", "red", "green", "loud", "fast"]
    assert found.items.tolist() == [0, 0, 0, 0, 1, 1, 2, 2, 2, 2]
    assert np.flatnonzero(found.correct).tolist() == [0, 4, 6, 7]
    chosen, rejected, items = found.pairs()
    assert chosen.tolist() == [0, 0, 0, 4, 6, 6, 7, 7]
    assert rejected.tolist() == [1, 2, 3, 5, 8, 9, 8, 9]
    assert items.tolist() == [0, 0, 0, 1, 2, 2, 2, 2]
    chat = load(tmp_path, BEST)
    assert (chat.prompts[0], chat.completions[9]) == (user("p0"), assistant("fast"))


def test_counts_are_not_needed_but_subset_and_id_are(tmp_path: Path) -> None:
    bare = {column: BEST[column] for column in ("id", "prompt", "chosen", "rejected", "subset")}
    assert len(load(tmp_path, bare)) == 3
    with pytest.raises(DataError, match=r"no column 'subset'; it has id, .*did you mean to rename 'subsets'\?"):
        load(tmp_path, {"subsets" if column == "subset" else column: values for column, values in bare.items()})


def test_messages_are_not_taken_for_lists_of_completions(tmp_path: Path) -> None:
    """Both are lists; a first row that is empty doesn't decide."""
    columns = {"prompt": ["p", "q"], "subset": ["s", "s"], "id": ["1", "2"]}
    lists = columns | {"chosen": [[None], ["a"]], "rejected": [[], ["b"]]}
    with pytest.warns(UserWarning, match="1 of 2 rows left out"):
        assert load(tmp_path, lists, bad_rows="drop").format == "rewardbench2"
    chats = columns | {"chosen": [[], assistant("a")], "rejected": [assistant("b"), assistant("b")]}
    with pytest.warns(UserWarning, match="1 of 2 rows left out"):
        assert load(tmp_path, chats, bad_rows="drop").format == "pairs"
    with pytest.raises(DataError, match=r"row 0: chosen\[0\] is None"):
        load(tmp_path, {"prompt": ["p"], "subset": ["s"], "id": ["1"], "chosen": [[None, "a"]], "rejected": [[None]]})
    with pytest.raises(DataError, match="row 0: chosen is a list of int; give a text, a list of messages"):
        load(tmp_path, {"prompt": ["p"], "chosen": [[1]], "rejected": [[2]]})


def test_a_misnamed_column_of_pairs_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no column 'rejected'.*did you mean to rename 'reject'\?"):
        load(tmp_path, {"prompt": ["p"], "chosen": ["a"], "reject": ["b"]})


@pytest.mark.parametrize(
    ("columns", "column", "row", "value", "message"),
    [
        (PAIRS, "rejected", 1, " ", "row 1: rejected is empty"),
        (PAIRS, "prompt", 1, None, "row 1: prompt is None"),
        (BENCH, "chosen", 0, None, "row 0: chosen is None"),
        (BENCH, "subset", 1, None, "row 1: subset is None"),
        (BENCH, "subset", 1, "", "row 1: subset is empty"),
        (BEST, "prompt", 2, None, "row 2: prompt is None"),
        (BEST, "subset", 0, None, "row 0: subset is None"),
        (BEST, "id", 0, None, "row 0: id is None"),
        (BEST, "chosen", 1, None, "row 1: chosen is None"),
        (BEST, "rejected", 0, [], "row 0: rejected is empty"),
        (BEST, "rejected", 0, ["w1", " \n", "w3"], r"row 0: rejected\[1\] is empty"),
        (BEST, "rejected", 0, ["w1", "w2", None], r"row 0: rejected\[2\] is None"),
        (BEST, "num_correct", 2, 1, "row 2: num_correct is 1, but the row holds 2"),
        (BEST, "num_incorrect", 0, 4, "row 0: num_incorrect is 4, but the row holds 3"),
        (BEST, "total_completions", 1, None, "row 1: total_completions is None, but the row holds 2"),
        (BEST, "id", 1, "17", "row 1: id is '17', but items of subset Ties are named ref:N or tied:N"),
        (BEST, "id", 2, "ref:3", "row 2: id ref:3 is that of row 1 too"),
        (BEST, "id", 1, "tied:4", "row 1: a tied item needs two or more right completions, but chosen holds 1"),
    ],
)
def test_a_bad_row_is_named_or_dropped(
    tmp_path: Path, columns: dict[str, list[Any]], column: str, row: int, value: Any, message: str
) -> None:
    total = len(columns["prompt"])
    Dataset.from_dict(changed(columns, column, row, value)).save_to_disk(tmp_path / "broken")
    with pytest.raises(DataError, match=f"1 unusable rows.*{message}.*bad_rows: drop"):
        load_comparisons(tmp_path / "broken")
    with pytest.warns(UserWarning, match=rf"1 of {total} rows left out \(rows {row}\)"):
        found = load_comparisons(tmp_path / "broken", bad_rows="drop", conversational=False)
    rest = [i for i in range(total) if i != row]
    assert found.ids == [str(columns["id"][i]) if "id" in columns else str(i) for i in rest]
    sides = [columns[side][i] for i in rest for side in ("chosen", "rejected")]
    assert found.completions == [text for side in sides for text in ([side] if isinstance(side, str) else side)]
    assert set(found.items) == set(range(total - 1))


def test_rows_keep_their_numbers_after_others_are_dropped(tmp_path: Path) -> None:
    broken = changed(changed(BENCH, "rejected", 0, ""), "subset", 1, None)
    columns = {name: [*values, values[0]] for name, values in broken.items()} | {"rejected": ["", "worse", "bad"]}
    with pytest.warns(UserWarning, match="rows left out") as caught:
        found = load(tmp_path, columns, bad_rows="drop")
    assert [str(one.message).split(": ")[-1] for one in caught] == [
        "1 of 3 rows left out (rows 0)", "1 of 2 rows left out (rows 1)",
    ]  # fmt: skip
    assert found.ids == ["30"]


def test_sides_of_different_formats(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="row 0: chosen is str, but rejected is list"):
        load(tmp_path, {"prompt": ["p"], "chosen": ["a"], "rejected": [assistant("b")]})
    with pytest.raises(DataError, match="row 0: rejected is str, not a list of completions"):
        load(tmp_path, changed(BEST, "rejected", 0, None) | {"rejected": ["a", "b", "c"]})


@pytest.mark.parametrize("columns", [BENCH, BEST], ids=["rewardbench", "rewardbench2"])
def test_nothing_left_after_dropping(tmp_path: Path, columns: dict[str, list[Any]]) -> None:
    with (
        warnings.catch_warnings(action="ignore"),
        pytest.raises(DataError, match=r"no row of .* is usable; the first: subset is None"),
    ):
        load(tmp_path, columns | {"subset": [None] * len(columns["prompt"])}, bad_rows="drop")


def test_a_split_is_chosen(tmp_path: Path) -> None:
    found = load(tmp_path, BENCH | {"split": ["raw", "filtered"]}, split="filtered")
    assert found.ids == ["7"]


def test_comparisons_that_do_not_fit_are_refused() -> None:
    def make(items: list[int], correct: list[bool], ids: list[str], kind: Any = "pairs") -> Comparisons:
        texts: list[Any] = ["t"] * len(items)
        return Comparisons(
            "made", kind, texts, texts, np.array(items, dtype=np.int64), np.array(correct), [""] * len(ids), ids
        )

    assert len(make([0, 0, 0, 1, 1], [True, True, False, True, False], ["a", "b"])) == 2
    with pytest.raises(DataError, match=r"items must be 0 … 1, ascending"):
        make([0, 1, 0, 1], [True, True, False, False], ["a", "b"])
    with pytest.raises(DataError, match=r"items must be 0 … 2, ascending, each with a row"):
        make([0, 0, 2, 2], [True, False, True, False], ["a", "b", "c"])
    with pytest.raises(DataError, match="item b needs a right and a wrong completion"):
        make([0, 0, 1, 1], [True, False, True, True], ["a", "b"])
    with pytest.raises(DataError, match="item a needs a right and a wrong completion"):
        make([0, 0, 1, 1], [False, False, True, False], ["a", "b"])
    with pytest.raises(DataError, match="right completions of an item come before its wrong ones"):
        make([0, 0, 1, 1], [True, False, False, True], ["a", "b"])
    with pytest.raises(DataError, match="an item of RewardBench is one pair; 1 have 3 rows"):
        make([0, 0, 0], [True, False, False], ["a"], "rewardbench")
    with pytest.raises(DataError, match="2 prompts, but 2 completions, 2 items and 1 labels"):
        make([0, 0], [True], ["a"])
    with pytest.raises(DataError, match="items must be"):
        make([], [], [])
