"""The examples' settings are ones that a run accepts; no engine is needed. OpenRLHF's are in its own tests."""

import json
import runpy
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from surefoot.engines.requirements import check_algorithm
from surefoot.engines.settings import EngineSettings
from tests.models import save_policy

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


def test_openrlhfs_prompts_are_templated(tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(save_policy(tmp_path / "policy"))
    tokenizer.chat_template = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}[say]"
    templated = runpy.run_path(str(EXAMPLES[0].parents[1] / "openrlhf" / "prompts.py"))["templated"]
    prompts = ["a cat", [{"role": "system", "content": "ä"}, {"role": "user", "content": "b"}]]
    made = templated(tokenizer, [json.dumps({"prompt": prompt}) for prompt in prompts])
    assert [json.loads(line)["prompt"] for line in made] == ["[user]a cat[say]", "[system]ä[user]b[say]"]
