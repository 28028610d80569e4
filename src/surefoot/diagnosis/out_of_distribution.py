"""Out-of-distribution completions (shuffled, repeated, …), to test whether the variance rises on them.

Each kind keeps the prompts and changes the completions, so that a source's variance on them can be set against its
variance on the completions that the kind was made of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from surefoot.data.messages import as_messages, message_text
from surefoot.errors import DataError
from surefoot.types import Text

__all__ = ["FAR_KINDS", "far_texts"]

_CONSTANT = "I am happy to help with that."
_REPEATS = 12
_JOINED = 6
_LANGUAGES = (
    "Das kann ich so nicht sagen, denn es hängt davon ab, was du damit vorhast und wie viel Zeit du hast.",
    "No puedo decirlo así, porque depende de lo que quieras hacer y de cuánto tiempo tengas para ello.",
    "Je ne peux pas le dire ainsi, car cela dépend de ce que tu veux en faire et du temps que tu as.",
    "Nie mogę tego tak powiedzieć, bo zależy to od tego, co chcesz zrobić i ile masz na to czasu.",
    "Bunu böyle söyleyemem, çünkü bu ne yapmak istediğine ve ne kadar zamanın olduğuna bağlı.",
    "Tätä en voi sanoa näin, koska se riippuu siitä, mitä aiot tehdä ja kuinka paljon aikaa sinulla on.",
)


def far_texts(completions: Sequence[Text], seed: int = 0) -> dict[str, list[Text]]:
    """Far completions by kind, one for each completion, in its format.

    Args:
        completions: ordinary ones, at least two; of messages, the last one's content is changed.
        seed: of the shuffles.

    Raises:
        DataError: fewer than two completions.

    >>> far = far_texts(["the red cat sat", "a dog"])
    >>> sorted(far["shuffled"][0].split()), far["other_prompt"]
    (['cat', 'red', 'sat', 'the'], ['a dog', 'the red cat sat'])
    """
    if len(completions) < 2:
        raise DataError(f"texts far from the data are made of at least two completions, got {len(completions)}")
    texts = [_content(completion) for completion in completions]
    rng = np.random.default_rng(seed)
    made = {kind: make(texts, rng) for kind, make in FAR_KINDS.items()}
    return {
        kind: [_with_content(old, new) for old, new in zip(completions, changed, strict=True)]
        for kind, changed in made.items()
    }


def _shuffled(texts: list[str], rng: np.random.Generator) -> list[str]:
    """The same words in a random order."""
    return [" ".join(rng.permutation(text.split()).tolist()) for text in texts]


def _repeated(texts: list[str], rng: np.random.Generator) -> list[str]:
    """The first four words, twelve times over."""
    return [" ".join([" ".join(text.split()[:4])] * _REPEATS) for text in texts]


def _constant(texts: list[str], rng: np.random.Generator) -> list[str]:
    """One polite sentence, whatever was asked."""
    return [_CONSTANT] * len(texts)


def _other_prompt(texts: list[str], rng: np.random.Generator) -> list[str]:
    """The completion of another prompt: each text goes to the next place of one random cycle."""
    order = rng.permutation(len(texts))
    moved = list(texts)
    for place, source in zip(order, np.roll(order, 1), strict=True):
        moved[place] = texts[source]
    return moved


def _short(texts: list[str], rng: np.random.Generator) -> list[str]:
    """The first word alone."""
    return [(text.split() or [text])[0] for text in texts]


def _long(texts: list[str], rng: np.random.Generator) -> list[str]:
    """Six completions, one after the other."""
    others = rng.integers(len(texts), size=(len(texts), _JOINED - 1))
    return [" ".join([text, *(texts[i] for i in row)]) for text, row in zip(texts, others, strict=True)]


def _foreign(texts: list[str], rng: np.random.Generator) -> list[str]:
    """A sentence in German, Spanish, French, Polish, Turkish or Finnish."""
    return [_LANGUAGES[i % len(_LANGUAGES)] for i in range(len(texts))]


FAR_KINDS: dict[str, Callable[[list[str], np.random.Generator], list[str]]] = {
    "shuffled": _shuffled,
    "repeated": _repeated,
    "constant": _constant,
    "other_prompt": _other_prompt,
    "short": _short,
    "long": _long,
    "foreign": _foreign,
}
"""The kinds by name; a new one is a function of (texts, random generator) and a line here."""


def _content(completion: Text) -> str:
    return completion if isinstance(completion, str) else message_text(as_messages(completion)[-1])


def _with_content(completion: Text, content: str) -> Text:
    """The completion with another content in the place of its last message's content and tool calls."""
    if isinstance(completion, str):
        return content
    *earlier, last = as_messages(completion)
    return [*earlier, {**{key: value for key, value in last.items() if key != "tool_calls"}, "content": content}]
