"""The objective in verl 0.9: trainers, a reward manager and their registration. The one file that imports verl.

verl loads this module through the entry point `verl.plugins` in each of its processes, and swallows what it raises.
Importing it registers the reward manager `surefoot` and a trainer for each of verl's V1 trainers: `surefoot_sync`,
`surefoot_colocate_async` and `surefoot_separate_async` (`trainer.v1.trainer_mode`). verl's own `apply_kl_penalty`
reads β from a KL controller, and the trainers give it one whose β is a column, β·w of each row. Settings are in the
section `surefoot` of verl's configuration (docs/engines.md).
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, ClassVar

import torch
import transfer_queue as tq
import verl.models.transformers.monkey_patch
import verl.utils.model
from omegaconf import DictConfig, OmegaConf, open_dict
from tensordict import NonTensorData
from verl import DataProto
from verl.experimental.reward_loop.reward_manager import get_reward_manager_cls
from verl.experimental.reward_loop.reward_manager import register as register_reward_manager
from verl.experimental.reward_loop.reward_manager.base import RewardManagerBase
from verl.trainer.ppo.v1 import (
    PPOTrainerColocateAsync,
    PPOTrainerSeparateAsync,
    PPOTrainerSync,
    get_trainer_cls,
    register_trainer,
)

from surefoot.engines.micro_batches import MicroBatches
from surefoot.engines.requirements import check_algorithm
from surefoot.engines.row_scorer import RowReward, RowScorer, as_texts
from surefoot.engines.row_weights import VARIANCE, WEIGHT, RowWeights
from surefoot.engines.settings import EngineSettings
from surefoot.engines.token_rewards import (
    RowCoefficient,
    batch_share,
    check_token_rewards,
    expected_token_rewards,
    sequence_log_ratio,
)
from surefoot.errors import ConfigError
from surefoot.files import read_json, write_json
from surefoot.types import Text

__all__ = [
    "MANAGER",
    "SurefootColocateAsync",
    "SurefootRewardManager",
    "SurefootSeparateAsync",
    "SurefootSync",
    "WeightedPenalty",
    "check_registered",
]

logger = logging.getLogger(__name__)

MANAGER = "surefoot"
"""Name of the reward manager, for reward.reward_manager.name."""
STATE = "surefoot.json"
"""What a checkpoint holds beside verl's own: β, the controller, and the settings that must stay the same."""
_READ = ["rm_scores", "old_log_probs", "ref_log_prob", "response_mask", "token_level_rewards", "uid"]


