"""Settings of an engine's run, and what is refused of the engines' own."""

from types import SimpleNamespace
from typing import Any

import pytest

from surefoot.engines.requirements import ESTIMATORS, OPENRLHF_ESTIMATORS, check_algorithm, check_openrlhf
from surefoot.engines.settings import EngineSettings
from surefoot.errors import ConfigError

RIGHT = {
    "use_kl_in_reward": True,
    "kl_penalty": "kl",
    "adv_estimator": "gae",
    "kl_ctrl": {"type": "fixed", "kl_coef": 0.1},
    "norm_adv_by_std_in_grpo": False,
}


@pytest.mark.parametrize(
    ("section", "said"),
    [
        ({"presett": "mean"}, r"unknown setting 'surefoot\.presett'.*preset"),
        ({"preset": "literal"}, "has no place"),
        ({"preset": "rvpo"}, "whole group"),
        ({"anchor": "group"}, "file or calibration"),
        ({"texts": "html"}, "messages or text"),
        ({"half_precision": "ignore"}, "warn or refuse"),
        ({"batch_rows": 0}, "at least 1"),
        ({"reference_variance": -1.0}, "positive"),
        ({"target_kl": 0.0}, "target_kl"),
        ({"weight_floor": 2.0}, "weight_floor"),
        ({"source": "a", "url": "http://127.0.0.1:1"}, "both given"),
        ({"batch_rows": "many"}, "batch_rows"),
    ],
)
def test_refused(section: Any, said: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        EngineSettings.from_section(section)


def test_read() -> None:
    read = EngineSettings.from_section(
        {"source": "runs/x", "preset": "variance_aware_lcb", "aggregate_parameter": 2.0}
    )
    assert (read.objective.aggregate, read.objective.parameter, read.objective.weights) == ("lcb", 2.0, "variance")
    assert EngineSettings.from_section(None) == EngineSettings()


def test_another_objective_is_not_resumed() -> None:
    held = EngineSettings(preset="variance_aware").fixed
    EngineSettings(preset="variance_aware", batch_rows=7).check_resumed(held)
    with pytest.raises(ConfigError, match=r"surefoot\.preset: variance_aware, and this run has mean"):
        EngineSettings(preset="mean").check_resumed(held)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_right_settings_pass(estimator: Any) -> None:
    check_algorithm(RIGHT | {"adv_estimator": estimator}, {"use_kl_loss": False}, EngineSettings())


@pytest.mark.parametrize(
    ("algorithm", "actor", "said"),
    [
        ({"use_kl_in_reward": False}, {}, "use_kl_in_reward must be true"),
        ({"kl_penalty": "k3"}, {}, "kl_penalty must be kl"),
        ({"adv_estimator": "remax"}, {}, "adv_estimator must be one of"),
        ({"kl_ctrl": {"type": "adaptive"}}, {}, r"surefoot\.target_kl"),
        ({}, {"use_kl_loss": True}, "second, unweighted KL"),
        ({"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": True}, {}, "spread undoes"),
    ],
)
def test_wrong_settings_are_refused(algorithm: Any, actor: Any, said: Any) -> None:
    with pytest.raises(ConfigError, match=said):
        check_algorithm(RIGHT | algorithm, actor, EngineSettings())


def test_spread_is_allowed_without_weights() -> None:
    grpo = RIGHT | {"adv_estimator": "grpo", "norm_adv_by_std_in_grpo": True}
    check_algorithm(grpo, {}, EngineSettings(preset="mean"))


def openrlhf_arguments(**changes: Any) -> SimpleNamespace:
    """OpenRLHF's arguments that are checked, by their dotted names; its defaults where nothing is wrong with them."""
    values = {
        "algo.kl.use_loss": False,
        "algo.kl.estimator": "k1",
        "algo.kl.init_coef": 0.01,
        "algo.kl.target": None,
        "algo.advantage.estimator": "gae",
        "train.async_enable": False,
        "train.agent_func_path": None,
        "reward.remote_url": "http://127.0.0.1:8000/get_reward",
        "reward.clip_range": None,
        "reward.overlong_buffer_len": None,
        "reward.stop_properly_penalty_coef": None,
    }
    args = SimpleNamespace()
    for name, value in (values | changes).items():
        *parents, last = name.split(".")
        place = args
        for parent in parents:
            place.__dict__.setdefault(parent, SimpleNamespace())
            place = getattr(place, parent)
        setattr(place, last, value)
    return args


@pytest.mark.parametrize("estimator", OPENRLHF_ESTIMATORS)
def test_right_arguments_of_openrlhf_pass(estimator: str) -> None:
    check_openrlhf(openrlhf_arguments(**{"algo.advantage.estimator": estimator}))
    check_openrlhf(openrlhf_arguments(**{"reward.remote_url": None, "train.agent_func_path": "agent.py"}))


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("algo.kl.use_loss", True, "moves the KL into the loss"),
        ("algo.kl.estimator", "k3", "must be k1, got k3"),
        ("algo.kl.init_coef", 0.0, "must be positive, got 0"),
        ("algo.kl.target", 6.0, r"--surefoot\.target_kl"),
        ("algo.advantage.estimator", "dr_grpo", "use rloo"),
        ("train.async_enable", True, "isn't supported"),
        ("reward.remote_url", None, "--reward.remote_url is missing"),
        ("reward.clip_range", [-1000.0, 1000.0], "--reward.clip_range must be left out"),
        ("reward.overlong_buffer_len", 16.0, "--reward.overlong_buffer_len must be left out"),
        ("reward.stop_properly_penalty_coef", 0.0, "--reward.stop_properly_penalty_coef must be left out"),
    ],
)
def test_wrong_arguments_of_openrlhf_are_refused(name: str, value: Any, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_openrlhf(openrlhf_arguments(**{name: value}))
