"""The forecast of a source on candidates whose true rewards and errors are known."""

import math
from collections.abc import Sequence

import pytest
import torch

from surefoot.errors import ConfigError, DataError, VarianceError
from surefoot.forecast import forecast_source
from surefoot.forecast.candidates import group_texts
from surefoot.forecast.draws import draw_errors, other_run
from surefoot.forecast.policies import policies_at_budgets, uniform_reference
from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
from surefoot.rewards.source import RewardSource

PROMPTS, COUNT, MEMBERS = 12, 32, 20
NAMES = [f"prompt {i}" for i in range(PROMPTS) for _ in range(COUNT)]
TEXTS = [f"completion {i}" for i in range(PROMPTS * COUNT)]


def world(spread: float) -> tuple[torch.Tensor, torch.Tensor]:
    """(rows,) true rewards, and (rows, members) rewards whose errors are `spread` times as unequal as exp(z)."""
    stream = torch.Generator().manual_seed(3)
    truth = torch.randn(len(TEXTS), generator=stream, dtype=torch.float64)
    deviation = (spread * torch.randn(len(TEXTS), generator=stream, dtype=torch.float64)).exp()
    errors = torch.randn(len(TEXTS), MEMBERS, generator=stream, dtype=torch.float64)
    return truth, truth[:, None] + deviation[:, None] * errors


def members(scores: torch.Tensor) -> FunctionMembers:
    rows = dict(zip(TEXTS, scores.tolist(), strict=True))
    return FunctionMembers(lambda prompts, texts: [rows[str(text)] for text in texts], scores.shape[1])


def row(found: dict, objective: str, place: int = -1) -> dict:  # type: ignore[type-arg]
    return [one for one in found["rows"] if one["objective"] == objective][place]


def test_with_gold_the_gain_is_that_of_the_exact_policy() -> None:
    truth, scores = world(0.0)
    found = forecast_source(
        members(scores), NAMES, TEXTS, gold=truth.tolist(), objectives=["mean"], kl_budgets=[1.0], runs=2
    )
    reference = uniform_reference(torch.ones(PROMPTS, COUNT, dtype=torch.bool))
    policy = policies_at_budgets(
        scores.float().double().mean(dim=1).view(PROMPTS, COUNT), None, reference, [1.0]
    ).policy[0]
    gains = (policy * truth.view(PROMPTS, COUNT)).sum(dim=1) - truth.view(PROMPTS, COUNT).mean(dim=1)
    judged = row(found, "mean")["gold"]
    assert judged["gain"]["value"] == pytest.approx(float(gains.mean()), abs=1e-6)
    assert judged["prompt_risk"]["value"] == float((gains < 0).double().mean())
    assert judged["gain"]["low"] < judged["gain"]["value"] < judged["gain"]["high"]
    assert (judged["risk"]["low"], judged["risk"]["n"]) == (None, PROMPTS)  # one run: no share of runs to bound
    assert row(found, "mean")["gap"] > 0  # a policy is promised more than it keeps
    assert found["baseline"] == "mean"


def test_unequal_errors_are_what_weighting_gains_by() -> None:
    """Equal errors: weights change little. Errors over orders of magnitude: they gain much, by both judges."""
    names = ["vanilla", "variance_aware_one"]
    gains = {}
    for spread in (0.0, 1.0):
        truth, scores = world(spread)
        found = forecast_source(members(scores), NAMES, TEXTS, gold=truth.tolist(), objectives=names, kl_budgets=[2.0])
        gains[spread] = [row(found, "variance_aware_one")[judge]["versus"] for judge in ("gold", "draws")]
    assert all(abs(one["value"]) < 0.1 for one in gains[0.0])
    assert all(one["value"] > 0.3 for one in gains[1.0])


def test_without_gold_the_draws_foretell_the_gain_on_the_truth() -> None:
    """A fresh ensemble of the same kind is the truth's own experiment: its mean gain is what was forecast."""
    truth, scores = world(0.5)
    found = forecast_source(members(scores), NAMES, TEXTS, objectives=["mean"], kl_budgets=[1.5], runs=MEMBERS)
    told = row(found, "mean")["draws"]
    reference = uniform_reference(torch.ones(PROMPTS, COUNT, dtype=torch.bool))
    gains = []
    for k in range(MEMBERS):
        one = scores[:, k].view(PROMPTS, COUNT)
        policy = policies_at_budgets(one, None, reference, [1.5]).policy[0]
        gains.append(float(((policy - 1 / COUNT) * truth.view(PROMPTS, COUNT)).sum(dim=1).mean()))
    assert told["gain"]["value"] == pytest.approx(sum(gains) / MEMBERS, abs=0.05)
    assert told["spread"] == pytest.approx(torch.tensor(gains).std().item(), rel=0.3)


def test_a_reward_of_noise_is_advised_against() -> None:
    stream = torch.Generator().manual_seed(0)
    scores = torch.randn(len(TEXTS), MEMBERS, generator=stream, dtype=torch.float64)
    found = forecast_source(members(scores), NAMES, TEXTS, objectives=["vanilla"], kl_budgets=[0.5, 1.0])
    assert found["recommendation"]["row"] is None
    assert any("Don't train" in line for line in found["recommendation"]["reasons"])


