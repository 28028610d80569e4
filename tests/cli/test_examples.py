"""Every example is a config that its command takes."""

from pathlib import Path

import pytest
import yaml

import surefoot
from surefoot.cli.parsing import parse
from surefoot.rewards.config import RewardSourceArguments

EXAMPLES = Path(surefoot.__file__).parents[2] / "examples"
REWARDS = [path for path in sorted(EXAMPLES.glob("*.yaml")) if "kind" in yaml.safe_load(path.read_text())]


@pytest.mark.parametrize("path", REWARDS, ids=lambda path: path.stem)
def test_reward_examples_parse_and_check(path: Path) -> None:
    (args,) = parse((RewardSourceArguments,), ["--config", str(path)], "reward")
    args.check()
    assert f"surefoot reward --config examples/{path.name}" in path.read_text()


def test_every_kind_has_an_example() -> None:
    kinds = {yaml.safe_load(path.read_text())["kind"] for path in REWARDS}
    assert kinds == {"heads", "independent", "lora", "laplace", "dropout", "distilled"}
