"""The objective in OpenRLHF 0.11: an experience maker, a trainer with it, and its start. The one file that imports it.

OpenRLHF's `RemoteExperienceMaker` holds the KL of each token, and its `compute_reward` takes β times that KL from the
reward. Ours multiplies each row's KL by the row's weight before. The variance, which makes the weight, comes with the
reward, in the `extra_logs` of `surefoot serve` or of a reward function (docs/engines.md).
"""

from __future__ import annotations

import asyncio
import itertools
import math
import runpy
import sys
from collections.abc import Sequence
from importlib.metadata import version
from types import SimpleNamespace
from typing import Any

import ray
import torch
from jaxtyping import Float
from openrlhf.trainer import ppo_trainer
from openrlhf.trainer.ppo_utils.experience import Experience
from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker
from openrlhf.utils import config
from openrlhf.utils.agent import SingleTurnAgentExecutor
from torch import Tensor

from surefoot.engines.requirements import check_openrlhf
from surefoot.engines.row_weights import VARIANCE, WEIGHT, RowWeights
from surefoot.engines.settings import EngineSettings
from surefoot.engines.token_rewards import RowCoefficient, batch_share, check_token_rewards, expected_token_rewards
from surefoot.errors import ConfigError, DataError
from surefoot.maths.advantages import leave_one_out

__all__ = ["SurefootTrainer", "WeightedExperienceMaker", "check_server", "launch"]

_VARIANCE, _WEIGHT, _ANCHORED = "variance", "weight", "anchored"
"""Names in the `extra_logs` of a reward, and so in `Experience.info`; `anchored` is 1 for a prompt with an anchor."""
_KL_BOUND = 10.0
"""OpenRLHF cuts each token's log-ratio to this many nats."""
_STATE = "surefoot"
"""Name of our state among a checkpoint's client states."""


class WeightedExperienceMaker(RemoteExperienceMaker):
    """OpenRLHF's experience maker with each row's KL multiplied by the row's weight.

    In every batch the token rewards that OpenRLHF made are compared with r − β·w·KL, made of the rewards, weights and
    unweighted KL that went in; a difference stops the run. Then β adapts, if there is a `target_kl`.

    Args:
        *arguments: as of `RemoteExperienceMaker`; the strategy's arguments may hold our settings as `surefoot`.

    Raises:
        ConfigError: OpenRLHF's arguments are such that the run would optimise something else.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        check_openrlhf(self.args)
        self._settings: EngineSettings = getattr(self.args, "surefoot", None) or EngineSettings()
        self.coefficient = RowCoefficient(float(self.args.algo.kl.init_coef), self._settings.target_kl)
        self._weights = RowWeights(self._settings.objective, self._settings.reference_variance)
        self._made: list[Float[Tensor, "batch tokens"]] = []

    @torch.no_grad()
    def compute_advantages_and_returns(self, experiences: list[Experience]) -> list[Experience]:
        """OpenRLHF's own with weighted KL; adds `surefoot_…` to each experience's `info`, which OpenRLHF logs.

        Raises:
            DataError: a row came without a variance or, unless `anchor` is "calibration", without an anchor.
            RunError: the token rewards aren't r − β·w·KL.
        """
        weights = self._weights_of(experiences)
        plain = [experience.kl for experience in experiences]
        self.kl_ctl.value = beta = self.coefficient.beta
        for experience, weight in zip(experiences, weights, strict=True):
            experience.kl = experience.kl * weight[:, None]
        self._made = []
        experiences = super().compute_advantages_and_returns(experiences)
        rows = zip(experiences, self._made, self._entered(experiences), plain, weights, strict=True)
        for experience, made, reward, kl, weight in rows:
            _check(experience, made, reward, kl, weight, beta)
        self._learn(experiences, weights, beta)
        return experiences

    def state_dict(self) -> dict[str, Any]:
        """β, its controller, s̄² and the settings that must stay the same, as JSON values."""
        held = {"settings": self._settings.fixed, "reference_variance": self._weights.reference_variance}
        return self.coefficient.state_dict() | held

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a state that `state_dict` gave.

        Raises:
            ConfigError: it is of a run with other settings.
        """
        self._settings.check_resumed(state["settings"])
        self.coefficient.load_state_dict(state)
        self._weights.reference_variance = state["reference_variance"]

    def _weights_of(self, experiences: list[Experience]) -> Sequence[Float[Tensor, "batch"]]:
        sizes = [len(experience.sequences) for experience in experiences]
        parts = [rows_of(e.info, size, self._settings.anchor) for e, size in zip(experiences, sizes, strict=True)]
        rows = list(itertools.chain.from_iterable(parts))
        return self._weights([str(i) for i in range(len(rows))], rows, [True] * len(rows)).split(sizes)

    def get_advantages_and_returns(self, values: Any, rewards: Any, *rest: Any, **named: Any) -> Any:
        """OpenRLHF's GAE; keeps the token rewards for the check."""
        self._made.append(rewards)
        return super().get_advantages_and_returns(values, rewards, *rest, **named)

    def get_cumulative_returns(self, rewards: Any, *rest: Any, **named: Any) -> Any:
        """OpenRLHF's returns of the other estimators; keeps the token rewards for the check."""
        self._made.append(rewards)
        return super().get_cumulative_returns(rewards, *rest, **named)

    def _entered(self, experiences: list[Experience]) -> Sequence[Float[Tensor, "batch"]]:
        """Reward of each row as it enters the last token's: for RLOO less the mean of the prompt's other rows."""
        rewards = torch.cat([experience.rewards.flatten() for experience in experiences])
        if self.advantage_estimator == "rloo":
            order = torch.tensor(list(itertools.chain.from_iterable(experience.index for experience in experiences)))
            sorted_rewards = torch.empty_like(rewards)
            sorted_rewards[order] = rewards
            rewards = leave_one_out(sorted_rewards, self.args.rollout.n_samples_per_prompt)[order]
        return rewards.split([len(experience.sequences) for experience in experiences])

    def _learn(self, experiences: list[Experience], weights: Sequence[Float[Tensor, "batch"]], beta: float) -> None:
        rewards, ratio = (
            torch.cat(column)
            for column in zip(*((e.rewards.flatten(), e.info["surefoot_kl"]) for e in experiences), strict=True)
        )
        prompts = list(itertools.chain.from_iterable(experience.prompts for experience in experiences))
        share = batch_share(rewards[:, None], ratio, torch.cat(list(weights)), beta, prompts)
        self.coefficient.learn(float(ratio.mean()), share)


