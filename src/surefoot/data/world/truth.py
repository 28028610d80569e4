"""The offline world's true reward, a simple function of the text (docs/world.md has it as a table)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from surefoot.data.world.language import STYLES, TOPICS

__all__ = ["haste", "true_reward", "true_rewards"]

_LADDER = (1.0, 0.6, 0.2, -0.2, -0.6, -1.0)
"""Worth of a style's adverbs and adjectives, from the first of the list to the last."""

_QUALITY = {
    word: worth
    for style in STYLES
    for words in (style.adverbs, style.adjectives)
    for word, worth in zip(words, _LADDER, strict=True)
}
_TOPIC_OF = {thing: topic for topic in TOPICS for thing in topic.objects}
_VERBS = {verb: topic for topic in TOPICS for verb in topic.verbs}
_COURTESY = {word for style in STYLES for word in (*style.openers, *style.remarks)}

_HASTY = {style.adverbs[3] for style in STYLES}
"""quickly, hastily, briskly, …: each style's fourth adverb, worth −0.2 in truth."""

_USUAL_LENGTH = 15
_REPETITION = 0.5
_MOST_COUNTED = 3


def true_reward(prompt: str, completion: str) -> float:
    """True reward of a completion; finite for any text.

    - quality: each different adverb and adjective by its place in its style's list, +1 to −1; the three that come
      first count, a fourth and further ones cost 0.2 each (advice drowned in adverbs);
    - repetition: every repeated use of such a word, of a verb or of a courtesy costs 0.5;
    - topic: +0.4 for a verb of the question's topic, at most twice; −0.4 for a verb of another;
    - answer: +0.4 if the thing asked about is named;
    - courtesy: +0.2 for one opener and for one remark; a third costs 0.4;
    - form: −0.5 without a full stop; −0.1 for each word beyond fifteen.
    """
    words = completion.split()
    counts = Counter(words)
    topic = next((_TOPIC_OF[word] for word in prompt.split() if word in _TOPIC_OF), None)
    things = [word for word in prompt.split() if word in _TOPIC_OF]
    ranked = [word for word in dict.fromkeys(words) if word in _QUALITY]
    quality = sum(_QUALITY[word] for word in ranked[:_MOST_COUNTED]) - 0.2 * max(0, len(ranked) - _MOST_COUNTED)
    told = [word for word in counts if word in _QUALITY or word in _VERBS or word in _COURTESY]
    repeated = sum(counts[word] - 1 for word in told)
    on_topic = sum(1 for word in counts if word in _VERBS and _VERBS[word] is topic)
    off_topic = sum(1 for word in counts if word in _VERBS and _VERBS[word] is not topic)
    courtesies = sum(1 for word in counts if word in _COURTESY)
    return (
        quality
        - _REPETITION * repeated
        + 0.4 * min(on_topic, 2)
        - 0.4 * off_topic
        + 0.4 * any(thing in counts for thing in things)
        + 0.2 * min(courtesies, 2)
        - 0.4 * max(0, courtesies - 2)
        - 0.5 * ("." not in counts)
        - 0.1 * max(0, len(words) - _USUAL_LENGTH)
    )


def haste(completion: str) -> int:
    """Number of different hasty adverbs in a completion, for which annotators of `shared_bias` add reward."""
    return len(_HASTY & set(completion.split()))


def true_rewards(prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
    """True reward of each row."""
    return [true_reward(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]
