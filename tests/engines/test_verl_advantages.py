"""verl's own `_compute_advantage` with weights: token rewards, advantages, and what is refused. No Ray is started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch

from surefoot.engines.requirements import ESTIMATORS
from surefoot.engines.row_weights import RowWeights
from surefoot.engines.settings import EngineSettings
from surefoot.engines.token_rewards import RowCoefficient
from surefoot.errors import ConfigError, DataError, RunError
from surefoot.maths.advantages import group_relative, leave_one_out

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(find_spec("verl") is None, reason="needs verl 0.9: `make engines` installs it and runs this"),
]

LENGTHS = [5, 3, 8, 1, 6, 4, 7, 2]
ROWS = len(LENGTHS)
BETA = 0.5


class Keys:
    """What verl passes around for a batch whose columns are in TransferQueue."""

    def __init__(self) -> None:
        self.keys = [f"u{i // 2}_{i % 2}_0" for i in range(ROWS)]
        self.partition_id = "train"
        self.tags: list[dict[str, Any]] = [{}] * ROWS

    def __len__(self) -> int:
        return ROWS


class Queue:
    """TransferQueue's two calls on columns in memory.

    Args:
        weights: of the rows; a row whose weight is None has none.
    """

    def __init__(self, weights: Sequence[float | None], dtype: torch.dtype = torch.float32) -> None:
        generator = torch.Generator().manual_seed(0)
        log_probs, reference, values = ([-torch.rand(n, generator=generator) for n in LENGTHS] for _ in range(3))
        self.reward = torch.randn(ROWS, generator=generator)
        extra = [{} if w is None else {"surefoot_weight": w} for w in weights]
        self.columns: dict[str, list[Any]] = {
            "uid": [f"u{i // 2}" for i in range(ROWS)],
            "response_mask": [torch.ones(n, dtype=torch.int64) for n in LENGTHS],
            "rm_scores": [torch.cat([torch.zeros(n - 1), self.reward[i : i + 1]]) for i, n in enumerate(LENGTHS)],
            "old_log_probs": [row.to(dtype) for row in log_probs],
            "ref_log_prob": [row.to(dtype) for row in reference],
            "values": values,
            "rollout_log_probs": log_probs,
            "extra_fields": [{"reward_extra_info": held} for held in extra],
        }

    def kv_batch_get(self, keys: Any, partition_id: str, select_fields: list[str]) -> Any:
        from verl.utils.tensordict_utils import list_of_dict_to_tensordict

        names = [name for name in select_fields if name in self.columns]
        return list_of_dict_to_tensordict([{name: self.columns[name][i] for name in names} for i in range(ROWS)])

    def kv_batch_put(self, keys: Any, partition_id: str, fields: Any, **_: Any) -> Any:
        for name, value in fields.items():
            self.columns[name] = list(value.unbind())
        return Keys()


def config_of(estimator: str, **changes: Any) -> Any:
    from omegaconf import OmegaConf

    algorithm = {
        "use_kl_in_reward": True,
        "kl_penalty": "kl",
        "adv_estimator": estimator,
        "gamma": 1.0,
        "lam": 0.95,
        "norm_adv_by_std_in_grpo": False,
        "use_pf_ppo": False,
        "rollout_correction": None,
    }
    return OmegaConf.create({"algorithm": algorithm | changes, "actor_rollout_ref": {"rollout": {"n": 2}}})


def trainer_of(cls: Any, estimator: str, settings: EngineSettings) -> Any:
    """A trainer that has what `_compute_advantage` reads, without workers."""
    from verl.trainer.ppo.core_algos import FixedKLController

    trainer = cls.__new__(cls)
    trainer.config = config_of(estimator)
    trainer._settings, trainer._told_of_half = settings, False
    trainer._weights = RowWeights(settings.objective, settings.reference_variance)
    ours = hasattr(cls, "own_mode")
    trainer.kl_ctrl_in_reward = RowCoefficient(BETA, settings.target_kl) if ours else FixedKLController(BETA)
    return trainer


def advantages(
    monkeypatch: pytest.MonkeyPatch, queue: Queue, cls: Any, estimator: str, settings: EngineSettings | None = None
) -> tuple[Queue, dict[str, Any], Any]:
    """Run one batch; the queue then holds token rewards and advantages."""
    import verl.trainer.ppo.v1.trainer_base as base

    import surefoot.engines.verl as ours

    for module in (base, ours):
        monkeypatch.setattr(module.tq, "kv_batch_get", queue.kv_batch_get)
        monkeypatch.setattr(module.tq, "kv_batch_put", queue.kv_batch_put)
    trainer = trainer_of(cls, estimator, settings or EngineSettings())
    figures: dict[str, Any] = {}
    trainer._compute_advantage(Keys(), figures)
    return queue, figures, trainer


def trainers() -> tuple[Any, Any]:
    from verl.trainer.ppo.v1 import PPOTrainerSync

    from surefoot.engines.verl import SurefootSync

    return PPOTrainerSync, SurefootSync


WEIGHTS = [0.3, 2.0, 1.0, 0.1, 5.0, 0.7, 1.3, 10.0]


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_token_rewards_are_weighted(monkeypatch: Any, estimator: Any) -> None:
    _, ours = trainers()
    queue, figures, _ = advantages(monkeypatch, Queue(WEIGHTS), ours, estimator)
    for i, weight in enumerate(WEIGHTS):
        kl = queue.columns["old_log_probs"][i] - queue.columns["ref_log_prob"][i]
        expected = queue.columns["rm_scores"][i] - BETA * weight * kl
        torch.testing.assert_close(queue.columns["token_level_rewards"][i], expected, rtol=0, atol=1e-6)
    assert figures["surefoot/check/max_error"] <= 1e-6
    assert figures["actor/reward_kl_penalty_coeff"] == figures["surefoot/beta"] == BETA
    assert figures["surefoot/weight/at_floor"] == figures["surefoot/weight/at_ceiling"] == 1 / 8


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_weights_of_one_are_verls_own(monkeypatch: Any, estimator: Any) -> None:
    plain, ours = trainers()
    theirs, _, _ = advantages(monkeypatch, Queue([1.0] * ROWS), plain, estimator)
    same, _, _ = advantages(monkeypatch, Queue([1.0] * ROWS), ours, estimator)
    other, _, _ = advantages(monkeypatch, Queue(WEIGHTS), ours, estimator)
    for name in ("token_level_rewards", "advantages", "returns"):
        pairs = list(zip(same.columns[name], theirs.columns[name], strict=True))
        assert all(torch.equal(mine, verls) for mine, verls in pairs)
    assert any(
        float((mine - verls).abs().max()) > 0.1
        for mine, verls in zip(other.columns["advantages"], theirs.columns["advantages"], strict=True)
    )


@pytest.mark.parametrize(("estimator", "definition"), [("rloo", leave_one_out), ("grpo", group_relative)])
def test_advantages_are_the_objectives(monkeypatch: Any, estimator: Any, definition: Any) -> None:
    _, ours = trainers()
    queue, _, _ = advantages(monkeypatch, Queue(WEIGHTS), ours, estimator)
    columns = queue.columns
    ratio = torch.stack(
        [(a - b).sum() for a, b in zip(columns["old_log_probs"], columns["ref_log_prob"], strict=True)]
    )
    expected = definition(queue.reward - BETA * torch.tensor(WEIGHTS) * ratio, 2)
    made = torch.stack([row[0] for row in columns["advantages"]])
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)
    assert all(bool((row == row[0]).all()) for row in columns["advantages"])


def test_budget_raises_beta(monkeypatch: Any) -> None:
    _, ours = trainers()
    _, figures, trainer = advantages(monkeypatch, Queue(WEIGHTS), ours, "rloo", EngineSettings(target_kl=0.01))
    assert figures["surefoot/beta"] == BETA
    assert (figures["surefoot/sequence_kl"] > 0.01) == (trainer.kl_ctrl_in_reward.beta > BETA)
    assert trainer.kl_ctrl_in_reward.beta != BETA


@pytest.mark.parametrize("missing", [None, 0.0, float("nan"), float("inf")])
def test_a_row_needs_a_weight(monkeypatch: Any, missing: Any) -> None:
    _, ours = trainers()
    with pytest.raises(DataError, match=r"row u1_1_0 came with surefoot_"):
        advantages(monkeypatch, Queue([*WEIGHTS[:3], missing, *WEIGHTS[4:]]), ours, "gae")


def test_another_penalty_stops_the_run(monkeypatch: Any) -> None:
    import verl.trainer.ppo.v1.trainer_base as base

    _, ours = trainers()

    def unweighted(data: Any, kl_ctrl: Any, kl_penalty: Any) -> Any:
        data.batch["token_level_rewards"] = data.batch["token_level_scores"]
        return data, {"actor/reward_kl_penalty_coeff": kl_ctrl.value}

    monkeypatch.setattr(base, "apply_kl_penalty", unweighted)
    with pytest.raises(RunError, match="differ from r − β·w·KL"):
        advantages(monkeypatch, Queue(WEIGHTS), ours, "gae")


def test_half_precision_is_told_or_refused(monkeypatch: Any, caplog: Any) -> None:
    _, ours = trainers()
    _, figures, _ = advantages(monkeypatch, Queue(WEIGHTS, torch.bfloat16), ours, "gae")
    assert "log-probabilities are torch.bfloat16" in caplog.text
    assert figures["surefoot/check/max_error"] <= 1e-6
    with pytest.raises(ConfigError, match="bfloat16"):
        advantages(monkeypatch, Queue(WEIGHTS, torch.bfloat16), ours, "gae", EngineSettings(half_precision="refuse"))


def test_registered() -> None:
    from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
    from verl.trainer.ppo.v1 import get_trainer_cls
    from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY

    import surefoot.engines.verl as ours

    ours.check_registered()
    assert get_reward_manager_cls("surefoot") is ours.SurefootRewardManager
    for mode in ("sync", "colocate_async", "separate_async"):
        assert issubclass(get_trainer_cls(f"surefoot_{mode}"), get_trainer_cls(mode))
    held = TRAINER_REGISTRY["surefoot_sync"]
    try:
        TRAINER_REGISTRY["surefoot_sync"] = get_trainer_cls("sync")
        with pytest.raises(ConfigError, match="not surefoot's"):
            ours.check_registered()
    finally:
        TRAINER_REGISTRY["surefoot_sync"] = held


def test_entry_point_registers() -> None:
    """verl loads the installed package's plugin by itself, in a process that imports verl alone."""
    code = "import verl, verl.trainer.ppo.v1 as v1; print(v1.get_trainer_cls('surefoot_sync').__module__)"
    environment = {name: value for name, value in os.environ.items() if name != "VERL_USE_EXTERNAL_MODULES"}
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, timeout=600)
    assert run.stdout.split()[-1:] == ["surefoot.engines.verl"], run.stderr[-2000:]


def test_verls_own_trainer_is_refused() -> None:
    from omegaconf import OmegaConf

    from surefoot.engines.verl import SurefootRewardManager

    config = OmegaConf.create({"trainer": {"v1": {"trainer_mode": "sync"}}, "surefoot": {}})
    with pytest.raises(ConfigError, match="trainer_mode is sync, verl's own trainer, which ignores weights"):
        SurefootRewardManager(config, None, None)