def rows_of(info: dict[str, Any], rows: int, anchor: str) -> list[dict[str, float]]:
    """What `RowWeights` needs of each row: its variance, or the weight itself where no variance came.

    Args:
        info: of an experience; what `extra_logs` held is of shape (batch,) or (batch, 1).
        anchor: "file" asks for an anchor of each row's prompt, "calibration" doesn't.

    Raises:
        DataError: a row came with neither, with one out of range, or without an anchor that is asked for.
    """
    variance, weight, anchored = (_column(info, name, rows) for name in (_VARIANCE, _WEIGHT, _ANCHORED))
    given, name = (weight, WEIGHT) if variance is None else (variance, VARIANCE)
    if given is None or not bool(((given >= 0) & (given < math.inf)).all()) or (variance is None and not given.all()):
        raise DataError(
            f"every reward must come with extra_logs.{_VARIANCE}, finite and not negative, or with a positive "
            f"extra_logs.{_WEIGHT}; got {info.get(_VARIANCE)!s:.100} and {info.get(_WEIGHT)!s:.100}. `surefoot serve` "
            "gives both, if its source has a variance and is calibrated"
        )
    if anchor == "file" and (anchored is None or not bool((anchored == 1).all())):
        raise DataError(
            f"a reward came without extra_logs.{_ANCHORED}: 1, so its variance wasn't centred by its prompt's anchor: "
            "give `surefoot serve` an --anchor_file with all prompts exactly as OpenRLHF sends them and none that it "
            "shortens, or set --surefoot.anchor calibration"
        )
    return [{name: value} for value in given.tolist()]


def _column(info: dict[str, Any], name: str, rows: int) -> Float[Tensor, "batch"] | None:
    """(batch,) values of `info`; None if they aren't there for each row."""
    held = info.get(name)
    if not isinstance(held, Tensor) or held.numel() != rows:
        return None
    return held.reshape(rows).float()


