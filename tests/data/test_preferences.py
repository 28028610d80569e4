"""Every way a preference file can be wrong is said with its place, before any work."""

from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset, DatasetDict, concatenate_datasets, load_dataset

from surefoot.data.preferences import check_preferences, data_hash, load_preferences, load_prompts, split_by_prompt
from surefoot.errors import DataError

ROWS = {"prompt": ["p1", "p2"], "chosen": ["good", "fine"], "rejected": ["bad", "worse"]}


@pytest.mark.parametrize("kind", ["parquet", "json", "csv", "disk", "disk_dict"])
def test_every_kind_of_local_dataset(tmp_path: Path, kind: str) -> None:
    table, path = Dataset.from_dict(ROWS), tmp_path / f"pairs.{kind}"
    if kind == "disk":
        table.save_to_disk(path)
    elif kind == "disk_dict":
        DatasetDict({"train": table}).save_to_disk(path)
    else:
        getattr(table, f"to_{kind}")(path)
    assert load_preferences(path).to_dict() == ROWS


def test_a_split_column_chooses_rows(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    Dataset.from_dict(ROWS | {"split": ["train", "test"]}).to_parquet(path)
    assert load_preferences(path, split="test")["chosen"] == ["fine"]
    with pytest.raises(DataError, match=r"has split 'dev'; its column 'split' holds \['test', 'train'\]"):
        load_preferences(path, split="dev")


def test_a_plain_file_is_not_taken_for_its_own_test_split(tmp_path: Path) -> None:
    Dataset.from_dict(ROWS).to_parquet(tmp_path / "a.parquet")
    with pytest.raises(DataError, match="one table without a column 'split', so it has no split 'test'"):
        load_preferences(tmp_path / "a.parquet", split="test")


@pytest.mark.parametrize("kind", ["file", "file with a column", "saved table", "saved splits", "directory of files"])
def test_a_part_of_a_split_is_taken_as_load_dataset_takes_it(tmp_path: Path, kind: str) -> None:
    names = [f"answer {i}" for i in range(20)]
    table = Dataset.from_dict({"prompt": ["p"] * 20, "chosen": names, "rejected": ["worse"] * 20})
    place = tmp_path / "data"
    if kind == "file":
        place = tmp_path / "a.parquet"
        table.to_parquet(place)
    elif kind == "file with a column":
        place = tmp_path / "a.parquet"
        whole = concatenate_datasets([table, table]).add_column("split", ["test"] * 20 + ["train"] * 20)
        whole.to_parquet(place)
    elif kind == "saved table":
        table.save_to_disk(place)
    elif kind == "saved splits":
        DatasetDict(train=table, test=table.select([0])).save_to_disk(place)
    else:
        place.mkdir()
        table.to_parquet(place / "train.parquet")
    table.to_parquet(tmp_path / "expected.parquet")
    for part in ("train[:3]", "train[-2:]", "train[10%:25%]", "train[:]", "train[15:90]"):
        expected = load_dataset("parquet", data_files=str(tmp_path / "expected.parquet"), split=part)
        assert load_preferences(place, split=part)["chosen"] == expected["chosen"]
    with pytest.raises(DataError, match=r"is empty \(split 'train\[5:5\]'\)"):
        load_preferences(place, split="train[5:5]")
    if kind != "saved table":  # which is every split
        with pytest.raises(DataError, match="split 'dev'"):
            load_preferences(place, split="dev[:3]")


def test_a_missing_split_of_a_dataset(tmp_path: Path) -> None:
    DatasetDict({"train": Dataset.from_dict(ROWS)}).save_to_disk(tmp_path / "d")
    with pytest.raises(DataError, match="has no split 'test'; it has train"):
        load_preferences(tmp_path / "d", split="test")


def test_misnamed_column_names_the_nearest() -> None:
    table = Dataset.from_dict({"prompt": ["p"], "chosen": ["a"], "reject": ["b"]})
    with pytest.raises(
        DataError, match=r"no column 'rejected'; it has prompt, chosen, reject; did you mean.*'reject'"
    ):
        check_preferences(table)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("chosen", None, "row 1: chosen is None"),
        ("rejected", "", "row 1: rejected is empty"),
        ("rejected", "  \n", "row 1: rejected is empty"),
        ("prompt", None, "row 1: prompt is None"),
        ("margin", float("nan"), "row 1: margin is nan"),
        ("margin", None, "row 1: margin is None"),
    ],
)
def test_a_bad_row_is_named_or_dropped(column: str, value: Any, message: str) -> None:
    columns: dict[str, list[Any]] = {k: list(v) for k, v in ROWS.items()} | {"margin": [0.5, 1.0]}
    columns[column][1] = value
    table = Dataset.from_dict(columns)
    with pytest.raises(DataError, match=f"1 unusable rows.*{message}.*bad_rows: drop"):
        check_preferences(table)
    with pytest.warns(UserWarning, match=r"1 of 2 rows left out \(rows 1\)"):
        kept = check_preferences(table, bad_rows="drop")
    assert kept["chosen"] == ["good"]


