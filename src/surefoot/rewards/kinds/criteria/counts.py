"""Count the criteria that got an answer, beside the replies that gave one."""

from __future__ import annotations

from surefoot.rewards.kinds.judge.reply_counts import ReplyCounts

__all__ = ["CriteriaCounts"]


class CriteriaCounts(ReplyCounts):
    """Replies with a rating, and criteria of completions with an answer, over a source's life in this process.

    Attributes:
        criteria: that were to be decided, by a judge or a verifier.
        answered: of them, those that have enough valid answers.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.criteria, self.answered = 0, 0

    @property
    def missing_share(self) -> float:
        """Share of the criteria without an answer; 0 where there were none."""
        return 1 - self.answered / self.criteria if self.criteria else 0.0

    @property
    def line(self) -> str:
        counted = f"criteria with an answer: {self.answered} of {self.criteria}"
        if self.criteria:
            counted += f" ({100 * self.missing_share:.1f}% missing)"
        return f"{super().line}\n{counted}" if self.replies else counted
