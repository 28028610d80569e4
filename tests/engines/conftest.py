"""A tiny policy, a linear source on it with anchors, and prompts, on disk as an engine finds them."""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.linear import LinearConfig, LinearReward, fit_linear
from tests.engines.openrlhf_cpu import write_stand_ins
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


@pytest.fixture(scope="session")
def openrlhf_stand_ins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Empty vllm and flash_attn on the path, where they aren't installed: OpenRLHF imports them."""
    folder = write_stand_ins(tmp_path_factory.mktemp("stand_ins"))
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


@pytest.fixture(scope="session")
def reward_server(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """`surefoot serve` with the source and its anchors."""
    from tests.serving.conftest import Served, free_port

    port = free_port()
    words = ["--reward_source", made.source_path, "--anchor_file", made.anchors, "--end_of_text", "<eos>"]
    command = [sys.executable, "-m", "surefoot.cli.main", "serve", "--port", str(port), *map(str, words)]
    served = Served(command, port, tmp_path_factory.mktemp("server") / "log", {})
    yield served.wait()
    assert served.end() == 0


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Arguments of OpenRLHF's `train_ppo_ray` as its own parser reads them, with its defaults."""
    from openrlhf.utils import config

    real = config.hierarchize

    class Parsed(Exception):
        pass

    def stop(flat: Any) -> None:
        raise Parsed(real(flat))

    def parse(*words: str) -> Any:
        with monkeypatch.context() as patch:
            patch.setattr(config, "hierarchize", stop)
            patch.setattr(sys, "argv", ["train_ppo_ray", *words])
            with pytest.raises(Parsed) as held:
                runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
        return held.value.args[0]

    return parse