def test_the_advice_follows_its_rules() -> None:
    truth, scores = world(1.5)
    found = forecast_source(members(scores), NAMES, TEXTS, gold=truth.tolist(), runs=4)
    advised = found["recommendation"]["row"]
    judged = advised["gold"]
    assert judged["gain"]["low"] > 0
    assert judged["prompt_risk"]["value"] <= 0.10
    assert advised["effective"] >= 4
    safe = [
        one["gold"]["gain"]["value"]
        for one in found["rows"]
        if one["gold"]["gain"]["low"] > 0 and one["gold"]["prompt_risk"]["value"] <= 0.1 and one["effective"] >= 4
        and one["gold"]["risk"]["value"] <= 0.05
    ]  # fmt: skip
    assert judged["gain"]["value"] >= 0.95 * max(safe)
    assert len({one["objective"] for one in found["rows"]}) == 15


def test_draws_of_members_are_unbiased_and_move_every_member_alike() -> None:
    _, scores = world(0.5)
    source = members(scores)
    source.calibrate(scores)
    estimate = source.estimate(scores)
    draws = draw_errors(source, scores, estimate, 64)
    assert (draws.origin, draws.count) == ("members", MEMBERS)
    # Mean square over members, K/(K−1) times, is the sample variance.
    centred = estimate.members - estimate.mean[:, None]
    torch.testing.assert_close(draws.errors.square().mean(dim=1), centred.square().sum(dim=1) / (MEMBERS - 1))
    other = other_run(estimate, draws, 2)
    torch.testing.assert_close(other.mean, estimate.mean + draws.errors[:, 2])
    torch.testing.assert_close(other.members.mean(dim=1), other.mean)
    torch.testing.assert_close(other.members[:, 0], estimate.members[:, 3] + draws.errors[:, 2])
    torch.testing.assert_close(other.variance, estimate.variance)


def test_a_given_variance_is_drawn_independently() -> None:
    variance = torch.rand(len(TEXTS), dtype=torch.float64) + 0.5
    source = FunctionReward(lambda p, c: ([0.0] * len(c), variance.tolist()))
    scores = source.score(NAMES, TEXTS)
    source.calibrate(scores)
    draws = draw_errors(source, scores, source.estimate(scores), 4000)
    assert draws.origin == "independent"
    torch.testing.assert_close(draws.errors.var(dim=1), variance, rtol=0.15, atol=0)


def test_what_is_unknown_is_left_out() -> None:
    """An unscored candidate, one without gold, and a prompt with few candidates change nothing about the others."""
    truth, scores = world(0.5)
    names, texts = [*NAMES, "rare", "rare"], [*TEXTS, "x", "y"]
    rows = dict(zip(TEXTS, scores.tolist(), strict=True)) | {"x": [9.0] * MEMBERS, "y": [math.nan] * MEMBERS}
    rows[TEXTS[0]] = [math.nan] * MEMBERS
    gold = [*truth.tolist(), 1.0, 1.0]
    gold[1] = math.nan
    source = FunctionMembers(lambda p, c: [rows[str(text)] for text in c], MEMBERS)
    settings = {"objectives": ["mean"], "kl_budgets": [1.0], "runs": 2}
    found = forecast_source(source, names, texts, gold=gold, **settings)
    assert (found["prompts"], found["prompts_left_out"], found["candidates"]) == (PROMPTS, 1, COUNT - 2)
    plain = forecast_source(source, NAMES[2:], TEXTS[2:], gold=gold[2:-2], **settings)
    assert row(found, "mean")["gold"]["gain"] == row(plain, "mean")["gold"]["gain"]


def refused(
    source: RewardSource, names: Sequence[str] = NAMES, texts: Sequence[str] = TEXTS, **settings: object
) -> None:
    forecast_source(source, list(names), list(texts), **settings)  # type: ignore[arg-type]


def test_bad_questions_are_refused_with_what_to_do() -> None:
    truth, scores = world(0.5)
    source = members(scores)
    with pytest.raises(ConfigError, match=r"at most ln n − 1 = 2.47 nats, not 9; draw 22,027 of each"):
        refused(source, kl_budgets=[9.0])
    with pytest.raises(ConfigError, match="did you mean 'variance_aware'"):
        refused(source, objectives=["variance_awre"])
    with pytest.raises(ConfigError, match="'x' is no number; write it like lcb:2"):
        refused(source, objectives=["lcb:x"])
    with pytest.raises(DataError, match="no prompt has 8 completions"):
        refused(source, NAMES[::8], TEXTS[::8])
    alone = members(scores[:, :1])
    with pytest.raises(VarianceError, match="no variance"):
        refused(alone)
    assert row(forecast_source(alone, NAMES, TEXTS, gold=truth.tolist()), "vanilla")["draws"] is None
    with pytest.raises(DataError, match="one prompt for each"):
        group_texts(["a"], [])
