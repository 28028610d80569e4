"""The language of the offline world: questions about everyday things and advice in six styles.

A prompt asks how to look after something ("how do i look after my roses ? "). A completion gives two pieces of advice
and a remark, every slot filled from a topic's or a style's words:

    OPENER , VERB the OBJECT ADVERB , then VERB the ADJECTIVE NOUN ADVERB . REMARK

One word is one token. The lists are ordered from the best word to the worst; `truth` reads their order.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

__all__ = ["STYLES", "TOPICS", "Style", "Topic", "complete", "prompt_text", "vocabulary"]


@dataclass(frozen=True, slots=True)
class Topic:
    """Words of a topic: the things asked about, and verbs and nouns of advice on them."""

    name: str
    objects: tuple[str, ...]
    verbs: tuple[str, ...]
    nouns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Style:
    """Words of a style; `adverbs` and `adjectives` run from the most careful or sound to the least."""

    name: str
    openers: tuple[str, ...]
    adverbs: tuple[str, ...]
    adjectives: tuple[str, ...]
    remarks: tuple[str, ...]


def _topic(name: str, objects: str, verbs: str, nouns: str) -> Topic:
    return Topic(name, tuple(objects.split()), tuple(verbs.split()), tuple(nouns.split()))


def _style(name: str, openers: str, adverbs: str, adjectives: str, remarks: str) -> Style:
    return Style(name, *(tuple(words.split()) for words in (openers, adverbs, adjectives, remarks)))


TOPICS = (
    _topic("kitchen", "rice soup bread beans", "simmer season stir taste", "pot pan oven lid"),
    _topic("garden", "roses herbs tomatoes lawn", "water prune mulch weed", "soil hose compost bed"),
    _topic("house", "roof floor windows walls", "sweep repair paint seal", "ladder brush bucket plaster"),
    _topic("music", "guitar piano violin drums", "tune practise polish string", "bow case stool score"),
    _topic("animals", "dog cat horse hens", "feed groom walk train", "bowl straw lead stable"),
    _topic("machines", "bicycle engine clock radio", "oil adjust tighten test", "chain spring cable battery"),
)

STYLES = (
    _style(
        "plain",
        "first well so",
        "slowly gently evenly quickly roughly carelessly",
        "clean good plain old dirty broken",
        "enjoy luck done",
    ),
    _style(
        "formal",
        "firstly accordingly therefore",
        "diligently prudently properly hastily improperly negligently",
        "suitable adequate ordinary worn unsuitable defective",
        "regards sincerely noted",
    ),
    _style(
        "warm",
        "dear friend darling",
        "lovingly tenderly kindly briskly coldly heartlessly",
        "lovely cosy modest tired sad miserable",
        "hugs cheers smile",
    ),
    _style(
        "folksy",
        "howdy shucks reckon",
        "steadylike nicely fairly speedily clumsily slapdash",
        "dandy tidy common rusty ragged busted",
        "yonder partner yeehaw",
    ),
    _style(
        "technical",
        "step stage phase",
        "precisely incrementally nominally rapidly imprecisely erratically",
        "calibrated certified standard obsolete faulty failed",
        "complete verified logged",
    ),
    _style(
        "poetic",
        "behold oh hark",
        "softly gracefully quietly swiftly harshly brutally",
        "radiant golden humble faded withered ruined",
        "evermore adieu amen",
    ),
)

_ASK = ("how do i look after my", "how should i care for the", "what is best for our")
_GLUE = (",", "the", "then", ".", "?")


def vocabulary() -> list[str]:
    """Every word of the language once, in a fixed order."""
    words: dict[str, None] = dict.fromkeys(_GLUE)
    words.update(dict.fromkeys(" ".join(_ASK).split()))
    for topic in TOPICS:
        words.update(dict.fromkeys((*topic.objects, *topic.verbs, *topic.nouns)))
    for style in STYLES:
        words.update(dict.fromkeys((*style.openers, *style.adverbs, *style.adjectives, *style.remarks)))
    return list(words)


def prompt_text(ask: int, topic: Topic, thing: str) -> str:
    """A question about a thing; it ends with a space, so that prompt + completion is text."""
    del topic  # the thing determines the topic
    return f"{_ASK[ask]} {thing} ? "


def all_prompts() -> list[tuple[str, Topic, str]]:
    """Every question of the language with its topic and the thing asked about."""
    return [
        (prompt_text(ask, topic, thing), topic, thing)
        for ask in range(len(_ASK))
        for topic in TOPICS
        for thing in topic.objects
    ]


def complete(topic: Topic, thing: str, style: Style, rng: np.random.Generator) -> str:
    """One completion in the style; one verb in six, and one noun in six, is of another topic."""
    first, second = _off_topic(topic, rng), _off_topic(topic, rng)
    verbs = [first.verbs[rng.integers(4)], second.verbs[rng.integers(4)]]
    words = [
        _pick(style.openers, rng), ",", verbs[0], "the", thing, _pick(style.adverbs, rng), ",", "then",
        verbs[1], "the", _pick(style.adjectives, rng), _pick(_off_topic(topic, rng).nouns, rng),
        _pick(style.adverbs, rng), ".", _pick(style.remarks, rng),
    ]  # fmt: skip
    return " ".join(words)


def _off_topic(topic: Topic, rng: np.random.Generator) -> Topic:
    return TOPICS[rng.integers(len(TOPICS))] if rng.random() < 0.2 else topic


def _pick(words: tuple[str, ...], rng: np.random.Generator) -> str:
    return words[rng.integers(len(words))]
