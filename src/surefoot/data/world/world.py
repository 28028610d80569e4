"""The offline world as one object: its reference policy, prompts, preferences and true reward."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from surefoot.data.world.language import all_prompts
from surefoot.data.world.preferences import draw_preferences
from surefoot.data.world.reference import train_reference
from surefoot.data.world.truth import true_rewards
from surefoot.files import scratch

__all__ = ["World", "build_world"]


@dataclass(frozen=True, slots=True)
class World:
    """The offline world: a reference policy, prompts, preferences on demand, and the true reward.

    Args:
        policy_path: directory of the reference policy and its tokenizer.
    """

    policy_path: Path

    def prompts(self, split: str) -> list[str]:
        """Questions of the "train" or the "test" split; a third of the questions is kept for testing."""
        everything = [prompt for prompt, _, _ in all_prompts()]
        return [prompt for i, prompt in enumerate(everything) if (i % 3 == 0) == (split == "test")]

    def true_reward(self, prompts: Sequence[str], completions: Sequence[str]) -> list[float]:
        """The true reward of each completion; see docs/world.md."""
        return true_rewards(prompts, completions)

    def draw_preferences(self, variant: str, pairs: int, seed: int) -> Dataset:
        """Draw labelled pairs; see `surefoot.data.world.preferences`."""
        return draw_preferences(variant, pairs, seed)


def build_world(directory: str | Path, seed: int = 0) -> World:
    """Open the world kept in `directory`, and train its reference policy if it isn't there yet.

    Several processes may do so at once: the policy of the first to finish is kept.
    """
    policy = Path(directory) / "policy"
    if not (policy / "config.json").exists():
        with scratch(policy, directory=True) as temporary:
            made = temporary / "policy"
            train_reference(made, seed)
            try:
                made.rename(policy)
            except OSError:
                if not (policy / "config.json").exists():
                    raise
    return World(policy)
