"""What touches the private methods of TRL's RLOO and GRPO (TRL 1.16 to 2), with `reference.py`, which samples.

`dpo_bridge.py` does so for DPO.

How the penalty gets in, without copying a method of TRL's:

1. `_generate_and_score_completions` computes the policy's and the reference's log-probabilities through
   `_get_per_token_logps_and_entropies` and then calls `_calculate_rewards`. The first is watched, so that the second
   has the sequence log-ratio of exactly the tokens that were sampled. RLOO computes both by itself. GRPO leaves the
   policy's out where sampling and training are in step; `TokenRecorder` then takes it from the logits of the sampling
   itself, and where that isn't transformers' plain `generate`, it is computed as GRPO does where they are out of step.
2. `_calculate_rewards` gathers one column per reward function. Ours are pseudo reward functions that hand over columns
   computed once per batch: the reward r̃ and the surcharge, with reward weight 1, and the variance and the weight, with
   reward weight 0, so that TRL logs them in order over all processes.
3. RLOO itself subtracts β ln π/π₀ from the reward: its surcharge is −β(penalty − ln π/π₀), and exactly 0 with w = 1,
   so the trajectory is TRL's own. GRPO has a KL of its own in the loss: with weighting on it is switched off there and
   the surcharge is −β·penalty, whole; with weighting off it stays and there is no surcharge.

In half precision both log-probabilities are computed in float32 as well (`float32.py`), along one path and from one
batch: the difference of two bf16 forwards is mostly rounding. TRL gets the policy's in its own precision, which its
loss compares with, and the reference's moved so that the difference, RLOO's KL, is the float32 one.

`_check_advantages` then recomputes the advantages from their definition and fails loudly if TRL's differ.
"""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from accelerate.utils import DistributedType, gather, is_peft_model
from datasets import Dataset, IterableDataset
from transformers import TrainerState
from trl.models.utils import disable_gradient_checkpointing

from surefoot.errors import ConfigError, VarianceError
from surefoot.files import read_json, write_json, write_text
from surefoot.maths.objectives import Objective
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.training import metrics
from surefoot.training.checkpoints import finished_epochs, last_whole_checkpoint
from surefoot.training.float32 import in_float32, in_half_precision
from surefoot.training.kl_control import KLController
from surefoot.training.policy_card import policy_card
from surefoot.training.prompt_anchors import PromptAnchors
from surefoot.training.reference import ReferenceSampling
from surefoot.training.shaping import ShapedRewards, shape_rewards
from surefoot.training.token_recorder import TokenRecorder
from surefoot.types import Anchors, Calibration

__all__ = ["STATE", "PenaltyBridge"]

