"""OpenRLHF's own client, samples generator, experience maker and `compute_reward`, against our server.

A sampler stands in vLLM's place, and models that aren't trained in DeepSpeed's (`openrlhf_cpu.py`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from surefoot.engines.requirements import OPENRLHF_ESTIMATORS
from surefoot.engines.settings import EngineSettings
from surefoot.errors import ConfigError, DataError, RunError
from tests.engines.conftest import PROMPTS, Made
from tests.engines.openrlhf_cpu import Models, Sampler

pytestmark = [
    pytest.mark.engines,
    pytest.mark.skipif(
        find_spec("openrlhf") is None, reason="needs OpenRLHF 0.11: `make engines-openrlhf` installs it and runs this"
    ),
    pytest.mark.usefixtures("openrlhf_stand_ins"),
]
BETA = 0.5
Samples = Callable[..., list[Any]]


@pytest.fixture(scope="module")
def ray_started(openrlhf_stand_ins: Path) -> Iterator[None]:
    """OpenRLHF hands tensors over through Ray's object store."""
    import ray

    ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def responses(made: Made, reward_server: Any, openrlhf_stand_ins: Path) -> list[dict[str, Any]]:
    """Two completions of each of four prompts, with the server's rewards, by OpenRLHF's executor and client."""
    from openrlhf.utils.agent import SingleTurnAgentExecutor
    from transformers import AutoTokenizer

    executor = SingleTurnAgentExecutor([f"{reward_server.url}/get_reward"])
    tokenizer, engine = AutoTokenizer.from_pretrained(made.policy), Sampler(str(made.policy))
    torch.manual_seed(1)
    parameters = SimpleNamespace(max_tokens=5, logprobs=None)

    async def rollout() -> list[dict[str, Any]]:
        prompts = [prompt for prompt in PROMPTS[:4] for _ in range(2)]
        return [await executor.execute(prompt, "", parameters, 64, tokenizer, engine) for prompt in prompts]

    return asyncio.run(rollout())


@pytest.fixture
def samples(made: Made, responses: list[dict[str, Any]]) -> Samples:
    """Makes OpenRLHF's samples of the responses anew; named values replace those of the server."""
    from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator

    def make(**extra: list[Any]) -> list[Any]:
        generator = SamplesGenerator(SimpleNamespace(args=None), None, None, None, [])
        made = []
        for i, response in enumerate(responses):
            logs = response["extra_logs"] | {name: values[i] for name, values in extra.items()}
            logs = {name: value for name, value in logs.items() if value is not None}
            made.append(generator._process_response_into_experience(response | {"extra_logs": logs}, max_len=64))
        return made

    return make


@pytest.fixture
def maker_of(made: Made, parsed: Callable[..., Any], ray_started: None) -> Callable[..., Any]:
    """Makes an experience maker of a class, with OpenRLHF's parsed arguments and a policy off its reference."""
    from openrlhf.trainer.ppo_utils.kl_controller import FixedKLController

    def make(cls: Any, estimator: str, **settings: Any) -> Any:
        args = parsed(
            *("--reward.remote_url", "http://x/get_reward", "--algo.advantage.estimator", estimator),
            *("--rollout.n_samples_per_prompt", "2", "--rollout.micro_batch_size", "4"),
            *("--algo.kl.init_coef", str(BETA)),
        )
        args.reward.clip_range, args.surefoot = None, EngineSettings(**settings)
        policy, reference = Models(str(made.policy), "policy"), Models(str(made.policy), "reference")
        torch.manual_seed(2)
        policy.move(0.05)
        critic = Models("", "critic") if estimator == "gae" else None
        strategy, controller = SimpleNamespace(args=args), FixedKLController(BETA)
        return cls(policy, critic, None, reference, controller, strategy, SimpleNamespace(pad_token_id=0))

    return make


def ours() -> Any:
    from surefoot.engines.openrlhf import WeightedExperienceMaker

    return WeightedExperienceMaker


def theirs() -> Any:
    from openrlhf.trainer.ppo_utils.experience_maker import RemoteExperienceMaker

    return RemoteExperienceMaker


def token_rewards(monkeypatch: pytest.MonkeyPatch) -> list[torch.Tensor]:
    """What OpenRLHF's `compute_reward` returns from now on, a tensor for each micro-batch."""
    import openrlhf.trainer.ppo_utils.experience_maker as module

    seen, real = [], module.compute_reward

    def keep(*arguments: Any, **named: Any) -> torch.Tensor:
        seen.append(real(*arguments, **named))
        return seen[-1]

    monkeypatch.setattr(module, "compute_reward", keep)
    return seen