def _check(
    experience: Experience,
    made: Float[Tensor, "batch tokens"],
    reward: Float[Tensor, "batch"],
    kl: Float[Tensor, "batch tokens"],
    weight: Float[Tensor, "batch"],
    beta: float,
) -> None:
    """Compare an experience's token rewards with their definition, and add figures to its `info`.

    Args:
        made: OpenRLHF's token rewards.
        reward: that enters at each row's last token.
        kl: unweighted, in nats.
    """
    mask = experience.action_mask.to(kl)
    last = (mask * torch.arange(1, mask.shape[1] + 1)).argmax(dim=1, keepdim=True)
    scores = torch.zeros_like(kl).scatter(1, last, reward[:, None].to(kl)) * mask
    expected = expected_token_rewards(scores, kl, torch.zeros_like(kl), mask, weight, beta)
    error = check_token_rewards(made * mask, expected, scores)
    tokens = mask.sum(dim=1)
    experience.info |= {
        "surefoot_kl": torch.where(tokens > 0, experience.info["logprobs_diff"] * tokens, 0.0),
        "surefoot_penalty": beta * weight * (kl * mask).sum(dim=1),
        "surefoot_cut_tokens": ((kl.abs() >= _KL_BOUND) * mask).sum(dim=1),
        "surefoot_weight": weight,
        "surefoot_beta": torch.full_like(weight, beta),
        "surefoot_max_error": torch.full_like(weight, error),
    }


class SurefootTrainer(ppo_trainer.PPOTrainer.__ray_metadata__.modified_class):
    """OpenRLHF's trainer with `WeightedExperienceMaker`, whose state is in the checkpoints.

    OpenRLHF decorates its trainer with `ray.remote` where it is defined; this inherits from the class within.
    """

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        groups = (self.actor_model_group, self.critic_model_group, self.reward_model_group, self.reference_model_group)
        self.experience_maker = WeightedExperienceMaker(*groups, self.kl_ctl, self.strategy, self.tokenizer)

    def save_logs_and_checkpoints(self, global_step: int, logs_dict: Any = None, client_states: Any = None) -> None:
        """OpenRLHF's own, with our state among the client states."""
        client_states = {} if client_states is None else client_states
        client_states[_STATE] = self.experience_maker.state_dict()
        super().save_logs_and_checkpoints(global_step, logs_dict, client_states)

    def init_checkpoint_states(self) -> dict[str, Any]:
        """OpenRLHF's own; takes up our state of the checkpoint that is resumed.

        Raises:
            ConfigError: the checkpoint isn't one of ours, or has other settings.
        """
        states: dict[str, Any] = super().init_checkpoint_states()
        if states["global_step"]:
            if _STATE not in states:
                raise ConfigError(f"{self.args.ckpt.path} is no checkpoint of `surefoot openrlhf`; start a new run")
            self.experience_maker.load_state_dict(states[_STATE])
        return states


def check_server(url: str) -> None:
    """Ask a reward server for one reward, with OpenRLHF's own client.

    Raises:
        ConfigError: it doesn't answer, or gives no variance.
    """
    client = SingleTurnAgentExecutor(url)
    try:
        answer = asyncio.run(client._fetch_rewards_via_http(["Hello. Hello!"], ["Hello. "], [""]))[0]
    except RuntimeError:
        raise ConfigError(
            f"--reward.remote_url: {_without_key(url)} gave no reward in five tries (its log says why); start "
            "`surefoot serve` first, and name its route /get_reward"
        ) from None
    held = answer.get("extra_logs") if isinstance(answer, dict) else None
    if not {_VARIANCE, _WEIGHT} & set(held or ()):
        raise ConfigError(
            f"--reward.remote_url: {_without_key(url)} gives no extra_logs.{_VARIANCE}; it must be `surefoot serve` "
            "with a source that has a variance and is calibrated"
        )


def _without_key(url: str) -> str:
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2]}"


def launch(arguments: list[str], settings: EngineSettings) -> None:
    """Run OpenRLHF's `train_ppo_ray` with our trainer.

    Args:
        arguments: of `openrlhf.cli.train_ppo_ray`.

    Raises:
        ConfigError: another version of OpenRLHF, an argument that makes the run optimise something else, or a server
            without variances; each before Ray is started.
    """
    if version("openrlhf").split(".")[:2] != ["0", "11"]:
        raise ConfigError(f"this needs OpenRLHF 0.11, and {version('openrlhf')} is installed")
    hierarchize = config.hierarchize

    def checked(flat: Any) -> SimpleNamespace:
        """OpenRLHF's parsed arguments; it calls this once, before any work."""
        args: SimpleNamespace = hierarchize(flat)
        args.surefoot = settings
        if args.reward.clip_range == (-10, 10):  # its default; given on the command line it is a list
            args.reward.clip_range = None
        check_openrlhf(args)
        for url in (args.reward.remote_url or "").split(","):
            if url.startswith("http") and not args.train.agent_func_path:
                check_server(url)
        return args

    config.hierarchize = checked
    ppo_trainer.PPOTrainer = ray.remote(SurefootTrainer)
    sys.argv = ["surefoot openrlhf", *arguments]
    runpy.run_module("openrlhf.cli.train_ppo_ray", run_name="__main__")
