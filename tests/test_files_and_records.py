"""Whole or not at all; one directory, one run."""

import json
import math
import os
from pathlib import Path

import pytest

from surefoot.errors import RunError
from surefoot.files import fingerprint, read_json, whole_directory, whole_file, write_json, write_text
from surefoot.records import claim_directory, make_record, write_record


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = write_text(tmp_path / "a.txt", "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_text(target, "new")
    assert target.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_a_killed_writer_s_leftovers_go_with_the_next_write_and_a_living_one_s_stay(tmp_path: Path) -> None:
    (tmp_path / ".a.txt.dead.tmp").write_text("half")
    (tmp_path / ".a.txt.old.tmp").mkdir()
    (tmp_path / ".a.txt").write_text("the user's")
    (tmp_path / ".b.txt.dead.tmp").write_text("of another target")
    with whole_file(tmp_path / "a.txt") as mine:
        with whole_file(tmp_path / "a.txt") as other:
            other.write_text("other")
        assert mine.exists()
        mine.write_text("mine")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".a.txt", ".b.txt.dead.tmp", "a.txt"]
    assert (tmp_path / "a.txt").read_text() == "mine"


def test_json_refuses_what_other_parsers_cannot_read(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": math.nan})
    assert not (tmp_path / "a.json").exists()


def test_reading_broken_json_names_the_file_and_line(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"x": 1,\n oops')
    with pytest.raises(RunError, match=r"a\.json is not valid JSON \(line 2"):
        read_json(tmp_path / "a.json")
    with pytest.raises(RunError, match="does not exist"):
        read_json(tmp_path / "b.json")


def test_a_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "model"
    with pytest.raises(KeyboardInterrupt), whole_directory(target) as folder:  # noqa: PT012
        (folder / "half").write_text("x")
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []
    with whole_directory(target) as folder:
        (folder / "all").write_text("x")
        assert not target.exists()
    assert [path.name for path in target.iterdir()] == ["all"]
    with whole_directory(target) as folder:
        (folder / "new").write_text("x")
    assert [path.name for path in target.iterdir()] == ["new"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_fingerprint_sees_values_and_not_their_order() -> None:
    assert fingerprint({"a": 1, "b": [2]}) == fingerprint({"b": [2], "a": 1})
    assert fingerprint({"a": 1}) != fingerprint({"a": 2})


def test_the_same_run_may_come_back_and_another_may_not(tmp_path: Path) -> None:
    with claim_directory(tmp_path / "run", "rloo", {"beta": 0.1, "seed": 1}) as folder:
        (folder / "checkpoint").write_text("x")
    with claim_directory(folder, "rloo", {"seed": 1, "beta": 0.1}) as again:
        assert again == folder
    with (
        pytest.raises(RunError, match=r"holds another run \(beta: 0\.1 there, 0\.2 here\)"),
        claim_directory(folder, "rloo", {"beta": 0.2, "seed": 1}),
    ):
        pass
    with (
        pytest.raises(RunError, match="a rloo run, this is a reward run"),
        claim_directory(folder, "reward", {"beta": 0.1, "seed": 1}),
    ):
        pass
    assert (folder / "checkpoint").read_text() == "x"
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint", "run.json"]


def test_a_directory_of_other_files_is_not_taken(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with (
        pytest.raises(RunError, match="not empty and holds no surefoot run"),
        claim_directory(tmp_path, "rloo", {}),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_record_says_what_it_takes_to_repeat_it(tmp_path: Path) -> None:
    path = write_record(tmp_path, make_record("rloo", {"beta": 0.1}, seed=3, data_hash="ab", metrics={"kl": 1.5}))
    record = json.loads(path.read_text())
    assert record["config"] == {"beta": 0.1}
    assert (record["seed"], record["data_hash"], record["metrics"]["kl"]) == (3, "ab", 1.5)
    assert {"surefoot", "python", "torch", "trl", "transformers"} <= set(record["versions"])
    assert "commit" in record


def test_what_safetensors_left_of_a_killed_run_is_removed(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with claim_directory(run, "reward", {"a": 1}):
        pass
    (run / "checkpoint-1").mkdir()
    left = [run / ".tmp6Nc47h", run / "checkpoint-1" / ".tmpAb12Cd"]
    kept = [run / ".tmp6Nc47h9", run / "model.safetensors"]
    for path in (*left, *kept):
        path.write_text("")
    with claim_directory(run, "reward", {"a": 1}):
        assert not any(path.exists() for path in left)
        assert all(path.exists() for path in kept)


def test_a_run_that_was_begun_under_older_names_goes_on(tmp_path: Path) -> None:
    with claim_directory(tmp_path / "run", "forecast", {"source": "s", "n": 8}) as folder:
        (folder / "part").touch()
    with claim_directory(tmp_path / "run", "forecast", {"reward_source": "s", "n": 8}):
        pass
    with (
        pytest.raises(RunError, match="reward_source"),
        claim_directory(tmp_path / "run", "forecast", {"reward_source": "t", "n": 8}),
    ):
        pass
