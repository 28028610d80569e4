"""The one file that touches TRL's private methods (TRL 1.16 to 2).

How the penalty gets in, without an extra forward and without copying a method of TRL's:

1. `_generate_and_score_completions` computes the policy's and the reference's log-probabilities through
   `_get_per_token_logps_and_entropies` and then calls `_calculate_rewards`. The first is watched, so that the second
   has the sequence log-ratio of exactly the tokens that were sampled.
2. `_calculate_rewards` gathers one column per reward function. Ours are pseudo reward functions that hand over columns
   computed once per batch: the reward r̃ and the surcharge −β(penalty − ln π/π₀), with reward weight 1, and the
   variance and the weight, with reward weight 0, so that TRL logs them in order over all processes.
3. TRL itself subtracts β ln π/π₀. With w = 1 the surcharge is exactly 0 and the trajectory is TRL's own.

`_check_advantages` then recomputes the advantages from their definition and fails loudly if TRL's differ.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import gather, is_peft_model
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, TrainerState

from surefoot.errors import ConfigError, ModelError, VarianceError
from surefoot.files import read_json, write_json
from surefoot.maths.objectives import Objective
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.training import metrics
from surefoot.training.kl_control import KLController
from surefoot.training.shaping import ShapedRewards, leave_one_out, shape_rewards
from surefoot.types import Calibration

__all__ = ["STATE", "PenaltyBridge", "RewardColumn"]

STATE = "surefoot_state.json"
_SUMMED = ("reward", "surcharge")
_SHOWN = ("variance", "weight")
_EVEN = 0.1
"""A spread of the weights below this is called nothing to work with."""


class RewardColumn:
    """A pseudo reward function: hands TRL one column that the bridge computed for this batch.

    Args:
        name: TRL logs the column under `rewards/{name}`.
    """

    def __init__(self, name: str) -> None:
        self.__name__ = name
        self.values: list[float] | None = None

    def __call__(self, prompts: list[Any], **_: Any) -> list[float]:
        if self.values is None or len(self.values) != len(prompts):
            raise RuntimeError(
                f"the column '{self.__name__}' was asked for outside a scored batch: this version of TRL calls its "
                "reward functions in a way surefoot doesn't know; please report it with the TRL version"
            )
        values, self.values = self.values, None
        return values


class PenaltyBridge:
    """Mixin that puts the variance-aware penalty into a TRL trainer whose KL is in the reward (RLOO).

    Args (keyword only, besides the trainer's own):
        source: where rewards and variances come from.
        monitors: functions of (prompts, completions) whose mean is logged as `monitor/{name}` and which never enter
            the reward, such as a held-out gold reward.
    """

    args: Any
    accelerator: Any
    model: Any
    state: Any
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
        self._columns = {name: RewardColumn(name) for name in (*_SUMMED, *_SHOWN)}
        self._watched: list[torch.Tensor] | None = None
        self._shaped: ShapedRewards | None = None
        self.last_shaped: ShapedRewards | None = None
        args = keywords["args"]
        self.objective: Objective = args.build_objective()
        extra = list(extra_reward_funcs or [])
        summed = [1.0, 1.0, 0.0, 0.0]
        args.reward_weights = summed + list(args.reward_weights or [1.0] * len(extra))
        super().__init__(*positional, reward_funcs=[*self._columns.values(), *extra], **keywords)  # type: ignore[call-arg]
        self.controller = None if args.target_kl is None else KLController(args.target_kl, args.beta)

    # --- before training: calibration on the reference policy ---------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, **keywords: Any) -> Any:
        """Calibrate on the reference policy's own completions if need be, then train (public signature as in TRL)."""
        checkpoint = self._resolve_checkpoint(resume_from_checkpoint)
        if checkpoint is not None:
            self._restore(checkpoint)
            if self._is_finished(checkpoint):
                return None
        elif self.source.calibration is None or self.objective.needs_variance:
            self.calibrate_on_reference()
        return super().train(resume_from_checkpoint=checkpoint, **keywords)  # type: ignore[misc]

    def calibrate_on_reference(self) -> Calibration:
        """Sample the policy, which is still the reference, and fit the source's constants on the scored completions.

        Uses `calibration_prompts` prompts × `num_generations` completions over all processes. The random state of
        training is left as it was, so that objectives can be compared on the same samples.

        Raises:
            VarianceError: the objective needs a variance and the source has none.
        """
        prompts, groups = self._calibration_prompts()
        devices = [self.accelerator.device] if self.accelerator.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            completions = self._sample_reference(prompts)
        scores = gather(self.source.score(prompts, completions).to(self.accelerator.device)).cpu()
        everyone = gather(torch.tensor(groups, device=self.accelerator.device)).cpu()
        calibration = self.source.calibrate(scores, everyone)
        if self.objective.needs_variance and calibration.reference_variance is None:
            raise VarianceError(
                f"preset '{self.args.preset}' needs a variance, but '{self.source.name}' has one member; give at "
                "least two members, or use preset='vanilla'"
            )
        if self.objective.weights == "variance" and calibration.notes["weight_cv"] < _EVEN:
            warnings.warn(
                f"the variance of '{self.source.name}' is nearly the same for all completions of the reference policy "
                f"(its coefficient of variation is {calibration.notes['weight_cv']:.2f}): weighting has next to "
                "nothing to work with, and this run will be much like preset='mean'",
                stacklevel=2,
            )
        return calibration

    def _calibration_prompts(self) -> tuple[list[Any], list[int]]:
        size, count = self.args.num_generations, self.args.calibration_prompts
        dataset: Dataset | IterableDataset = self.train_dataset  # type: ignore[attr-defined]
        rows = dataset.take(count) if isinstance(dataset, IterableDataset) else _spread(dataset, count)
        prompts = [row["prompt"] for row in rows]
        share = range(self.accelerator.process_index, len(prompts), self.accelerator.num_processes)
        equal = len(prompts) // self.accelerator.num_processes  # gather needs the same number of rows everywhere
        mine = list(share)[: max(equal, 1)]
        return [prompts[i] for i in mine for _ in range(size)], [i for i in mine for _ in range(size)]

    def _sample_reference(self, prompts: list[Any]) -> list[Any]:
        seen = self.state.num_input_tokens_seen
        size = self.args.per_device_train_batch_size * self.args.steps_per_generation
        completions: list[Any] = []
        for start in range(0, len(prompts), size):
            completions += self._generate(prompts[start : start + size])[2]  # type: ignore[attr-defined]
        self._metrics["train"].clear()  # type: ignore[attr-defined]
        self.state.num_input_tokens_seen = seen
        return completions

    # --- each generation batch --------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._watched = []
        try:
            output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        finally:
            self._watched = None
        shaped, self._shaped = self._shaped, None
        if shaped is None:
            raise RuntimeError("TRL did not call `_calculate_rewards`; this version of TRL is not supported")
        self._check_advantages(shaped, output["advantages"])
        self.last_shaped = shaped
        if self.controller is not None and self.model.training:
            self.beta = self.controller.update(float(shaped.log_ratio.nanmean()))
        return output

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *rest: Any, **keywords: Any
    ) -> Any:
        result = super()._get_per_token_logps_and_entropies(  # type: ignore[misc]
            model, input_ids, attention_mask, logits_to_keep, *rest, **keywords
        )
        if self._watched is not None:
            self._watched.append((result[0] * attention_mask[:, -logits_to_keep:]).sum(1))
        return result

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        shaped, scores = self._shape_batch(prompts, completions)
        mine = slice(
            self.accelerator.process_index * len(prompts), (self.accelerator.process_index + 1) * len(prompts)
        )
        for name, values in metrics.columns(shaped).items():
            self._columns[name].values = values[mine].tolist()
        self._log_batch(shaped, scores, prompts, completions)
        rewards = super()._calculate_rewards(  # type: ignore[misc]
            inputs, prompts, completions, completion_ids_list
        )
        self._shaped = metrics.with_extra_rewards(shaped, rewards[:, len(self._columns) :], self._extra_weights())
        rewards[~shaped.reward.isfinite().to(rewards.device)] = torch.nan  # unscored stays unscored
        return rewards

    def _extra_weights(self) -> torch.Tensor:
        weights: torch.Tensor = self.reward_weights[len(self._columns) :]  # type: ignore[attr-defined]
        return weights

    def _shape_batch(self, prompts: Any, completions: Any) -> tuple[ShapedRewards, torch.Tensor]:
        """Score the local completions, gather, and apply the objective; returns the raw scores of all rows too."""
        if self._watched is None or len(self._watched) != 2:
            seen = 0 if self._watched is None else len(self._watched)
            raise RuntimeError(
                f"expected the policy's and the reference's log-probabilities before the rewards, saw {seen} of 2; "
                "this version of TRL is not supported"
            )
        policy, reference = self._watched
        device = self.accelerator.device
        scores = gather(self.source.score(prompts, completions).to(device)).cpu()
        log_ratio = gather((policy - reference).float())
        size = self._group_size()
        groups = torch.arange(len(log_ratio)) // size
        shaped = shape_rewards(self.source, self.objective, scores, groups, log_ratio.cpu(), self.beta)
        return shaped, scores

    def _group_size(self) -> int:
        size: int = self.num_generations if self.model.training else self.num_generations_eval  # type: ignore[attr-defined]
        return size

    def _log_batch(self, shaped: ShapedRewards, scores: torch.Tensor, prompts: Any, completions: Any) -> None:
        raw = scores if isinstance(self.source, MemberSource) else None
        for name, value in metrics.summary(shaped, self.objective, self.beta, raw).items():
            self._log_metric(name, value)  # type: ignore[attr-defined]
        for name, function in self.monitors.items():
            values = function(prompts, completions)
            self._log_metric(f"monitor/{name}", sum(values) / len(values))  # type: ignore[attr-defined]

    def _check_advantages(self, shaped: ShapedRewards, advantages: torch.Tensor) -> None:
        """Compare TRL's advantages with the objective's own (float64): native KL once, surcharge once."""
        size = self._group_size()
        if size < 2:
            return
        expected = leave_one_out(shaped.total(self.beta), size)
        start = self.accelerator.process_index * len(advantages)
        mine = expected[start : start + len(advantages)]
        scale = (
            1.0 + float(shaped.reward.nan_to_num(0.0).abs().max()) + self.beta * float(shaped.log_ratio.abs().max())
        )
        gap = float((mine - advantages.cpu().to(mine)).abs().max())
        if not gap <= 1e-4 * scale:
            raise RuntimeError(
                f"the trainer's advantages differ from the objective's by {gap:.3g}: TRL's own KL entered "
                "differently, or the penalty did not; this version of TRL is not supported"
            )

    # --- checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        if self.accelerator.is_main_process:
            calibration = self.source.calibration
            state = {
                "beta": self.beta,
                "controller": None if self.controller is None else self.controller.state_dict(),
                "calibration": None if calibration is None else calibration.to_dict(),
            }
            write_json(folder / STATE, state)
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _resolve_checkpoint(self, resume: str | bool | None) -> str | None:
        if not resume:
            return None
        if isinstance(resume, str):
            return resume
        from transformers.trainer_utils import get_last_checkpoint

        found: str | None = get_last_checkpoint(self.args.output_dir)
        if found is None:
            raise ConfigError(f"there is no checkpoint in {self.args.output_dir} to resume from")
        return found

    def _is_finished(self, checkpoint: str) -> bool:
        """Load a checkpoint of the last step instead of resuming it: `Trainer` would train one step too many."""
        state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
        if not 0 < self.args.max_steps <= state.global_step:
            return False
        self._load_from_checkpoint(checkpoint)  # type: ignore[attr-defined]
        self.state = state
        return True

    def _restore(self, checkpoint: str) -> None:
        state = read_json(Path(checkpoint) / STATE)
        self.beta = state["beta"]
        if self.controller is not None and state["controller"] is not None:
            self.controller = KLController.from_state(state["controller"])
        if state["calibration"] is not None:
            self.source.calibration = Calibration.from_dict(state["calibration"])


def _spread(dataset: Dataset, count: int) -> Dataset:
    """`count` rows spread evenly over the dataset (all of it if it is shorter)."""
    if len(dataset) <= count:
        return dataset
    return dataset.select([round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)])


def ensure_reference_on_disk(model: Any, output_dir: str | Path, beta: float) -> None:
    """TRL rebuilds the reference from `config._name_or_path`: save a model that exists in memory only.

    Raises:
        ModelError: the path that the model names as its own holds no weights.
    """
    if not isinstance(model, PreTrainedModel) or is_peft_model(model) or beta == 0.0:
        return
    name = getattr(model.config, "_name_or_path", "") or ""
    if not name:
        folder = Path(output_dir) / "reference"
        if PartialState().is_main_process:
            model.save_pretrained(folder)
        PartialState().wait_for_everyone()
        model.config._name_or_path = str(folder)
    elif Path(name).is_dir() and not any(Path(name).glob("*.safetensors*")):
        raise ModelError(
            f"the reference model is rebuilt from {name}, but that directory holds no *.safetensors weights"
        )
