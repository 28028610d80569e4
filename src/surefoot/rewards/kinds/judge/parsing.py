"""Read the rating from a reply, or raise `Unreadable`: a doubtful rating is never guessed."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Collection, Iterator
from typing import Any

from surefoot.rewards.kinds.judge.json_objects import Objects, find_objects
from surefoot.rewards.kinds.judge.messages import Reply, Unreadable
from surefoot.rewards.kinds.judge.reasoning import answer_of

__all__ = ["CUT", "number_of", "read_distribution", "read_rating", "unquoted"]

_LEAST_MASS = 0.5
"""Least probability on the scale's numbers; below it the judge was about to say something else."""
CUT = {"length", "max_tokens", "model_length", "content_filter", "error"}
"""Reasons for which a server stops a judge in the middle of what it says."""
_OTHER_SCALES = (10, 100)
"""Upper ends of scales that judges use unasked: a "1" that was cut off may be the beginning of one."""
_LONGEST_NUMBER = 100
"""Most characters of a JSON string that is read as a number."""

_GAP = re.compile(r"\s{2,}")
_VALUE = r"(?P<value>[-+−–]?\d{1,9}(?:\.\d{1,9}|,\d{1,2}(?!\d))?)(?![.,]?\d)"
_OF = r"(?:[\s*_`]*\(?\s*(?:/|out of|of)\s*(?P<of>\d{1,9}(?:\.0+)?)(?![.,]?\d)\)?)?(?:\s*(?:points?|stars?|pts))?"
_BARE = re.compile(rf"[\s\"'*_`#\[(<$]*(?:\\boxed\{{)?{_VALUE}{_OF}[\s\"'*_`.!\])>$}}]*", re.IGNORECASE)
_LABELLED = re.compile(
    r"\b(?:(?:rating|score|grade)\b|overall(?=[\s*_]*[:=]))"
    r"(?:[\s\"'`:=*_#\[(>$]|[-–—](?=\s)|\b(?:is|of|be|an?)\b|\\boxed\{){0,24}?"
    rf"{_VALUE}{_OF}",
    re.IGNORECASE,
)
_ENDS = re.compile(r"[*_\"'`)\]}$]*(?:\s*(?:\Z|\n|</)|[.!;][*_\"'`)\]}]*(?:\s|\Z))")
"""After a rating that is stated: the end of the reply, the line or the sentence."""
_GOES_ON = re.compile(
    r"[*_\"'`)\]}]*\s*(?:[,:]\s|\(|[-–—]\s)(?!\s*(?:or|not?|but|though|if|maybe|perhaps)\b)", re.IGNORECASE
)
"""After a rating whose reason follows; accepted if no other number does."""
_DOUBT = re.compile(
    r"\b(?:not|no|never|neither|nor|if|unless|than|whether|could|might|may|should|between|instead|previous|says|said"
    r"|claims?|asks?|states|writes|wrote|contains?|demands?|pretends?|tells|wants?|example)\b|n't\b",
    re.IGNORECASE,
)
"""Words before a number that is discussed or denied, not given as the rating."""


def read_rating(content: str, lowest: int, highest: int, finish: str = "") -> float:
    """The one rating that a reply gives.

    JSON first, anywhere in the answer; else a labelled number that is stated ("Rating: 7/9"); else a reply that is a
    number and nothing else. Thoughts and quoted scales don't count. Two ratings that differ are unreadable: one may be
    the text's own. Of a reply that was cut off, only JSON or a number that it begins with counts, for else it may be
    a thought.

    Args:
        finish: the server's `finish_reason`; "" if it gave none.

    Raises:
        Unreadable: no rating, several, one of the wrong type, or one off the scale (it is never moved onto it).

    >>> read_rating('Sure! {"reason": "clear", "rating": 7}', 1, 9)
    7.0
    """
    text = unquoted(answer_of(content))
    if not text:
        raise Unreadable("empty reply: a thought alone" if content.strip() else "empty reply")
    objects, cut, scale = find_objects(text), finish in CUT, range(lowest, highest + 1)
    if cut and not text.startswith("{"):
        objects = Objects([], None, text)
    if objects.at_end is not None and finish != "stop" and _may_go_on(objects.at_end, {*scale, *_OTHER_SCALES}):
        objects = Objects([], None, "")
    values = {number_of(value, highest) for value in objects.ratings} or _said(objects.outside, lowest, highest, cut)
    if len(values) != 1:
        few = "cut off before the rating" if cut else "no rating in the reply"
        raise Unreadable("several ratings in the reply" if values else few)
    value = values.pop()
    if not lowest <= value <= highest:
        raise Unreadable("rating off the scale")
    return value


