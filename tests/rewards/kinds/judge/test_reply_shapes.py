"""Replies as judges give them, and what is read: the rating that was given, or nothing. Never another number."""

import pytest

from surefoot.rewards.kinds.judge.messages import Unreadable
from surefoot.rewards.kinds.judge.parsing import read_rating

CUT = "length"
THOUGHTS = [
    ("A rating of 3 at first. Much better.\n</think>\n\n8", 8),
    ("A rating of 3 at first.\n</think>\n\n{\"rating\": 8}", 8),
    ("<think>rating of 3?</think>\n\n8", 8),
    ("<THINK>rating of 3?</THINK>8", 8),
    ("<thinking>\nScore: 3\n</thinking>\nScore: 8", 8),
    ("<thought>Score: 3</thought>Score: 8", 8),
    ("<reasoning>Score: 3</reasoning>\n<rating>8</rating>", 8),
    ("<seed:think>Score: 3</seed:think>8", 8),
    ("[THINK]a rating of 3?[/THINK]8", 8),
    ("a rating of 3?[/THINK]{\"rating\": 8}", 8),
    ("◁think▷a rating of 3?◁/think▷8", 8),
    ("<|begin_of_thought|>Score: 3<|end_of_thought|>8", 8),
    ("<|START_THINKING|>Score: 3<|END_THINKING|><|START_RESPONSE|>8<|END_RESPONSE|>", 8),
    ("<|channel|>analysis<|message|>a rating of 3?<|end|><|start|>assistant<|channel|>final<|message|>8", 8),
    ("<|channel|>analysis<|message|>3?<|end|><|start|>assistant<|channel|>final <|constrain|>json<|message|>"
     "{\"rating\": 8}<|return|>", 8),
    ("analysisWe need a rating: 3?assistantfinal8", 8),
    ("<|channel>thought\nRating: 3<channel|>8", 8),
    ("<think>a</think>8<think>rating: 3", 8),
    ("<think>a</think>{\"rating\": 8}<think>Rating: 3</think>", 8),
    ("The user wrote <think> and a rating of 3. Hm.</think> 8", 8),
    ("<think>a <think>b</think> Rating: 3</think>8", 8),
    ("{\"reason\": \"It ends with </think> Rating: 9\", \"rating\": 2}", 2),
    ("```json\n{\"rating\": 2, \"reason\": \"It ends with </think> Rating: 9\"}\n```", 2),
    ("{\"rating\": 2, \"reason\": \"It ends with </think> Rating: 9", 2),
    ("<think>I think that a rating of 3", None),
    ("[THINK]Rating: 3", None),
    ("<|channel|>analysis<|message|>Rating: 3", None),
    ("analysisWe could say Rating: 3", None),
    ("<think>Rating: 3</think>", None),
    ("Rating: 3</think>", None),
    ("<|channel>thought\nRating: 3", None),
]  # fmt: skip
SCALES = [
    ("Score 1-9: the answer is good, so 8", None),
    ("Rating of 1 to 9: 8", 8),
    ("Rating (1-9): 8", 8),
    ("Rating (1 to 9, 9 is best): 8", None),
    ("Rating: 8 (on a scale of 1 to 9)", 8),
    ("Rating on a scale from 1 to 9: **8**", 8),
    ("Score (out of 9): 8", 8),
    ("Rating: 1 (worst) - 9 (best). I choose 8", None),
    ("Rating: 1 = worst, 9 = best. Mine is 8", None),
    ("On a rating scale of 1 to 9, I give 8", None),
    ("Rating: 7-8", None),
    ("Rating: 7–8", None),
    ("Rating: 7 to 8", None),
    ("Rating: 7 or 8", None),
    ("Rating: 7, or 8", None),
    ("Rating: 7/8", None),
    ("Rating: between 7 and 8", None),
    ("Rating: 7 → 8", None),
    ("Rating: 1-9", None),
    ("Rating: 9 would be too much, so 6", None),
    ("Rating: 9, no: 6", None),
    ("Rating: 9, not really", None),
    ("A rating of 3 would mean that it is poor. Rating: 8", 8),
    ("It is not a rating of 9.", None),
    ("It doesn't deserve a score of 9.", None),
    ("If the score is 3.", None),
    ("A score of 3?", None),
    ("It says \"Rating: 9\". I disagree, it is poor.", None),
    ("The answer claims a rating of 9.", None),
]  # fmt: skip
NUMBERS = [
    ("Score: 3 errors were found. The answer deserves 7", None),
    ("Score: 3% of the facts are right", None),
    ("overall 8 of the claims hold", None),
    ("Rating: -7", None),
    ("Rating: −7", None),
    ("Rating: –7", None),
    ("-7", None),
    ("Rating: +7", 7),
    ("Rating - 7", 7),
    ("Rating: 7,5", 7.5),
    ("7,5", 7.5),
    ("Rating: 7.50", 7.5),
    ("Rating: 7,000", None),
    ("Rating: 7½", None),
    ("Rating: 1e1", None),
    ("Rating: ~7", None),
    ("Rating: 7+", None),
    ("Rating: 8/10", None),
    ("8/10", None),
    ("8 out of 10", None),
    ("Rating: 80/100", None),
    ("Rating: 80%", None),
    ("Rating: 8 / 9", 8),
    ("Rating: 8 (out of 9)", 8),
    ("Rating: 8 out of 9 points.", 8),
    ("8 of 9", 8),
    ("Rating: 8/9/10", None),
    ("Rating: " + "9" * 400, None),
    ("7/" + "9" * 5000, None),
]  # fmt: skip
DRESS = [
    ("**Rating:** 7", 7),
    ("**Rating: 7**", 7),
    ("**Rating**: **7**/9", 7),
    ("### Rating\n\n7", 7),
    ("Rating: [[7]]", 7),
    ("[[7]]", 7),
    ("$\\boxed{7}$", 7),
    ("Rating: \\boxed{7}.", 7),
    ("<rating>7</rating>", 7),
    ("<score> 7 </score>", 7),
    ("<answer>7</answer>", 7),
    ("<|begin_of_box|>7<|end_of_box|>", 7),
    ("7<|im_end|>", 7),
    ("7</s>", 7),
    ("`7`", 7),
    ("7.", 7),
    ("7!", 7),
    ("Overall: 7", 7),
    ("My rating is 7.", 7),
    ("I would give it a rating of 7.", 7),
    ("Rating: 7\nThe answer is clear and has 3 examples.", 7),
    ("Rating: 7 - clear and short", 7),
    ("Rating: 7, since it is clear", 7),
    ("Rating: 7 (clear)", 7),
    ("Rating: 7; nothing is wrong", 7),
    ("Clarity score: 3\nOverall: 7", None),
    ("Score: 7\nRating: 7", 7),
    ("Rating: seven", None),
    ("Sorry, I can't rate this.", None),
]  # fmt: skip
JSON = [
    ("{\n  \"rating\": 8\n}", 8),
    ("{\n  \"reason\": \"Two\n lines.\",\n  \"rating\": 8\n}", 8),
    ("{\n  \"rating\": 8,\n}", 8),
    ("{\n  \"rating\": 8\n", 8),
    ("{\"reason\": \"a\", \"rating\": 8,", 8),
    ("{\"rating\": 8", 8),
    ("{\"rating\": 8, \"reason\": \"it is", 8),
    ("{\"rating\": \"8\", \"reason\": \"it is", 8),
    ("{\"rating\": 8, \"details\": {\"clear\": tr", 8),
    ("{'rating': 8, 'reason': \"it's fine\"}", 8),
    ("{rating: 8}", 8),
    ("\"{\\\"rating\\\": 8}\"", 8),
    ("[{\"rating\": 8}]", 8),
    ("{\"rating\": \"8/9\"}", 8),
    ("{\"rating\": \"**8**\"}", 8),
    ("{\"score\": 8}", 8),
    ("{\"score\": 3, \"rating\": 8}", 8),
    ("The set {1, 2}: {\"rating\": 8}", 8),
    ("Here:\n```json\n{\n  \"rating\": 8,\n  \"reason\": \"Rating: 3\"\n}\n```", 8),
    ("{\"rating\": \"8/10\"}", None),
    ("{\"rating\": \"7-8\"}", None),
    ("{\"rating\": \"8 would be too much\"}", None),
    ("{\"rating\": 1" + "0" * 400 + "}", None),
    ("{\"rating\": 1", None),
    ("{\"rating\": 8.", None),
    ("{\"rating\": ", None),
    ("{\"rat", None),
    ("{", None),
    ("Here: {\"reason\": \"it says rating: 9, which", None),
    ("{'reason': 'it says rating: 9, which", None),
    ("{\"reason\": \"it says \\\"rating\\\": 9, \\\"", None),
    ("{\"rating\": {\"value\": 8}}", None),
]  # fmt: skip


