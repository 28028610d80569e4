"""A kind of reward source as a user's own package would have it: nothing in surefoot knows of it.

Members are word counts: a member weighs each word by the log odds with which it stands in the preferred completions of
its bootstrap sample. `test_own_kind.py` installs it as a package with an entry point.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log
from pathlib import Path

import torch

from surefoot.rewards.source import FitJob, MemberSource, RewardSource
from surefoot.types import Text


@dataclass
class WordOddsConfig:
    """What `surefoot reward --kind word_odds` can set."""

    members: int = 4
    smoothing: float = field(default=1.0, metadata={"help": "Added to every count."})
    seed: int = 0


class WordOdds(MemberSource):
    settings = WordOddsConfig

    def __init__(self, odds: list[dict[str, float]]) -> None:
        self.odds, self.name = odds, "word odds"

    @property
    def num_members(self) -> int:
        return len(self.odds)

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> torch.Tensor:
        return torch.tensor(
            [
                [sum(member.get(word, 0.0) for word in str(text).split()) for member in self.odds]
                for text in completions
            ]
        )

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        config, pairs = job.settings, list(zip(job.pairs["chosen"], job.pairs["rejected"], strict=True))
        odds = []
        for member in range(config.members):
            sample = random.Random(f"{config.seed} {member}").choices(pairs, k=len(pairs))
            good, bad = (Counter(word for pair in sample for word in pair[side].split()) for side in (0, 1))
            words = good.keys() | bad.keys()
            odds.append({w: log((good[w] + config.smoothing) / (bad[w] + config.smoothing)) for w in sorted(words)})
            job.report("counting", (member + 1) / config.members)
        return cls(odds)

    def save(self, directory: str | Path) -> None:
        folder = Path(directory)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "odds.json").write_text(json.dumps(self.odds))
        (folder / "source.json").write_text(json.dumps({"kind": self.kind, "name": self.name}))

    @classmethod
    def load(cls, directory: Path, device: object = None) -> RewardSource:
        return cls(json.loads((directory / "odds.json").read_text()))