def unquoted(text: str) -> str:
    """Decode JSON that a server sent as a JSON string."""
    if text.startswith('"{'):
        try:
            return str(json.loads(text)).strip()
        except ValueError:
            return text
    return text


def _may_go_on(number: str, others: Collection[int]) -> bool:
    """Whether a number at the end of what was cut off may be the beginning of another one."""
    return any(str(value).startswith(number) and str(value) != number for value in others)


def _said(text: str, lowest: int, highest: int, cut: bool) -> set[float]:
    """Ratings in the text outside of JSON objects."""
    text = _GAP.sub(lambda gap: "\n" if "\n" in gap[0] else " ", text)
    bare = _BARE.fullmatch(text)
    if bare:
        return set() if cut and _may_go_on(bare["value"], range(lowest, highest + 1)) else {_of(bare, highest)}
    if cut:
        return set()
    plain = _scale(lowest, highest).sub(" ", text)
    return {_of(match, highest) for match in _LABELLED.finditer(plain) if _stated(match, plain)}


def _scale(lowest: int, highest: int) -> re.Pattern[str]:
    """The scale itself, as judges quote it: "on a scale of 1 to 9", "(1-9)", "1 (worst) to 9 (best)"."""
    words = r"(?:\b(?:on|from|of|between|scale|the|a)\s+)*"
    between = r"\s*(?:\([^()]*\)\s*)?(?:[-–—]|to|and|\.{2,3}|…)\s*"
    after = r"(?!\d|[.,]\d|\s*/)(?:\s*\([^()]*\))?\)?"
    either = rf"(?<![\d.,/-]){lowest}{between}{highest}{after}|out of {highest}\s*\)"
    return re.compile(rf"\(?{words}(?:{either})", re.IGNORECASE)


def _stated(match: re.Match[str], text: str) -> bool:
    """Whether a labelled number is given as the rating: no range, no other quantity, none that is talked about."""
    clause = re.split(r"[.!?;:,\n]", text[: match.start()])[-1]
    if _DOUBT.search(clause):
        return False
    if _ENDS.match(text, match.end()):
        return True
    goes_on = _GOES_ON.match(text, match.end())
    return goes_on is not None and not re.search(r"\d", text[goes_on.end() :].split("\n", 1)[0])


def number_of(value: Any, highest: int) -> float:
    """A value of JSON; a text may hold a number, and what it is out of."""
    if isinstance(value, str):
        match = _BARE.fullmatch(value) if len(value) <= _LONGEST_NUMBER else None
        if match is None:
            raise Unreadable("rating of a wrong type")
        return _of(match, highest)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise Unreadable("rating of a wrong type")
    try:
        number = float(value)
    except OverflowError:
        raise Unreadable("rating off the scale") from None
    if not math.isfinite(number):
        raise Unreadable("rating of a wrong type")
    return number


def _of(match: re.Match[str], highest: int) -> float:
    if match["of"] and float(match["of"]) != highest:
        raise Unreadable("rating on another scale")
    return float(match["value"].replace(",", ".").replace("−", "-").replace("–", "-"))


def read_distribution(reply: Reply, lowest: int, highest: int) -> tuple[float, float]:
    """Mean and variance of the rating, from the probabilities of its token.

    The reply must give a rating by itself, and the first token with a digit must be it: what is out of ten, has a sign
    or decimals, or comes after a quoted scale has its number in several tokens.

    Args:
        lowest, highest: of one digit each, so that no rating's token begins another's.

    Raises:
        Unreadable: the server gave no probabilities or those of one token only, no rating was said, or less than half
            of the probability lies on the scale.
    """
    if not any(len(position) > 1 for position in reply.positions):
        raise Unreadable("no log-probabilities in the reply")
    value = read_rating(reply.content, lowest, highest, reply.finish)
    place = next((i for i, token in enumerate(reply.said) if any(sign.isdigit() for sign in token)), None)
    if place is None or _bare_token(reply.said[place]) != f"{value:g}":
        raise Unreadable("the rating is not one token")
    scale = {str(number) for number in range(lowest, highest + 1)}
    chances = list(_chances(reply.positions[place], scale))
    mass = sum(chance for _, chance in chances)
    if mass < _LEAST_MASS:
        raise Unreadable("less than half of the probability is on the scale")
    mean = sum(value * chance for value, chance in chances) / mass
    return mean, sum((value - mean) ** 2 * chance for value, chance in chances) / mass


def _chances(position: list[tuple[str, float]], scale: set[str]) -> Iterator[tuple[int, float]]:
    for token, logprob in position:
        if _bare_token(token) in scale and not math.isnan(logprob):
            yield int(_bare_token(token)), math.exp(min(logprob, 0.0))


def _bare_token(token: str) -> str:
    return token.strip(" \n\t\"'*_`:[(")