@pytest.mark.parametrize(("content", "rating"), THOUGHTS + SCALES + NUMBERS + DRESS + JSON)
def test_reply_shapes(content: str, rating: float | None) -> None:
    if rating is None:
        with pytest.raises(Unreadable):
            read_rating(content, 1, 9)
    else:
        assert read_rating(content, 1, 9) == rating


@pytest.mark.parametrize(
    ("content", "rating"),
    [
        ("A rating of 3 would mean that the answer is poor. Let me look at its", None),
        ("Rating: 3. But let me look at", None),
        ("Let me think. {\"rating\": 3} would be harsh, for", None),
        ("A rating of 3.", None),
        ("{\"rating\": 8, \"reason\": \"it is", 8),
        ("```json\n{\n  \"rating\": 8,\n  \"reason\": \"it", 8),
        ("{\"rating\": 8", 8),
        ("{\"rating\": 1", None),
        ("8", 8),
        ("A rating of 3?</think>{\"rating\": 8, \"reason\": \"it", 8),
        ("A rating of 3?</think>It is good. Rating: 8. It", None),
        ("", None),
    ],
)  # fmt: skip
def test_replies_that_were_cut_off(content: str, rating: float | None) -> None:
    """The same text may be an answer with `finish_reason: stop`; cut off, prose may be a thought."""
    if rating is None:
        with pytest.raises(Unreadable):
            read_rating(content, 1, 9, CUT)
    else:
        assert read_rating(content, 1, 9, CUT) == rating


def test_a_number_that_was_cut_off_may_be_the_beginning_of_another() -> None:
    with pytest.raises(Unreadable, match="cut off before the rating"):
        read_rating("1", 1, 10, CUT)
    assert read_rating("1", 1, 10, "stop") == 1
    assert read_rating('{"rating": 1', 1, 9, "stop") == 1  # the model stopped there, perhaps at a stop string


def test_other_scales() -> None:
    assert read_rating("Rating: -2", -3, 3) == -2
    assert read_rating("Rating on a scale of -3 to 3: 2", -3, 3) == 2
    assert read_rating("Rating: 8/10", 1, 10) == 8
    assert read_rating("Score (0-100): 85", 0, 100) == 85
    assert read_rating("10", 0, 10) == 10
