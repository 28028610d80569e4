"""The file of answers: append-only JSON lines, each on the disk before the next pair is shown.

The first line says which pairs the file belongs to. An answer is taken back by a line of its own. A last line that a
kill cut short was never acknowledged and is dropped when the file is opened again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from typing import Any, BinaryIO, Literal, get_args

from surefoot.errors import DataError, RunError
from surefoot.feedback.pairs import Pair, pairs_fingerprint
from surefoot.locks import hold

__all__ = [
    "CHOICES",
    "SIDES",
    "Answer",
    "AnswerFile",
    "Choice",
    "Side",
    "now",
    "open_answers",
    "read_answers",
    "standing",
]

Choice = Literal["a", "b", "tie", "skip"]
Side = Literal["a", "b"]
CHOICES: tuple[str, ...] = get_args(Choice)
SIDES: tuple[str, ...] = get_args(Side)


@dataclass(frozen=True, slots=True)
class Answer:
    """What an annotator said of a pair.

    Args:
        pair: its id.
        choice: the better completion, a tie, or "skip" for none of these.
        left: which completion was shown on the left; None where unknown.
        strength: 1 better, 2 much better; 0 for a tie or a skip.
        seconds: from the pair's being shown to the answer; None where unknown.
        time: when it was given, ISO 8601 in UTC; None where unknown.
    """

    pair: str
    annotator: str
    choice: Choice
    left: Side | None = None
    strength: int = 0
    seconds: float | None = None
    time: str | None = None

    def __post_init__(self) -> None:
        if self.choice not in CHOICES or self.left not in (*SIDES, None):
            raise DataError(f"an answer is one of {', '.join(CHOICES)}, got {self.choice!r} (left: {self.left!r})")
        if self.strength not in ((1, 2) if self.choice in SIDES else (0,)):
            raise DataError(f"strength is 1 or 2 for a preference and 0 otherwise, got {self.strength}")
        if not (isinstance(self.pair, str) and isinstance(self.annotator, str) and self.annotator.strip()):
            raise DataError("an answer names its pair and its annotator")


def now() -> str:
    """The present time, ISO 8601 in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


class AnswerFile:
    """An open file of answers; made by `open_answers`.

    Attributes:
        answers: all lines that stand, by (annotator, pair), in the order in which they were given.
    """

    def __init__(self, file: BinaryIO, answers: dict[tuple[str, str], Answer]) -> None:
        self._file, self.answers = file, answers
        self._lock = Lock()

    def add(self, answer: Answer) -> bool:
        """Write an answer to the disk; False if the annotator has answered this pair already, which then stands."""
        with self._lock:
            key = (answer.annotator, answer.pair)
            if key in self.answers:
                return False
            self._write({"kind": "answer", **asdict(answer)})
            self.answers[key] = answer
            return True

    def undo(self, annotator: str) -> Answer | None:
        """Take back the annotator's last answer that stands, and return it; None if there is none."""
        with self._lock:
            last = next((key for key in reversed(self.answers) if key[0] == annotator), None)
            if last is None:
                return None
            self._write({"kind": "undo", "pair": last[1], "annotator": annotator, "time": now()})
            return self.answers.pop(last)

    def of(self, annotator: str) -> dict[str, Answer]:
        """The annotator's answers that stand, by pair."""
        with self._lock:
            return {pair: answer for (name, pair), answer in self.answers.items() if name == annotator}

    def _write(self, record: dict[str, Any]) -> None:
        append(self._file, record)


def append(file: BinaryIO, record: dict[str, Any]) -> None:
    """Write one line and wait until it is on the disk."""
    file.write((json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n").encode())
    file.flush()
    os.fsync(file.fileno())


@contextmanager
def open_answers(path: str | Path, pairs: Sequence[Pair], seed: int = 0) -> Iterator[AnswerFile]:
    """Open a file of answers for writing, or make it; one process at a time has it open.

    Args:
        pairs: those that are answered; a file of others is refused.
        seed: of the sides' order, kept in the file.

    Raises:
        RunError: another process has it open, or it belongs to other pairs or another seed. DataError: a line is
            broken.
    """
    target = Path(path)
    head = {"kind": "labels", "version": 1, "pairs": pairs_fingerprint(pairs), "count": len(pairs), "seed": seed}
    with hold(target.with_name(f".{target.name}.lock")):
        end = _check_head(target, head)
        answers = standing(_records(target)) if end else {}
        with target.open("r+b" if target.exists() else "w+b") as file:
            file.truncate(end)
            file.seek(end)
            if end == 0:
                append(file, head)
                _sync_directory(target.parent)
            yield AnswerFile(file, answers)


def _check_head(target: Path, head: dict[str, Any]) -> int:
    """End of the last whole line, in bytes; 0 if there is none."""
    if not target.exists():
        return 0
    content = target.read_bytes()
    end = content.rfind(b"\n") + 1
    if end == 0 and content and not content.startswith(b'{"kind": "labels"'[: len(content)]):
        raise RunError(f"{target} is not a file of answers; choose another output")
    if end:
        held = _parsed(content[: content.index(b"\n")], target, 1)
        if held.get("kind") != "labels":
            raise RunError(f"{target} is not a file of answers; choose another output")
        different = [name for name in ("pairs", "count", "seed") if held.get(name) != head[name]]
        if different:
            raise RunError(
                f"{target} holds answers on other pairs, or with another seed ({', '.join(different)} differ); choose "
                "another output"
            )
    return end


def read_answers(path: str | Path) -> list[Answer]:
    """The answers of a file that stand, in the order in which they were given.

    Raises:
        DataError: a line is broken. RunError: there is no such file.
    """
    target = Path(path)
    if not target.exists():
        raise RunError(f"{target} does not exist; answers are written by `surefoot label`")
    return list(standing(_records(target)).values())


def _records(target: Path) -> list[dict[str, Any]]:
    content = target.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    return [_parsed(line, target, number) for number, line in enumerate(whole.splitlines(), start=1)]


def _parsed(line: bytes, target: Path, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise DataError(f"{target}: line {number} is not a record of answers; restore the file")
    return record


def standing(records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], Answer]:
    """The answers that were not taken back, by (annotator, pair).

    Raises:
        DataError: a record lacks a field, or has a value that it can't have.
    """
    names = {field.name for field in fields(Answer)}
    answers: dict[tuple[str, str], Answer] = {}
    for number, record in enumerate(records, start=1):
        try:
            if record["kind"] == "answer":
                answer = Answer(**{name: value for name, value in record.items() if name in names})
                answers[answer.annotator, answer.pair] = answer
            elif record["kind"] == "undo":
                del answers[record["annotator"], record["pair"]]
        except (KeyError, TypeError, DataError) as error:
            raise DataError(f"record {number} of the answers can't be read: {error}") from None
    return answers


def _sync_directory(folder: Path) -> None:
    """Make a new file's name last, as its content does."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
