"""Separate a reasoning model's thought from its answer, in a reply that holds both.

Servers with a reasoning parser send the thought apart. Others leave it in the text: between tags, with the closing tag
only (the chat template wrote the opening one), or in harmony's channels. No number of a thought is ever a rating.
"""

from __future__ import annotations

import re

__all__ = ["answer_of", "reasoning_end"]

_NAMES = r"(?:think|thinking|thoughts?|reasoning|seed:think)"
_CLOSE = re.compile(
    rf"</{_NAMES}>|\[/THINK(?:ING)?\]|◁/think▷|<\|(?:end_of_thought|END_THINKING|inner_suffix)\|>|<channel\|>"
    r"|<\|channel\|>\s*final\b[^<]*(?:<\|constrain\|>[^<]*)?<\|message\|>|assistantfinal(?:json)?",
    re.IGNORECASE,
)
_OPEN = re.compile(
    rf"<{_NAMES}>|\[THINK(?:ING)?\]|◁think▷|<\|(?:begin_of_thought|START_THINKING|inner_prefix)\|>|<\|channel>"
    r"|<\|channel\|>|\Aanalysis(?=[A-Za-z])",
    re.IGNORECASE,
)
_PAIR = re.compile(rf"<({_NAMES})>.*?</\1>|\[THINK\].*?\[/THINK\]", re.DOTALL | re.IGNORECASE)
_FENCE = re.compile(r"\A\s*```\w*\s")
_MARKS = re.compile(r"<\|\w+\|>|</?(?:s|answer|end_of_turn|eos)>|```\w*")
"""Control tokens and tags around an answer."""


def reasoning_end(text: str) -> int:
    """Where the last thought in a text ends; 0 if none does.

    What begins with `{` is JSON: a tag inside is quoted, perhaps from the answer that is judged.
    """
    if _FENCE.sub("", text).lstrip().startswith("{"):
        return 0
    return max((match.end() for match in _CLOSE.finditer(text)), default=0)


def answer_of(content: str) -> str:
    """The reply without its thoughts, control tokens and code fences; "" where it is a thought alone.

    >>> answer_of("A rating of 3? Better.</think> 8")
    '8'
    """
    end = reasoning_end(content)
    if not end and _FENCE.sub("", content).lstrip().startswith("{"):
        return _MARKS.sub(" ", content).strip()
    answer = _before_thought(content[end:])
    if not answer and end:  # the thought came last: what stands outside of whole pairs of tags is the answer
        rest = _PAIR.sub("", content)
        answer = "" if _CLOSE.search(rest) else _before_thought(rest)
    return answer


def _before_thought(text: str) -> str:
    opening = _OPEN.search(text)
    return _MARKS.sub(" ", text if opening is None else text[: opening.start()]).strip()