STATE = "surefoot_state.json"
ANCHORS = "surefoot_anchors.safetensors"
_SUMMED = ("reward", "surcharge")
_SHOWN = ("variance", "weight")
_OTHER_SAMPLING = ("use_vllm", "use_transformers_continuous_batching", "rollout_func", "tools", "_is_vlm")
"""Settings of TRL's with which completions aren't, or not only, what one plain `generate` of the policy gives."""
_WHOLE = (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
"""Each process holds the whole policy: no FSDP, no DeepSpeed."""


class PenaltyBridge(ReferenceSampling):
    """Mixin that puts the variance-aware penalty into TRL's RLOO or GRPO trainer.

    Args (keyword only, besides the trainer's own):
        source: where rewards and variances come from.
        monitors: functions of (prompts, completions) whose mean is logged as `monitor/{name}` and which never enter
            the reward, such as a held-out gold reward.
    """

    native_kl: ClassVar[Literal["reward", "loss"]]
    """Where TRL's trainer has its own KL."""
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
        self._watched: list[torch.Tensor] | None = None
        self._forward: tuple[tuple[Any, ...], dict[str, Any]] | None = None
        self._policy: tuple[torch.Tensor, torch.Tensor] | None = None
        self._recorder: TokenRecorder | None = None
        self._idle = metrics.IdleWeights()
        self._shaped: ShapedRewards | None = None
        self._finished_epochs = 0
        self.last_shaped: ShapedRewards | None = None
        args = keywords["args"]
        self.objective: Objective = args.build_objective()
        extra = list(extra_reward_funcs or [])
        summed = [1.0, 1.0, 0.0, 0.0]
        args.reward_weights = summed + list(args.reward_weights or [1.0] * len(extra))
        super().__init__(*positional, reward_funcs=[*self._columns.values(), *extra], **keywords)  # type: ignore[call-arg]
        self.controller = None if args.target_kl is None else KLController(args.target_kl, args.beta)
        self._clock = metrics.ShareOfTime()
        self.anchors = self._new_anchors()

    # --- what is said of the policy ----------------------------------------------------------------------------------

    def create_model_card(self, *positional: Any, **keywords: Any) -> None:
        """TRL's model card, with the source, the objective, the budget and the variance seen."""
        super().create_model_card(*positional, **keywords)  # type: ignore[misc]
        path = Path(self.args.output_dir) / "README.md"
        if self.accelerator.is_main_process and path.exists():
            text = path.read_text(encoding="utf-8")
            card = policy_card(self.source, self.objective, self.args.target_kl, self.beta, self.state.log_history)
            write_text(path, text + "\n" + card)

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
        return super().train(resume_from_checkpoint=checkpoint, **keywords)  # type: ignore[misc]

    def calibrate_on_reference(self) -> Calibration:
        """Sample the policy, which is still the reference, and fit the source's constants on the scored completions.

        Uses `calibration_prompts` prompts × `num_generations` completions over all processes. The random state of
        training is left as it was, so that objectives can be compared on the same samples.

        Raises:
            VarianceError: the objective needs a variance and the source has none.
        """
        rows, groups = self._calibration_rows()
        prompts = [row["prompt"] for row in rows]
        with self._same_random_state():
            completions = self._sample(prompts)
        scores = gather(self.source.score(prompts, completions).to(self.accelerator.device)).cpu()
        known = self._known_anchors(rows)
        everyone = gather(torch.tensor(groups, device=self.accelerator.device)).cpu()
        anchors = self._anchors_of_batch(known, scores, everyone)
        calibration = self.source.calibrate(scores, anchors, variance_needed=self.objective.needs_variance)
        if self.objective.needs_variance and calibration.reference_variance is None:
            raise VarianceError(
                f"preset '{self.args.preset}' needs a variance, but '{self.source.name}' has one member; give at "
                "least two members, or use preset='vanilla'"
            )
        if self.objective.weights == "variance":
            metrics.warn_if_even(self.source, calibration)
            metrics.warn_if_unreliable(self.source, calibration)
        return calibration

    def _calibration_rows(self) -> tuple[list[dict[str, Any]], list[int]]:
        size, count = self.args.num_generations, self.args.calibration_prompts
        dataset: Dataset | IterableDataset = self.train_dataset  # type: ignore[attr-defined]
        rows = list(dataset.take(count) if isinstance(dataset, IterableDataset) else _spread(dataset, count))
        count, index = self.accelerator.num_processes, self.accelerator.process_index
        share = max(len(rows) // count, 1)  # gather needs the same number of rows everywhere
        mine = [(index + i * count) % len(rows) for i in range(share)]
        return [rows[i] for i in mine for _ in range(size)], [i for i in mine for _ in range(size)]

    # --- anchors: what rewards are centred by ------------------------------------------------------------------------

    def _new_anchors(self) -> PromptAnchors | None:
        """None where nothing is to be drawn.

        The objective compares no members, the source's variance needs no anchor, or no prompt has one of its own.

        Raises:
            ConfigError: there is no reference policy to draw from.
        """
        kind, path = self.args.anchor, self.args.anchor_file
        if not (self.objective.needs_anchor and self.source.centred) or kind in ("calibration", "group"):
            return None
        if getattr(self, "environment_factories", None):
            raise ConfigError(
                "an environment changes the prompts, which then have no fixed anchors; choose anchor: calibration"
            )
        if kind == "reference" and path is None:
            self._check_reference()
        with self._same_random_state():  # loading scores a few completions
            prepared = None if path is None else AnchorStore.load(path, self.source)
        store = AnchorStore(self.source.name, self.args.anchor_completions if kind == "reference" else 1)
        return PromptAnchors(
            self.source, store, self.accelerator, self._sample_reference, self.args.seed, kind, prepared
        )

    def _known_anchors(self, rows: list[dict[str, Any]]) -> Anchors | None:
        """The anchors of all processes' rows, given the local ones; drawn if they are new. All processes must ask."""
        if self.anchors is None:
            return None
        with self._clock, self._same_random_state():
            return self.anchors.of(rows)

    def _anchors_of_batch(self, known: Anchors | None, scores: torch.Tensor, groups: torch.Tensor) -> Anchors | None:
        """Where a prompt has no anchor of its own, rows are centred by the calibration set (None), or by their group.

        By their group as well where the objective reads no variance, which is then only logged.
        """
        if known is not None:
            return known
        if self.args.anchor == "calibration" and self.objective.needs_anchor:
            return None
        return group_anchors(scores, groups)

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
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        beta, self.beta = self.beta, 0.0  # the loss has no KL of its own then: the reward holds it
        try:
            return super()._compute_loss(model, inputs)  # type: ignore[misc]
        finally:
            self.beta = beta

    # --- each generation batch --------------------------------------------------------------------------------------

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        self._watched = []
        try:
            output = super()._generate_and_score_completions(inputs)  # type: ignore[misc]
        finally:
            self._watched, self._forward, self._recorder, self._policy = None, None, None, None
        shaped, self._shaped = self._shaped, None
        if shaped is None:
            raise RuntimeError("TRL did not call `_calculate_rewards`; this version of TRL is not supported")
        self._check_advantages(shaped, output["advantages"])
        self.last_shaped = shaped
        if self.controller is not None and self.model.training:
            kl, share = float(shaped.sampled_ratio.nanmean()), metrics.penalty_share(shaped, self.beta)
            self.beta = self.controller.update(kl, share)
        return output

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: Any, attention_mask: Any, logits_to_keep: int, *rest: Any, **keywords: Any
    ) -> Any:
        own = super()._get_per_token_logps_and_entropies  # type: ignore[misc]
        if self._watched is None:
            return own(model, input_ids, attention_mask, logits_to_keep, *rest, **keywords)
        # TRL masks its results itself, so that completions that it leaves out can be seen here all the same.
        mask = _with_cut_off(input_ids, attention_mask, logits_to_keep, self._tokenizer.pad_token_id)  # type: ignore[attr-defined]
        self._forward = ((input_ids, mask, logits_to_keep, *rest), keywords)
        reference = self.native_kl == "reward" and len(self._watched) == 1
        if not self._in_half_precision:
            result = own(model, *self._forward[0], **keywords)
            self._watched.append(_summed(result[0], self._forward[0]))
            return result
        exact = self._float32_logps(model, *self._forward)
        self._watched.append(_summed(exact, self._forward[0]))
        if reference and self._policy is not None:
            rounded, policy = self._policy
            return rounded - (policy - exact), None, None
        result = own(model, *self._forward[0], **keywords)
        self._policy = (result[0].float(), exact)
        return (result[0].float(), *result[1:])

    @property
    def _in_half_precision(self) -> bool:
        """Whether the log-ratio needs forwards in float32, and can have them."""
        whole = self.accelerator.distributed_type in _WHOLE and self.args.float32_log_ratio
        return whole and in_half_precision(self.model, self.accelerator.mixed_precision)

    def _warn_of_rounding(self) -> None:
        half = in_half_precision(self.model, self.accelerator.mixed_precision)
        if half and self._ratio_needed and not self._in_half_precision:
            warnings.warn(
                "the log-ratio of policy and reference is computed in half precision (float32_log_ratio is off, or "
                "FSDP or DeepSpeed shards the model): its rounding, some tenths of a nat per 32 tokens, enters the "
                "penalty, penalty_share and the KL that beta follows",
                stacklevel=3,
            )

    def _float32_logps(self, model: Any, positional: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
        """(batch, tokens) TRL's log-probabilities, in float32 where the model itself isn't."""
        raised = in_float32(model, self.accelerator) if self._in_half_precision else nullcontext()
        with raised:
            found: torch.Tensor = super()._get_per_token_logps_and_entropies(model, *positional, **keywords)[0]  # type: ignore[misc]
        return found.float()

    def _log_ratio(self) -> torch.Tensor:
        """(batch,) ln π/π₀ of the local completions' sampled tokens, in nats, whether or not TRL masks them.

        The reference's log-probabilities are TRL's; so are the policy's, where TRL computes them (first).
        """
        seen = [] if self._watched is None else list(self._watched)
        if len(seen) == 1 and self.native_kl == "loss" and self._forward is not None:
            seen.insert(0, self._policy_log_probability(*self._forward))
        if len(seen) != 2:
            raise RuntimeError(
                f"expected the policy's and the reference's log-probabilities before the rewards, saw {len(seen)} of "
                "2; this version of TRL is not supported"
            )
        return (seen[0] - seen[1]).float()

    @property
    def _recordable(self) -> bool:
        """Whether the policy's log-probabilities are needed, TRL leaves them out, and sampling can be watched."""
        args = self.args
        in_step = args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations) == 0
        plain = not any(getattr(self, name, None) for name in _OTHER_SAMPLING)
        needed = self.native_kl == "loss" and self._ratio_needed and self._watched is not None
        whole = self.accelerator.distributed_type in _WHOLE
        # Sampling's own logits come from another path than the reference's (a cache, other shapes), which in half
        # precision rounds otherwise.
        return needed and in_step and plain and whole and not self._in_half_precision

    def _generate_single_turn(self, *positional: Any, **keywords: Any) -> Any:
        if not self._recordable:
            return super()._generate_single_turn(*positional, **keywords)  # type: ignore[misc]
        self._recorder = TokenRecorder(self.args.temperature)
        with self._recorder.watching(self.model.get_base_model() if is_peft_model(self.model) else self.model):
            return super()._generate_single_turn(*positional, **keywords)  # type: ignore[misc]

    def _policy_log_probability(self, positional: tuple[Any, ...], keywords: dict[str, Any]) -> torch.Tensor:
        """(batch,) ln π of the sampled tokens: as recorded on all processes, else by one more forward on all."""
        if self._recorder is not None:
            ids, mask, width = positional[:3]
            found = self._recorder.sequence_log_probability(ids[:, -width:], mask[:, -width:])
            if bool(gather(torch.tensor([found is not None], device=self.accelerator.device)).all()):
                return found  # type: ignore[return-value]
            warnings.warn(
                "the completions are not the tokens that were watched while the policy generated: their "
                "log-probabilities are computed by one more forward of the policy in each step",
                stacklevel=2,
            )
        with torch.no_grad(), disable_gradient_checkpointing(self.model, self.args.gradient_checkpointing_kwargs):
            return _summed(self._float32_logps(self.model, positional, keywords), positional)

    def _calculate_rewards(self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any) -> Any:
        marked = self._marked(completions, completion_ids_list)
        shaped, scores = self._shape_batch(inputs, prompts, marked, completion_ids_list)
        mine = slice(
            self.accelerator.process_index * len(prompts), (self.accelerator.process_index + 1) * len(prompts)
        )
        own = self.beta if self.native_kl == "loss" and self._penalty_in_reward else 0.0
        for name, values in metrics.columns(shaped, own).items():
            self._columns[name].values = values[mine].tolist()
        self._log_batch(shaped, scores, prompts, marked)
        rewards = super()._calculate_rewards(  # type: ignore[misc]
            inputs, prompts, completions, completion_ids_list
        )
        self._shaped = metrics.with_extra_rewards(shaped, rewards[:, len(self._columns) :], self._extra_weights())
        rewards[~shaped.reward.isfinite().to(rewards.device)] = torch.nan  # unscored stays unscored
        return rewards

    def _extra_weights(self) -> torch.Tensor:
        weights: torch.Tensor = self.reward_weights[len(self._columns) :]  # type: ignore[attr-defined]
        return weights

    def _shape_batch(
        self, inputs: Any, prompts: Any, completions: Any, completion_ids_list: Any
    ) -> tuple[ShapedRewards, torch.Tensor]:
        """Score the local completions, gather, and apply the objective; returns the raw scores of all rows too."""
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
        return replace(shaped, sampled_ratio=sampled.to(shaped.log_ratio)), scores

    def _masked(self, completion_ids: list[list[int]]) -> torch.Tensor:
        """(batch,) whether TRL leaves a completion out of its loss, because it was cut off."""
        ends = {*self.eos_token_ids, self._tokenizer.pad_token_id}  # type: ignore[attr-defined]
        cut = [self.args.mask_truncated_completions and ids[-1] not in ends for ids in completion_ids]
        return torch.tensor(cut, device=self.accelerator.device)

    def _group_size(self) -> int:
        size: int = self.num_generations if self.model.training else self.num_generations_eval  # type: ignore[attr-defined]
        return size

    def _log_batch(self, shaped: ShapedRewards, scores: torch.Tensor, prompts: Any, completions: Any) -> None:
        raw = scores if isinstance(self.source, MemberSource) else None
        values = metrics.summary(shaped, self.objective, self.beta, raw, ratio_known=self._ratio_needed)
        if self.anchors is not None:
            values |= {"anchors/prompts": float(len(self.anchors.store)), "anchors/share_of_time": self._clock.share}
        self._idle.see(values)
        for name, value in values.items():
            self._log_metric(name, value)  # type: ignore[attr-defined]
        for name, function in self.monitors.items():
            judged = function(prompts, completions)
            self._log_metric(f"monitor/{name}", sum(judged) / len(judged))  # type: ignore[attr-defined]

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
        super()._save_checkpoint(model, trial)  # type: ignore[misc]

    def _resolve_checkpoint(self, resume: str | bool | None) -> str | None:
        if not resume:
            return None
        if isinstance(resume, str):
            return resume
        found = last_whole_checkpoint(self.args.output_dir)
        if found is None:
            raise ConfigError(f"there is no whole checkpoint in {self.args.output_dir} to resume from")
        return found

    def _get_train_sampler(self, dataset: Any = None) -> Any:
        """TRL's sampler, past the epochs that a resumed run has finished.

        It draws one permutation after the other from its own generator, which would start over: the batches of the
        resumed epoch would be the first epoch's.
        """
        sampler = super()._get_train_sampler(dataset)  # type: ignore[misc]
        for _ in range(self._finished_epochs):
            next(iter(sampler), None)  # the permutation is drawn with the first index
        return sampler

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
        self._restore_anchors(Path(checkpoint), state.get("anchor", "group"))

    def _restore_anchors(self, checkpoint: Path, kind: str) -> None:
        if self.objective.needs_anchor and kind != self.args.anchor:
            raise ConfigError(
                f"the run of {checkpoint} centred rewards by anchor: {kind}, and its weights are relative to that; "
                f"set anchor: {kind} to go on with it (it is {self.args.anchor})"
            )
        if self.anchors is not None:
            self.anchors.store = AnchorStore.load(checkpoint / ANCHORS, self.source)


def _summed(logps: torch.Tensor, positional: tuple[Any, ...]) -> torch.Tensor:
    """(batch,) per-token values summed over the completions' own tokens; `positional` as TRL passes them."""
    _, mask, width = positional[:3]
    return (logps * mask[:, -width:]).sum(1)


def _with_cut_off(ids: torch.Tensor, mask: torch.Tensor, width: int, pad_token_id: int) -> torch.Tensor:
    """The attention mask with completions that `mask_truncated_completions` has taken out put back.

    They are cut off, so they end in neither eos nor pad: their own tokens go up to the last one that isn't pad.
    """
    own, completion = mask[:, -width:], ids[:, -width:]
    place = torch.arange(width, device=ids.device)
    last = torch.where(completion != pad_token_id, place, -1).amax(dim=1, keepdim=True)
    whole = torch.where(own.any(dim=1, keepdim=True), own, (place <= last).to(own))
    return torch.cat([mask[:, :-width], whole], dim=1)


def _spread(dataset: Dataset, count: int) -> Dataset:
    """`count` rows spread evenly over the dataset (all of it if it is shorter)."""
    if len(dataset) <= count:
        return dataset
    return dataset.select([round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)])