def test_the_servers_numbers_reach_each_sample(
    made: Made, reward_server: Any, responses: list[dict[str, Any]], samples: Samples
) -> None:
    from transformers import AutoTokenizer

    tokenizer, cut = AutoTokenizer.from_pretrained(made.policy), []
    for response, sample in zip(responses, samples(), strict=True):
        end = response["action_ranges"][0][1]
        text = tokenizer.decode(response["observation_tokens"][:end])[len(response["prompt"]) :]
        short = bool(sample.truncated)
        asked = {"prompt": response["prompt"], "completions": [text.removesuffix("<eos>")], "cut": [short]}
        known = reward_server.post("/v1/rewards", asked)
        assert known["anchor"] == ["reference"]
        for name, value in {"reward": "mean", "variance": "variance", "weight": "weight"}.items():
            assert float(sample.info[name]) == pytest.approx(known[value][0], rel=1e-5)
        assert float(sample.info["anchored"]) == 1
        cut.append(short)
    assert 0 < sum(cut) < len(cut)
    assert len({float(sample.info["weight"]) for sample in samples()}) > 4


@pytest.mark.parametrize("estimator", OPENRLHF_ESTIMATORS)
def test_token_rewards_are_weighted(
    monkeypatch: pytest.MonkeyPatch, maker_of: Any, samples: Samples, estimator: str
) -> None:
    maker, made = maker_of(ours(), estimator), token_rewards(monkeypatch)
    experiences = maker.make_experience_batch(samples())
    raw = torch.cat([e.rewards.flatten() for e in experiences]).reshape(-1, 2)
    reward = (raw - raw.flip(1) if estimator == "rloo" else raw).flatten().split([4, 4])
    assert len(made) == len(experiences) == 2
    for experience, tokens, r in zip(experiences, made, reward, strict=True):
        columns = (experience.sequences, experience.action_mask, experience.attention_mask)
        kl = experience.action_log_probs - maker.initial_model_group.forward(*columns)
        assert 0.01 < float(kl.abs().max()) < 10
        for i in range(4):
            expected = -BETA * float(experience.info["surefoot_weight"][i]) * kl[i]
            expected[int(experience.action_mask[i].nonzero().max())] += r[i]
            torch.testing.assert_close(tokens[i], expected, rtol=0, atol=1e-6)
        assert float(experience.info["surefoot_max_error"].max()) <= 1e-6
        torch.testing.assert_close(experience.info["surefoot_kl"], kl.sum(dim=1), rtol=1e-5, atol=1e-5)
        assert not experience.info["surefoot_cut_tokens"].any()


@pytest.mark.parametrize("estimator", OPENRLHF_ESTIMATORS)
def test_weights_of_one_are_openrlhfs_own(maker_of: Any, samples: Samples, estimator: str) -> None:
    plain = maker_of(theirs(), estimator).make_experience_batch(samples())
    same = maker_of(ours(), estimator).make_experience_batch(samples(weight=[1.0] * 8, variance=[None] * 8))
    other = maker_of(ours(), estimator).make_experience_batch(samples())
    for name in ("advantages", "returns"):
        pairs = [(getattr(a, name), getattr(b, name)) for a, b in zip(same, plain, strict=True)]
        assert all(torch.equal(a, b) for a, b in pairs)
    changes = [float((a.returns - b.returns).abs().max()) for a, b in zip(other, plain, strict=True)]
    assert max(changes) > 0.05


def test_weights_are_variances_over_the_first_batchs_mean(maker_of: Any, samples: Samples) -> None:
    def weights(maker: Any, **extra: Any) -> torch.Tensor:
        return torch.cat([e.info["surefoot_weight"] for e in maker.make_experience_batch(samples(**extra))])

    variance, maker = torch.cat([sample.info["variance"].flatten() for sample in samples()]), maker_of(ours(), "gae")
    expected = (variance / variance.mean()).clamp(0.1, 10.0)
    torch.testing.assert_close(weights(maker), expected, rtol=1e-5, atol=0)
    later = weights(maker, variance=(2 * variance).tolist())
    torch.testing.assert_close(later, (2 * variance / variance.mean()).clamp(0.1, 10.0), rtol=1e-5, atol=0)
    given = weights(maker_of(ours(), "gae", reference_variance=0.5))
    torch.testing.assert_close(given, (variance / 0.5).clamp(0.1, 10.0), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [None, -1.0, float("nan"), float("inf")])