def test_nothing_left_after_dropping() -> None:
    table = Dataset.from_dict({"prompt": ["p"], "chosen": [""], "rejected": ["b"]})
    with pytest.raises(DataError, match="no row of the dataset is usable; the first: chosen is empty"):
        check_preferences(table, bad_rows="drop")


def test_empty_and_absent_files(tmp_path: Path) -> None:
    Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(DataError, match="is empty"):
        load_preferences(tmp_path / "empty.parquet")
    (tmp_path / "zero.jsonl").touch()
    with pytest.raises(DataError, match="is empty"):
        load_preferences(tmp_path / "zero.jsonl")
    with pytest.raises(DataError, match="there is no such path here"):
        load_preferences(tmp_path / "absent.parquet")
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DataError, match="unknown kind"):
        load_preferences(tmp_path / "notes.txt")


def test_conversational_pairs_with_an_implicit_prompt() -> None:
    user = {"role": "user", "content": "hello"}
    table = Dataset.from_dict(
        {
            "chosen": [[user, {"role": "assistant", "content": "hi"}]],
            "rejected": [[user, {"role": "assistant", "content": "go"}]],
        }
    )
    row = check_preferences(table)[0]
    assert row["prompt"] == [user]
    assert row["chosen"] == [{"role": "assistant", "content": "hi"}]


def test_prompts_are_distinct_and_checked(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    Dataset.from_dict({"prompt": ["a", "b", "a"]}).to_json(path)
    assert load_prompts(path)["prompt"] == ["a", "b"]
    Dataset.from_dict({"prompt": ["a", ""]}).to_json(path)
    with pytest.raises(DataError, match=r"p.json has 1 unusable rows \(row 1: prompt is empty\); mend or remove them"):
        load_prompts(path)


def test_no_prompt_is_on_both_sides() -> None:
    prompts = [f"p{i % 40}" for i in range(200)]
    table = Dataset.from_dict({"prompt": prompts, "chosen": ["a"] * 200, "rejected": ["b"] * 200})
    train, held_out = split_by_prompt(table, 0.25, seed=1)
    assert len(train) + len(held_out) == 200
    assert not set(train["prompt"]) & set(held_out["prompt"])
    assert split_by_prompt(table, 0.25, seed=2)[1]["prompt"] != held_out["prompt"]
    with pytest.raises(DataError, match="too few"):
        split_by_prompt(table.select([0]), 0.25, seed=1)


def test_the_hash_is_of_the_content() -> None:
    table = Dataset.from_dict(ROWS)
    assert data_hash(table) == data_hash(Dataset.from_dict(ROWS))
    assert data_hash(table) != data_hash(table.select([1, 0]))