class WeightedPenalty:
    """Mixin for verl's V1 trainers: each row's KL in the reward is multiplied by the row's weight.

    After every batch the token rewards that verl made are compared with r − β·w·KL, computed apart; a difference stops
    the run. Then β adapts, if `surefoot.target_kl` is set.

    Attributes:
        verl_mode: name of the verl trainer beneath, which verl's own code asks for.
        own_mode: name under which this class is registered.
    """

    verl_mode: ClassVar[str]
    own_mode: ClassVar[str]
    config: DictConfig
    kl_ctrl_in_reward: RowCoefficient
    global_steps: int

    def __init__(self, config: DictConfig) -> None:
        check_registered()
        self._settings = settings_of(config)
        algorithm, actor = _plain(config.algorithm), _plain(config.actor_rollout_ref.actor)
        check_algorithm(algorithm, actor, self._settings)
        _check_rewards(config)
        with open_dict(config):
            # verl chooses its replay buffer, and whether it saves unfinished prompts, by the name of its own trainer.
            config.trainer.v1.trainer_mode = self.verl_mode
            config.surefoot_trainer = self.own_mode  # the reward manager looks for it
        super().__init__(config)  # type: ignore[call-arg]
        self.kl_ctrl_in_reward = RowCoefficient(float(config.algorithm.kl_ctrl.kl_coef), self._settings.target_kl)
        self._weights = RowWeights(self._settings.objective, self._settings.reference_variance)
        self._told_of_half = False

    def _compute_advantage(self, batch: Any, metrics: dict[str, Any]) -> Any:
        weight, beta = self._weights_of(batch), self.kl_ctrl_in_reward.beta
        self.kl_ctrl_in_reward.set_weights(weight)
        try:
            batch = super()._compute_advantage(batch, metrics)  # type: ignore[misc]
        finally:
            self.kl_ctrl_in_reward.set_weights(None)
        metrics["actor/reward_kl_penalty_coeff"] = beta  # verl put the column there
        self._check_batch(batch, weight, beta, metrics)
        return batch

    def _weights_of(self, batch: Any) -> torch.Tensor:
        """(batch,) weights, in the order of the batch's keys."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=["extra_fields"])
        given = [row.get("reward_extra_info", {}) for row in _rows(data["extra_fields"])]
        return self._weights(batch.keys, given, _real(batch))

    def _check_batch(self, batch: Any, weight: torch.Tensor, beta: float, metrics: dict[str, Any]) -> None:
        """Compare the token rewards with their definition, log, and adapt β."""
        data = tq.kv_batch_get(keys=batch.keys, partition_id=batch.partition_id, select_fields=_READ)
        prompts = _rows(data.pop("uid"))
        held = data.to_padded_tensor()
        self._tell_of_half(held["old_log_probs"].dtype)
        kl = held["old_log_probs"], held["ref_log_prob"], held["response_mask"]
        expected = expected_token_rewards(held["rm_scores"], *kl, weight, beta)
        metrics["surefoot/check/max_error"] = check_token_rewards(
            held["token_level_rewards"], expected, held["rm_scores"]
        )
        real = torch.tensor(_real(batch))
        ratio = sequence_log_ratio(*kl)[real]
        own = [prompt for prompt, counts in zip(prompts, real.tolist(), strict=True) if counts]
        share = batch_share(held["rm_scores"][real], ratio, weight[real], beta, own)
        metrics |= self._figures(ratio, weight[real], beta, share)
        self.kl_ctrl_in_reward.learn(float(ratio.mean()), share)

    def _figures(self, ratio: torch.Tensor, weight: torch.Tensor, beta: float, share: float) -> dict[str, float]:
        objective, s2 = self._settings.objective, self._weights.reference_variance
        return ({} if s2 is None else {"surefoot/reference_variance": s2}) | {
            "surefoot/beta": beta,
            "surefoot/sequence_kl": float(ratio.mean()),
            "surefoot/penalty": float((beta * weight * ratio).mean()),
            "surefoot/penalty_share": share,
            "surefoot/weight/mean": float(weight.mean()),
            "surefoot/weight/at_floor": float((weight <= objective.weight_floor).double().mean()),
            "surefoot/weight/at_ceiling": float((weight >= objective.weight_ceiling).double().mean()),
        }

    def _tell_of_half(self, dtype: torch.dtype) -> None:
        if dtype not in (torch.bfloat16, torch.float16) or self._told_of_half:
            return
        self._told_of_half = True
        said = (
            f"log-probabilities are {dtype}: rounding adds noise to each token's KL, to the penalty and to the KL "
            "that β follows. In FSDP set mixed_precision: {param_dtype: fp32, reduce_dtype: fp32, buffer_dtype: fp32} "
            "in fsdp_config of the actor and of the reference"
        )
        if self._settings.half_precision == "refuse":
            raise ConfigError(f"{said}, or surefoot.half_precision: warn")
        logger.warning(said)

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self) -> None:
        folder = Path(self.config.trainer.default_local_dir) / f"global_step_{self.global_steps}"
        folder.mkdir(parents=True, exist_ok=True)
        # Before verl's own, which ends by naming the checkpoint as the latest.
        held = {"settings": self._settings.fixed, "reference_variance": self._weights.reference_variance}
        write_json(folder / STATE, self.kl_ctrl_in_reward.state_dict() | held)
        super()._save_checkpoint()  # type: ignore[misc]

    def _load_checkpoint(self) -> None:
        super()._load_checkpoint()  # type: ignore[misc]
        if self.global_steps == 0:
            return
        trainer = self.config.trainer
        named = trainer.resume_from_path if trainer.resume_mode == "resume_path" else None
        folder = Path(named or Path(trainer.default_local_dir) / f"global_step_{self.global_steps}")
        state = read_json(folder / STATE)
        self._settings.check_resumed(state["settings"])
        self.kl_ctrl_in_reward.load_state_dict(state)
        self._weights.reference_variance = state["reference_variance"]


@register_trainer("surefoot_sync")
class SurefootSync(WeightedPenalty, PPOTrainerSync):
    """verl's synchronous trainer with weights."""

    verl_mode, own_mode = "sync", "surefoot_sync"


@register_trainer("surefoot_colocate_async")
class SurefootColocateAsync(WeightedPenalty, PPOTrainerColocateAsync):
    """verl's asynchronous trainer on the rollout's GPUs, with weights."""

    verl_mode, own_mode = "colocate_async", "surefoot_colocate_async"


