"""The file of answers: what stands, undo, resume, torn lines, foreign files, and one process at a time."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from surefoot.errors import DataError, RunError
from surefoot.feedback.answers import Answer, open_answers, read_answers
from surefoot.feedback.pairs import Pair, pair_id

PAIRS = [Pair(pair_id(f"p{i}", "x", "y"), f"p{i}", "x", "y") for i in range(4)]


def answer(pair: int, annotator: str = "ann", choice: str = "a") -> Answer:
    return Answer(PAIRS[pair].id, annotator, choice, "a", int(choice in "ab"), 1.5)  # type: ignore[arg-type]


def test_answers_stand_until_they_are_taken_back_and_are_there_again_after_reopening(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with open_answers(file, PAIRS) as held:
        assert held.add(answer(0))
        assert not held.add(answer(0, choice="b"))  # the first stands
        assert held.add(answer(0, "bob", "tie"))
        assert held.add(answer(1, choice="skip"))
        assert held.undo("ann") == answer(1, choice="skip")
        assert held.undo("nobody") is None
    assert read_answers(file) == [answer(0), answer(0, "bob", "tie")]
    with open_answers(file, PAIRS) as held:
        assert held.undo("ann") == answer(0)
        assert held.add(answer(0, choice="b"))
    assert read_answers(file) == [answer(0, "bob", "tie"), answer(0, choice="b")]
    kinds = [json.loads(line)["kind"] for line in file.read_text().splitlines()]
    assert kinds == ["labels", "answer", "answer", "answer", "undo", "undo", "answer"]  # nothing is ever rewritten


def test_each_answer_is_in_the_file_before_add_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, synced = tmp_path / "answers.jsonl", []
    monkeypatch.setattr(
        "surefoot.feedback.answers.os.fsync", lambda handle: synced.append(file.read_bytes().count(b"\n"))
    )
    with open_answers(file, PAIRS) as held:
        synced.clear()
        held.add(answer(0))
        assert synced == [2]
        held.undo("ann")
        assert synced == [2, 3]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_line_cut_short_by_a_kill_is_dropped(tmp_path: Path, cut: int) -> None:
    file = tmp_path / "answers.jsonl"
    with open_answers(file, PAIRS) as held:
        held.add(answer(0))
        held.add(answer(1))
    file.write_bytes(file.read_bytes()[:-cut])
    with open_answers(file, PAIRS) as held:
        assert list(held.of("ann")) == [PAIRS[0].id]
        held.add(answer(2))
    assert read_answers(file) == [answer(0), answer(2)]


def test_a_kill_within_the_first_line_leaves_a_file_that_begins_again(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    file.write_bytes(b'{"kind": "lab')
    with open_answers(file, PAIRS) as held:
        held.add(answer(0))
    assert read_answers(file) == [answer(0)]


def test_other_pairs_another_seed_and_other_files_are_refused_and_kept(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with open_answers(file, PAIRS) as held:
        held.add(answer(0))
    before = file.read_bytes()
    for pairs, seed in ((PAIRS[:2], 0), (PAIRS, 1)):
        with pytest.raises(RunError, match="other pairs, or with another seed"), open_answers(file, pairs, seed):
            pass
    assert file.read_bytes() == before
    for content in (b'{"prompt": "p"}\n', b"notes without an end of line"):
        other = tmp_path / "other.jsonl"
        other.write_bytes(content)
        with pytest.raises(RunError, match="not a file of answers"), open_answers(other, PAIRS):
            pass
        assert other.read_bytes() == content


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    with open_answers(file, PAIRS) as held:
        held.add(answer(0))
    file.write_text(file.read_text() + "{broken\n")
    with pytest.raises(DataError, match="line 3"):
        read_answers(file)


def test_one_process_at_a_time_has_the_file(tmp_path: Path) -> None:
    file = tmp_path / "answers.jsonl"
    code = (
        "import fcntl, sys, time; f = open(sys.argv[1], 'w'); fcntl.flock(f, 2); print(1, flush=True); time.sleep(9)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / ".answers.jsonl.lock")], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(RunError, match="in use"), open_answers(file, PAIRS):
            pass
    finally:
        holder.kill()
        holder.communicate()
    with open_answers(file, PAIRS):  # a killed holder leaves nothing that must be cleaned
        pass


@pytest.mark.parametrize(
    "values",
    [("id", "ann", "c", None, 1), ("id", "ann", "a", "left", 1), ("id", "ann", "a", None, 3),
     ("id", " ", "tie", None, 0),
     ("id", "ann", "tie", None, 1)],
)  # fmt: skip
def test_values_that_no_answer_has_are_refused(values: tuple[object, ...]) -> None:
    with pytest.raises(DataError):
        Answer(*values)  # type: ignore[arg-type]
