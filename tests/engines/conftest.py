"""A tiny policy, a linear source on it with anchors, and prompts, on disk as an engine finds them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from datasets import Dataset

from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.linear import LinearConfig, LinearReward, fit_linear
from tests.models import WORDS, save_policy

PROMPTS = [f"the {a} {b} " for a in WORDS[:3] for b in WORDS[3:5]]


@dataclass(frozen=True)
class Made:
    """Where things are, and the source itself."""

    folder: Path
    source: LinearReward

    @property
    def policy(self) -> Path:
        return self.folder / "policy"

    @property
    def source_path(self) -> Path:
        return self.folder / "source"

    @property
    def anchors(self) -> Path:
        return self.folder / "anchors.safetensors"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    folder = tmp_path_factory.mktemp("engine")
    rows = [(f"the {WORDS[i % 5]} ", f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 7]} and") for i in range(24)]
    columns = {key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))}
    pairs = Dataset.from_dict(columns)
    source = fit_linear(pairs, save_policy(folder / "policy"), LinearConfig(layer=0), device="cpu")
    source.calibrate(source.score(pairs["prompt"], pairs["chosen"]))
    source.save(folder / "source")
    store = AnchorStore(source.name, len(WORDS))
    prompts = [prompt for prompt in PROMPTS for _ in WORDS]
    store.add(PROMPTS, source.score(prompts, WORDS * len(PROMPTS)))
    store.save(folder / "anchors.safetensors")
    return Made(folder, source)
