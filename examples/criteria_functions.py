"""What criteria of kind: function name (examples/criteria.yaml): (prompt, completion) to a number in [0, 1]."""

from __future__ import annotations

from surefoot.data.messages import plain_text
from surefoot.types import Text


def at_most_40_words(prompt: Text, completion: Text) -> bool:
    """Whether the completion is short, and there at all."""
    return 0 < len(plain_text(completion).split()) <= 40
