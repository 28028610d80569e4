"""Settings of `surefoot online`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from surefoot.errors import ConfigError, did_you_mean
from surefoot.feedback.select import RULES
from surefoot.rewards.config import reward_arguments

__all__ = ["LABELLERS", "OnlineArguments"]

LABELLERS = ("page", "judge", "gold")
_OF_REWARD = ("output_dir", "dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "held_out")


@dataclass
class OnlineArguments:
    """Settings of `surefoot online`. Give completions, or a policy and prompts."""

    output_dir: str = field(metadata={"help": "Directory of all rounds; the same again goes on."})
    eval_dataset: str = field(
        metadata={"help": "Held-out preferences, on which every round is measured; their pairs are never asked."}
    )
    count: int = field(metadata={"help": "Pairs to label in a round."})
    labels: str = field(
        metadata={
            "help": "Who labels: people on the page of `surefoot label`, a judge's ratings, or simulated from gold.",
            "choices": LABELLERS,
        }
    )
    reward: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "Settings of `surefoot reward`: kind, model_name_or_path and the kind's own."},
    )
    rounds: int = field(default=5, metadata={"help": "How many."})
    rule: str = field(
        default="random",
        metadata={"help": "By what pairs are chosen, from the second labels on.", "choices": RULES},
    )
    start_dataset: str | None = field(
        default=None, metadata={"help": "Preferences to start from; without them the first round's pairs are random."}
    )
    completions: str | None = field(
        default=None,
        metadata={"help": "Completions of the policy: columns prompt and completion, several of a prompt."},
    )
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The policy, from which completions are drawn."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Prompts: a file, directory or hub name."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split of the prompts."})
    dataset_prompts: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    n: int = field(default=16, metadata={"help": "Completions drawn of each prompt."})
    max_completion_length: int = field(default=256, metadata={"help": "In tokens."})
    temperature: float = field(default=1.0, metadata={"help": "Of the policy's completions."})
    prompts_per_batch: int = field(default=8, metadata={"help": "Prompts sampled at a time."})
    annotators: int = field(default=1, metadata={"help": "page: answers of different people that a pair needs."})
    judge: str | None = field(default=None, metadata={"help": "judge: directory of the source that rates."})
    tie_margin: float = field(default=0.0, metadata={"help": "judge: ratings that differ by no more are a tie."})
    gold: str | None = field(
        default=None, metadata={"help": "gold: the true reward, a source or a function as file.py:name."}
    )
    gold_temperature: float = field(
        default=1.0, metadata={"help": "gold: a is preferred with probability σ((gold_a − gold_b)/temperature)."}
    )
    gold_flips: float = field(default=0.0, metadata={"help": "gold: share of the labels that are reversed."})
    max_pairs: int = field(
        default=100_000, metadata={"help": "Candidate pairs; of more, so many are drawn uniformly by the seed."}
    )
    kappa: float = field(default=1.0, metadata={"help": "Standard deviations of an upper confidence bound."})
    draws: int = field(
        default=128, metadata={"help": "Posterior draws of double_thompson; an ensemble has its members."}
    )
    align_config: str | None = field(
        default=None,
        metadata={"help": "Config of `surefoot rloo`: after each round the policy is trained against its reward, and "
                  "the next round's completions are drawn from it."},
    )  # fmt: skip
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})

    def check(self) -> None:
        """Refuse values out of range, and settings that are missing or exclude each other.

        Raises:
            ConfigError: what is wrong.
        """
        for name, known in (("labels", LABELLERS), ("rule", RULES)):
            value = getattr(self, name)
            if value not in known:
                raise ConfigError(
                    f"{name} must be one of {', '.join(known)}, got '{value}'{did_you_mean(value, known)}"
                )
        for name in ("count", "rounds", "annotators", "n", "max_pairs", "draws"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("kappa", "tie_margin", "gold_temperature"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.gold_flips <= 0.5:
            raise ConfigError(f"gold_flips must be between 0 and 0.5, got {self.gold_flips}")
        self._check_labels()
        self._check_completions()
        self._check_reward()

    def _check_labels(self) -> None:
        for name in ("judge", "gold"):
            if (getattr(self, name) is not None) != (self.labels == name):
                raise ConfigError(f"give {name} with labels: {name}, and only then")

    def _check_completions(self) -> None:
        drawn = self.model_name_or_path is not None and self.dataset_name is not None
        if drawn == (self.completions is not None) or (self.completions and self.model_name_or_path):
            raise ConfigError(
                "give either model_name_or_path and dataset_name (completions are drawn), or completions (a file)"
            )
        if self.align_config is not None and not drawn:
            raise ConfigError(
                "align_config changes the policy, whose completions then have to be drawn; give model_name_or_path "
                "and dataset_name, not completions"
            )

    def _check_reward(self) -> None:
        if "model_name_or_path" not in self.reward:
            raise ConfigError(
                "reward is missing: give settings of `surefoot reward`, such as `reward: {kind: linear, "
                "model_name_or_path: …}`"
            )
        ours = sorted(set(_OF_REWARD) & set(self.reward))
        if ours:
            raise ConfigError(f"reward can't have {', '.join(ours)}, which every round sets; remove it")
        reward_arguments(output_dir="", dataset_name="", **self.reward).check()