@register_trainer("surefoot_separate_async")
class SurefootSeparateAsync(WeightedPenalty, PPOTrainerSeparateAsync):
    """verl's asynchronous trainer on GPUs of its own, with weights."""

    verl_mode, own_mode = "separate_async", "surefoot_separate_async"


@register_reward_manager(MANAGER)
class SurefootRewardManager(RewardManagerBase):
    """Reward manager that asks a source of ours, in its process or behind `surefoot serve`.

    Beside the reward it returns `surefoot_mean`, `surefoot_variance` and `surefoot_member_k`, which verl keeps with
    the row and averages in validation. The trainer makes the weights.

    Raises:
        ConfigError: the run's trainer is verl's own, which would ignore the weights.
    """

    def __init__(
        self,
        config: DictConfig,
        tokenizer: Any,
        compute_score: Any,
        reward_router_address: str | None = None,
        reward_model_tokenizer: Any = None,
    ) -> None:
        super().__init__(config, tokenizer, compute_score)
        if config.get("surefoot_trainer") not in _TRAINERS:
            raise ConfigError(
                f"trainer.v1.trainer_mode is {config.trainer.v1.trainer_mode}, verl's own trainer, which ignores "
                f"weights; set one of {', '.join(_TRAINERS)}"
            )
        settings = settings_of(config)
        self._texts = settings.texts
        self._score: MicroBatches[tuple[Text, Text], RowReward] = MicroBatches(
            RowScorer.open(settings), settings.batch_rows
        )

    async def run_single(self, data: DataProto) -> dict[str, Any]:
        """Reward of the last sequence of one sample, as verl's other managers have it."""
        row = data[-1:][0]
        ids = row.batch["responses"]
        ids = ids[: int(row.batch["attention_mask"][-ids.shape[-1] :].sum())]
        finished = len(ids) > 0 and int(ids[-1]) == self.tokenizer.eos_token_id
        answer = self.tokenizer.decode(ids, skip_special_tokens=True)
        messages = [dict(message) for message in row.non_tensor_batch["raw_prompt"]]
        reward = await self._score(as_texts(messages, answer, finished, self._texts))
        return {"reward_score": reward.reward, "reward_extra_info": reward.fields()}


_TRAINERS = {c.own_mode: c for c in (SurefootSync, SurefootColocateAsync, SurefootSeparateAsync)}


for _module in (verl.models.transformers.monkey_patch, verl.utils.model):
    # verl imports a value head from TRL wherever TRL is installed; TRL 1.16 has none any more, so it must not ask.
    _module.is_trl_available = lambda: False


def check_registered() -> None:
    """Assert that verl knows the trainers and the reward manager of this module under their names.

    Raises:
        ConfigError: another class has one of the names.
    """
    for name, ours in _TRAINERS.items():
        if get_trainer_cls(name) is not ours:
            raise ConfigError(f"verl's trainer '{name}' is {get_trainer_cls(name)}, not surefoot's")
    if get_reward_manager_cls(MANAGER) is not SurefootRewardManager:
        raise ConfigError(f"verl's reward manager '{MANAGER}' is {get_reward_manager_cls(MANAGER)}, not surefoot's")


def settings_of(config: DictConfig) -> EngineSettings:
    """The section `surefoot` of verl's configuration, checked."""
    return EngineSettings.from_section(_plain(config.get("surefoot")))


def _plain(section: Any) -> dict[str, Any]:
    return {} if section is None else dict(OmegaConf.to_container(section, resolve=True))


def _check_rewards(config: DictConfig) -> None:
    """Refuse a reward that has no weights, before anything is loaded."""
    reward = config.reward
    if reward.reward_manager.name != MANAGER and not reward.custom_reward_function.path:
        raise ConfigError(
            f"reward.reward_manager.name must be {MANAGER}, got {reward.reward_manager.name}; or give "
            f"reward.custom_reward_function, whose dict holds '{VARIANCE}' or '{WEIGHT}' beside 'score'"
        )
    if reward.reward_model.enable and not reward.custom_reward_function.path:
        raise ConfigError(
            "reward.reward_model.enable must be false: verl's own client of a reward model drops variances"
        )


def _real(batch: Any) -> list[bool]:
    """Whether each row is a sample; verl fills up a batch with rows that have no tokens."""
    return [not tag.get("is_padding", False) for tag in batch.tags]


def _rows(column: Any) -> list[Any]:
    """Rows of a column that holds no tensors, which TensorDict gives as a list of values or of wrapped values."""
    return [row.data if isinstance(row, NonTensorData) else row for row in column]
