"""Every example is a config that its command takes."""

from pathlib import Path

import pytest
import yaml
from trl import ModelConfig

import surefoot
from surefoot.cli.parsing import parse
from surefoot.cli.plan import MemoryPlanArguments
from surefoot.cli.reward import arguments_of
from surefoot.cli.study import StudyArguments, configure
from surefoot.feedback.online_settings import OnlineArguments
from surefoot.forecast.run import ForecastArguments
from surefoot.studies.cell import check_policy
from surefoot.training.best_of_n import BestOfNArguments
from surefoot.training.dpo_config import VarianceAwareDPOConfig
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.run_dpo import DPOScriptArguments
from surefoot.training.run_online import OnlineScriptArguments

EXAMPLES = Path(surefoot.__file__).parents[2] / "examples"
PATHS = sorted([*EXAMPLES.glob("*.yaml"), *EXAMPLES.glob("smollm2/*.yaml")])
REWARDS = [path for path in PATHS if "kind" in yaml.safe_load(path.read_text())]


TYPES: dict[str, tuple[type, ...]] = {
    "rloo": (OnlineScriptArguments, VarianceAwareRLOOConfig, ModelConfig),
    "grpo": (OnlineScriptArguments, VarianceAwareGRPOConfig, ModelConfig),
    "dpo": (DPOScriptArguments, VarianceAwareDPOConfig, ModelConfig),
    "bon": (BestOfNArguments,),
    "forecast": (ForecastArguments,),
    "online": (OnlineArguments,),
    "study": (StudyArguments, MemoryPlanArguments),
}


def said(path: Path) -> str:
    return str(path.relative_to(EXAMPLES))


@pytest.mark.parametrize("path", REWARDS, ids=said)
def test_reward_examples_parse_and_check(path: Path) -> None:
    args = arguments_of(["--config", str(path)])
    args.check()
    assert f"surefoot reward --config examples/{said(path)}" in path.read_text()


def command(path: Path) -> str:
    """The command that the example's own comment runs it with."""
    line = next(line for line in path.read_text().splitlines() if f"--config examples/{said(path)}" in line)
    return line.split("surefoot ")[1].split()[0]


@pytest.mark.parametrize("path", sorted(set(PATHS) - set(REWARDS)), ids=said)
def test_other_examples_parse(path: Path, tmp_path: Path) -> None:
    types = TYPES[command(path)]
    words = ["--config", str(path), "--output_dir", str(tmp_path)]
    trains = command(path) in ("rloo", "grpo", "dpo")
    words += ["--use_cpu", "true", "--bf16", "false"] if trains else []
    parsed = parse(types, words, command(path))
    if command(path) in ("rloo", "grpo"):
        parsed[0].check()
        assert parsed[1].build_objective().weights == "variance"
    if command(path) == "bon":
        assert parsed[0].objective().aggregate == "lcb"
    if command(path) == "online":
        parsed[0].check()
    if command(path) == "study":
        assert len(configure(parsed[0]).cells()) == {"study_world": 24, "study_stories": 18}[path.stem]
    if getattr(parsed[0], "reward_config", None):
        assert (EXAMPLES.parent / parsed[0].reward_config) in REWARDS


@pytest.mark.parametrize(
    "path", sorted((EXAMPLES.parent / "benchmarks" / "studies").glob("*.yaml")), ids=lambda p: p.stem
)
def test_our_own_studies_parse(path: Path) -> None:
    study, _ = parse(TYPES["study"], ["--config", str(path)], "study")
    assert f"surefoot study --config benchmarks/studies/{path.name}" in path.read_text()
    config = configure(study)
    check_policy(config.trainer, config.policy)


def test_every_kind_has_an_example() -> None:
    kinds = {yaml.safe_load(path.read_text())["kind"] for path in REWARDS}
    trained = {"linear", "heads", "independent", "lora", "laplace", "dropout", "distilled"}
    assert kinds == trained | {"judge", "adaptive_judge", "criteria", "panel", "mixed"}
