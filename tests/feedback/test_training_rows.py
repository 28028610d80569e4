"""Answers as rows to train on: shares of several annotators, ties, and skips."""

from surefoot.feedback.answers import Answer, Choice
from surefoot.feedback.pairs import Pair, pair_id
from surefoot.feedback.training_rows import training_rows

PAIRS = [Pair(pair_id("p", a, b), "p", a, b) for a, b in (("x", "y"), ("u", "v"), ("k", "l"))]


def answer(place: int, annotator: str, choice: Choice) -> Answer:
    return Answer(PAIRS[place].id, annotator, choice, strength=1 if choice in ("a", "b") else 0)


ANSWERS = [
    *(answer(0, "Ann", "b"), answer(0, "Bo", "b"), answer(0, "Cy", "a"), answer(0, "Di", "tie")),
    *(answer(1, "Ann", "tie"), answer(1, "Bo", "skip"), answer(2, "Ann", "skip")),
]


def test_one_row_a_pair_holds_the_share_of_its_answers() -> None:
    """b, b, a and a tie: 2.5 of 4 for b. A tie alone is a half. What was only skipped isn't there."""
    first, second = training_rows(PAIRS, ANSWERS, counted=True)
    assert first == {"prompt": "p", "chosen": "y", "rejected": "x", "chosen_share": 0.625, "answers": 4}
    assert (second["chosen_share"], second["answers"]) == (0.5, 1)


def test_one_row_an_answer_leaves_ties_out() -> None:
    rows = training_rows(PAIRS, ANSWERS, counted=False)
    assert [(row["chosen"], row["rejected"]) for row in rows] == [("y", "x"), ("y", "x"), ("x", "y")]
    assert set(rows[0]) == {"prompt", "chosen", "rejected"}
