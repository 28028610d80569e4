"""Settings of an engine's run, and what is refused of verl's own."""

from typing import Any

import pytest

from surefoot.engines.requirements import ESTIMATORS, check_algorithm
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