def test_a_row_needs_a_variance(maker_of: Any, samples: Samples, bad: Any) -> None:
    with pytest.raises(DataError, match=r"every reward must come with extra_logs\.variance"):
        maker_of(ours(), "rloo").make_experience_batch(
            samples(variance=[1.0] * 5 + [bad] + [1.0] * 2, weight=[None] * 8)
        )


def test_a_weight_must_be_positive(maker_of: Any, samples: Samples) -> None:
    with pytest.raises(DataError, match=r"a positive extra_logs\.weight"):
        maker_of(ours(), "rloo").make_experience_batch(samples(variance=[None] * 8, weight=[1.0] * 7 + [0.0]))


@pytest.mark.parametrize("anchored", [0.0, None])
def test_a_row_needs_an_anchor_unless_told(maker_of: Any, samples: Samples, anchored: Any) -> None:
    rows = [1.0] * 7 + [anchored]
    with pytest.raises(DataError, match=r"--anchor_file"):
        maker_of(ours(), "gae").make_experience_batch(samples(anchored=rows))
    assert maker_of(ours(), "gae", anchor="calibration").make_experience_batch(samples(anchored=rows))


def test_another_penalty_stops_the_run(monkeypatch: pytest.MonkeyPatch, maker_of: Any, samples: Samples) -> None:
    import openrlhf.trainer.ppo_utils.experience_maker as module

    real = module.compute_reward
    monkeypatch.setattr(module, "compute_reward", lambda r, beta, kl, **named: real(r, beta, 2 * kl, **named))
    with pytest.raises(RunError, match="differ from r − β·w·KL"):
        maker_of(ours(), "gae").make_experience_batch(samples())


def test_wrong_arguments_are_refused_without_the_command_too(maker_of: Any, parsed: Callable[..., Any]) -> None:
    args = parsed("--reward.remote_url", "http://x/get_reward")  # with OpenRLHF's default clipping
    with pytest.raises(ConfigError, match=r"--reward\.clip_range"):
        ours()(None, None, None, None, None, SimpleNamespace(args=args), None)


def test_a_budget_moves_beta_and_is_in_checkpoints(
    maker_of: Any, samples: Samples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.engines.openrlhf import SurefootTrainer

    def trainer_of(maker: Any, group: Models) -> Any:
        trainer = SurefootTrainer.__new__(SurefootTrainer)
        trainer.args, trainer.experience_maker, trainer.actor_model_group = maker.args, maker, group
        trainer.critic_model_group = trainer.wandb_logger = trainer.tensorboard_logger = None
        trainer.best_eval_metric_key, trainer.best_eval_metric_value = "", 0.0
        trainer._latest_eval_metric_value = None
        maker.args.ckpt.save_steps, maker.args.ckpt.load_enable, maker.args.ckpt.path = 1, True, str(tmp_path)
        return trainer

    (tmp_path / "_actor").mkdir()
    maker, group = maker_of(ours(), "gae", target_kl=0.01), Models("", "critic")
    first = maker.make_experience_batch(samples())
    assert {float(beta) for e in first for beta in e.info["surefoot_beta"]} == {BETA}
    assert maker.coefficient.beta != BETA
    second = maker.make_experience_batch(samples())
    assert float(second[0].info["surefoot_beta"][0]) == pytest.approx(maker.kl_ctl.value)
    trainer_of(maker, group).save_logs_and_checkpoints(2, {}, {"global_step": 2})

    again = maker_of(ours(), "gae", target_kl=0.01)
    assert trainer_of(again, group).init_checkpoint_states()["global_step"] == 2
    assert again.state_dict() == maker.state_dict()
    assert again.state_dict()["reference_variance"] > 0
    with pytest.raises(ConfigError, match="target_kl"):
        trainer_of(maker_of(ours(), "gae"), group).init_checkpoint_states()
    with pytest.raises(ConfigError, match=r"surefoot\.anchor: file, and this run has calibration"):
        trainer_of(maker_of(ours(), "gae", target_kl=0.01, anchor="calibration"), group).init_checkpoint_states()
    del group.saved[-1]["client_states"]["surefoot"]
    with pytest.raises(ConfigError, match="no checkpoint of `surefoot openrlhf`"):
        trainer_of(again, group).init_checkpoint_states()
