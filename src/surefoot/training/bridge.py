"""What touches the private methods of TRL's RLOO and GRPO (TRL 1.16 to 2).

`log_ratio.py` watches their log-probabilities, `reference.py` samples with them, `anchored_rewards.py` calibrates the
reward source and keeps the anchors; `dpo_bridge.py` is DPO's. What is added to the reward is `maths/penalty.py`'s.

How the penalty gets in, without copying a method of TRL's:

1. `_generate_and_score_completions` computes the policy's and the reference's log-probabilities through
   `_get_per_token_logps_and_entropies` and then calls `_calculate_rewards`. The first is watched (`log_ratio.py`), so
   that the second has the sequence log-ratio of exactly the tokens that were sampled.
2. `_calculate_rewards` gathers one column per reward function. Ours are pseudo reward functions that hand over columns
   computed once per batch: the reward r̃ and the surcharge, with reward weight 1, and the variance and the weight, with
   reward weight 0, so that TRL logs them in order over all processes.
3. RLOO itself subtracts β ln π/π₀ from the reward: its surcharge is −β(penalty − ln π/π₀), and exactly 0 with w = 1,
   so the trajectory is TRL's own. GRPO has a KL of its own in the loss: with weighting on it is switched off there and
   the surcharge is −β·penalty, whole; with weighting off it stays and there is no surcharge.

`_check_advantages` then recomputes the advantages from their definition and fails loudly if TRL's differ.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import gather
from transformers import TrainerState

from surefoot.errors import ConfigError
from surefoot.files import read_json, write_json
from surefoot.maths.objectives import Objective
from surefoot.rewards.source import RewardSource
from surefoot.training import metrics
from surefoot.training.anchored_rewards import ANCHORS, AnchoredRewards
from surefoot.training.checkpoints import finished_epochs, last_whole_checkpoint
from surefoot.training.kl_controller import KLController
from surefoot.training.log_ratio import SampledLogRatio
from surefoot.training.policy_card import complete_card, policy_card
from surefoot.training.shaping import ShapedRewards, shape_rewards
from surefoot.types import Anchors, Calibration

if TYPE_CHECKING:  # mixins: the methods that they extend are those of TRL's trainers
    from trl import RLOOTrainer as TrlTrainer
else:
    TrlTrainer = object

__all__ = ["STATE", "PenaltyBridge"]

STATE = "surefoot_state.json"
_SUMMED = ("reward", "surcharge")
_SHOWN = ("variance", "weight")


class PenaltyBridge(SampledLogRatio, AnchoredRewards, TrlTrainer):
    """Mixin that puts the variance-aware penalty into TRL's RLOO or GRPO trainer.

    Args (keyword only, besides the trainer's own):
        source: where rewards and variances come from.
        monitors: functions of (prompts, completions) whose mean is logged as `monitor/{name}` and which never enter
            the reward, such as a held-out gold reward.
    """

    beta: float

    def __init__(
        self,
        *positional: Any,
        source: RewardSource,
        monitors: dict[str, Any] | None = None,
        extra_reward_funcs: list[Any] | None = None,
        **keywords: Any,
    ) -> None:
        self.source = source
        self.monitors = dict(monitors or {})
        self._columns = {name: metrics.RewardColumn(name) for name in (*_SUMMED, *_SHOWN)}
        self._idle = metrics.IdleWeights()
        self._shaped: ShapedRewards | None = None
        self._finished_epochs = 0
        self.last_shaped: ShapedRewards | None = None
        args = keywords["args"]
        self.objective: Objective = args.build_objective()
        extra = list(extra_reward_funcs or [])
        summed = [1.0, 1.0, 0.0, 0.0]
        args.reward_weights = summed + list(args.reward_weights or [1.0] * len(extra))
        super().__init__(*positional, reward_funcs=[*self._columns.values(), *extra], **keywords)
        self.controller = None if args.target_kl is None else KLController(args.target_kl, args.beta)
        self._clock = metrics.ShareOfTime()
        self.anchors = self._new_anchors()

    # --- what is said of the policy ----------------------------------------------------------------------------------

    def create_model_card(self, *positional: Any, **keywords: Any) -> None:
        """TRL's model card, with the source, the objective, the budget and the variance seen."""
        super().create_model_card(*positional, **keywords)
        if self.accelerator.is_main_process:
            card = policy_card(self.source, self.objective, self.args.target_kl, self.beta, self.state.log_history)
            complete_card(self.args.output_dir, "\n" + card)

    # --- before training: calibration on the reference policy ---------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Calibrate on the reference policy's own completions if need be, then train (public signature as in TRL)."""
        if self.objective.weights == "variance":
            metrics.warn_if_uninformative(self.source)
        self._warn_of_rounding()
        checkpoint = self._resolve_checkpoint(resume_from_checkpoint)
        self._finished_epochs = 0 if checkpoint is None else finished_epochs(checkpoint)
        if checkpoint is not None:
            self._restore(checkpoint)
            if self._is_finished(checkpoint):
                return None
        elif self.source.calibration is None or self.objective.needs_variance:
            self.calibrate_on_reference()
        return super().train(resume_from_checkpoint=checkpoint, **keywords)

    # --- where the KL is ---------------------------------------------------------------------------------------------

    @property
    def _penalty_in_reward(self) -> bool:
        return self.native_kl == "reward" or self.objective.weights != "none" or self.objective.form == "literal"

    @property
    def _ratio_needed(self) -> bool:
        return self.beta != 0.0 and (self._penalty_in_reward or self.controller is not None)

    @property
    def _beta_in_reward(self) -> float:
        return self.beta if self._penalty_in_reward else 0.0

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        if self.native_kl == "reward" or not self._penalty_in_reward:
            return super()._compute_loss(model, inputs)
        beta, self.beta = self.beta, 0.0  # the loss has no KL of its own then: the reward holds it
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self.beta = beta

    # --- each generation batch --------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        with self._watching():
            output = super()._generate_and_score_completions(inputs)
        shaped, self._shaped = self._shaped, None
        if shaped is None:
            raise RuntimeError("TRL did not call `_calculate_rewards`; this version of TRL is not supported")
        self._check_advantages(shaped, output["advantages"])
        self.last_shaped = shaped
        if self.controller is not None and self.model.training:
            kl, share = float(shaped.sampled_ratio.nanmean()), metrics.penalty_share(shaped, self.beta)
            self.beta = self.controller.update(kl, share)
        return output

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        marked = self._marked(completions, completion_ids_list)
        shaped, scores, anchors = self._shape_batch(inputs, prompts, marked, completion_ids_list)
        mine = slice(
            self.accelerator.process_index * len(prompts), (self.accelerator.process_index + 1) * len(prompts)
        )
        own = self.beta if self.native_kl == "loss" and self._penalty_in_reward else 0.0
        for name, values in metrics.columns(shaped, own).items():
            self._columns[name].values = values[mine].tolist()
        self._log_batch(shaped, scores, anchors, prompts, marked)
        rewards = super()._calculate_rewards(inputs, prompts, completions, completion_ids_list)
        self._shaped = metrics.with_extra_rewards(shaped, rewards[:, len(self._columns) :], self._extra_weights())
        rewards[~shaped.reward.isfinite().to(rewards.device)] = torch.nan  # unscored stays unscored
        return rewards

    def _extra_weights(self) -> torch.Tensor:
        weights: torch.Tensor = self.reward_weights[len(self._columns) :]
        return weights

    def _shape_batch(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> tuple[ShapedRewards, torch.Tensor, Anchors | None]:
        """Score the local completions, gather, and apply the objective; returns scores and anchors of all rows too."""
        device = self.accelerator.device
        scores = gather(self.source.score(prompts, completions).to(device)).cpu()
        sampled = self._log_ratio() if self._ratio_needed else torch.zeros(len(prompts), device=device)
        masked = sampled.masked_fill(self._masked(completion_ids_list), 0.0)
        sampled, log_ratio = gather(sampled), gather(masked)
        size = self._group_size()
        groups = torch.arange(len(log_ratio)) // size
        anchors = self._anchors_of_batch(self._known_anchors(inputs), scores, groups)
        shaped = shape_rewards(
            self.source, self.objective, scores, anchors, groups, log_ratio.cpu(), self._beta_in_reward
        )
        return replace(shaped, sampled_ratio=sampled.to(shaped.log_ratio)), scores, anchors

    def _masked(self, completion_ids: list[list[int]]) -> torch.Tensor:
        """(batch,) whether TRL leaves a completion out of its loss, because it was cut off."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}
        cut = [self.args.mask_truncated_completions and ids[-1] not in ends for ids in completion_ids]
        return torch.tensor(cut, device=self.accelerator.device)

    def _group_size(self) -> int:
        size: int = self.num_generations if self.model.training else self.num_generations_eval
        return size

    def _log_batch(
        self, shaped: ShapedRewards, scores: torch.Tensor, anchors: Anchors | None, prompts: Any, completions: Any
    ) -> None:
        raw = self.source.members_of(scores)
        values = metrics.summary(shaped, self.objective, self.beta, raw, ratio_known=self._ratio_needed)
        parts = self.source.variance_parts(scores, anchors)
        values |= {f"reward/variance_{name}": value for name, value in parts.items()}
        if self.anchors is not None:
            values |= {"anchors/prompts": float(len(self.anchors.store)), "anchors/share_of_time": self._clock.share}
        self._idle.see(values)
        for name, value in values.items():
            self._log_metric(name, value)
        for name, function in self.monitors.items():
            judged = function(prompts, completions)
            self._log_metric(f"monitor/{name}", sum(judged) / len(judged))

    def _check_advantages(self, shaped: ShapedRewards, advantages: torch.Tensor) -> None:
        """Compare TRL's advantages with the objective's own (float64): native KL once, surcharge once."""
        size = self._group_size()
        if size < 2:
            return
        expected = self._expected_advantages(shaped.total(self._beta_in_reward), size)
        start = self.accelerator.process_index * len(advantages)
        mine = expected[start : start + len(advantages)]
        gap = float((mine - advantages.cpu().to(mine)).abs().max())
        if not gap <= 1e-4 * metrics.magnitude(shaped, expected, self._beta_in_reward):
            raise RuntimeError(
                f"the trainer's advantages differ from the objective's by {gap:.3g}: TRL's own KL entered "
                "differently, or the penalty did not; this version of TRL is not supported"
            )

    def _expected_advantages(self, total: torch.Tensor, size: int) -> torch.Tensor:
        """(batch,) the advantages that the objective asks for, of all processes' rows."""
        raise NotImplementedError

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.accelerator.is_main_process:
            calibration = self.source.calibration
            state = {
                "beta": self.beta,
                "controller": None if self.controller is None else self.controller.state_dict(),
                "calibration": None if calibration is None else calibration.to_dict(),
                "anchor": self.args.anchor,
            }
            write_json(folder / STATE, state)
            if self.anchors is not None:
                self.anchors.store.save(folder / ANCHORS)
        super()._save_checkpoint(model, trial)

    def _resolve_checkpoint(self, resume: str | bool | None) -> str | None:
        if not resume:
            return None
        if isinstance(resume, str):
            return resume
        latest = last_whole_checkpoint(self.args.output_dir)
        if latest is None:
            raise ConfigError(f"there is no whole checkpoint in {self.args.output_dir} to resume from")
        return latest

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's sampler, past the epochs that a resumed run has finished.

        It draws one permutation after the other from its own generator, which would start over: the batches of the
        resumed epoch would be the first epoch's.
        """
        sampler = super()._get_train_sampler(dataset)
        for _ in range(self._finished_epochs):
            next(iter(sampler), None)  # the permutation is drawn with the first index
        return sampler

    def _is_finished(self, checkpoint: str) -> bool:
        """Load a checkpoint of the last step instead of resuming it: `Trainer` would train one step too many."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if not 0 < self.args.max_steps <= state.global_step:
            return False
        self._load_from_checkpoint(checkpoint)
        self.state = state
        return True

    def _restore(self, checkpoint: str) -> None:
        state = read_json(Path(checkpoint) / STATE)
        self.beta = state["beta"]
        if self.controller is not None and state["controller"] is not None:
            self.controller = KLController.from_state(state["controller"])
        if state["calibration"] is not None:
            self.source.calibration = Calibration.from_dict(state["calibration"])
        self._restore_anchors(Path(checkpoint), state.get("anchor", "group"))
