"""The examples' settings are ones that a run accepts; verl itself isn't needed."""

from pathlib import Path

import pytest
import yaml

from surefoot.engines.requirements import check_algorithm
from surefoot.engines.settings import EngineSettings

EXAMPLES = sorted((Path(__file__).parents[2] / "examples" / "verl").glob("*.yaml"))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_accepted(path: Path) -> None:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    settings = EngineSettings.from_section(config["surefoot"])
    assert settings.objective.weights == "variance"
    check_algorithm(config["algorithm"], config["actor_rollout_ref"]["actor"], settings)
    assert config["reward"]["reward_manager"]["name"] == "surefoot"
    assert config["trainer"]["v1"]["trainer_mode"].startswith("surefoot_")
    for part in ("actor", "ref"):
        precision = config["actor_rollout_ref"][part]["fsdp_config"]["mixed_precision"]
        assert set(precision.values()) == {"fp32"}
