"""Laplace, distance, dropout, distilled and function sources: what their variance is, and what leaves it alone."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from surefoot.diagnosis.disagreement import measure_disagreement
from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.maths.ensemble import fit_variance_factor
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.distilled import DistilledConfig, distil
from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
from surefoot.rewards.kinds.laplace import LaplaceConfig, LaplaceRewardModel, RewardReader, fit_laplace
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource
from surefoot.types import Anchors

PROMPTS = ["the red ", "a blue ", "the red ", "a blue "]
COMPLETIONS = ["cat runs", "dog and the cat", "dog", "cat sleeps"]
GROUPS = torch.tensor([0, 1, 0, 1])


def own(rows: torch.Tensor) -> Anchors:
    """Each prompt's two completions as its anchor."""
    return group_anchors(rows, GROUPS)


@pytest.fixture(scope="module")
def model_path(policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model, as a user would have one."""
    from surefoot.rewards.trunk.loading import load_tokenizer

    folder = tmp_path_factory.mktemp("reward")
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
    model.score.weight.data = torch.randn(1, 32, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    load_tokenizer(policy_path).save_pretrained(folder)
    return folder


@pytest.fixture(params=[0.0, 1.0])
def laplace(model_path: Path, pairs: Dataset, request: pytest.FixtureRequest) -> LaplaceRewardModel:
    config = LaplaceConfig(precision=0.5, distance=request.param, distance_features=64)
    return fit_laplace(pairs, model_path, config, device="cpu")


def round_trip(source: RewardSource, folder: Path) -> RewardSource:
    rows = source.score(PROMPTS, COMPLETIONS)
    source.calibrate(rows, own(rows))
    source.save(folder / "source")
    again = load_source(folder / "source", "cpu")
    torch.testing.assert_close(again.score(PROMPTS, COMPLETIONS), rows)
    first, second = source.estimate(rows, own(rows)), again.estimate(rows, own(rows))
    torch.testing.assert_close(first.variance, second.variance)
    return again


def test_the_reward_is_the_models_own(laplace: LaplaceRewardModel, model_path: Path) -> None:
    from surefoot.rewards.kinds.independent.source import IndependentMembers

    plain = IndependentMembers.from_models([model_path], device="cpu").score(PROMPTS, COMPLETIONS)[:, 0]
    torch.testing.assert_close(laplace.score(PROMPTS, COMPLETIONS)[:, 0], plain)


def test_variance_against_the_dense_matrices(model_path: Path, pairs: Dataset) -> None:
    source = fit_laplace(pairs, model_path, LaplaceConfig(precision=0.5), device="cpu")
    rows = torch.cat([source.score(pairs["prompt"], pairs[side]) for side in ("chosen", "rejected")]).double()
    difference = rows[:24] - rows[24:]
    p = torch.sigmoid(difference[:, 0])
    hessian = difference[:, 1:].T @ torch.diag(p * (1 - p)) @ difference[:, 1:] + 0.5 * torch.eye(32)
    covariance = torch.linalg.inv(hessian)
    x = source.score(PROMPTS, COMPLETIONS)
    features = x[:, 1:].double()
    centred = torch.stack([features[i] - (features[i % 2] + features[i % 2 + 2]) / 2 for i in range(4)])
    expected = torch.einsum("bi,ij,bj->b", centred, covariance, centred)
    torch.testing.assert_close(source.estimate(x, own(x)).variance, expected, rtol=1e-6, atol=1e-9)
    margin = source.margins(x[:1], x[2:3])
    d = (features[0] - features[2])[None]
    torch.testing.assert_close(margin.variance, torch.einsum("bi,ij,bj->b", d, covariance, d), rtol=1e-6, atol=1e-9)


def test_a_constant_feature_changes_nothing(laplace: LaplaceRewardModel) -> None:
    x = laplace.score(PROMPTS, COMPLETIONS)
    moved = x.clone()
    moved[GROUPS == 1, 1:] += torch.linspace(-1, 1, x.shape[1] - 1)
    moved[GROUPS == 1, 0] += 7
    before, after = laplace.estimate(x, own(x)), laplace.estimate(moved, own(moved))
    torch.testing.assert_close(before.variance, after.variance, rtol=1e-4, atol=1e-7)


def test_saved_and_loaded(laplace: LaplaceRewardModel, tmp_path: Path) -> None:
    assert isinstance(round_trip(laplace, tmp_path), LaplaceRewardModel)


def test_posterior_draws_have_the_variance(laplace: LaplaceRewardModel) -> None:
    x = laplace.score(PROMPTS, COMPLETIONS)
    draws = laplace.sample_members(x, 40_000)
    margins = draws[0] - draws[2]
    expected = float(laplace.margins(x[:1], x[2:3]).variance)
    assert float(margins.var()) == pytest.approx(expected, rel=0.05)


def test_diagnose_reads_the_draws(laplace: LaplaceRewardModel, pairs: Dataset) -> None:
    found = measure_disagreement(laplace, pairs)
    assert found.pairs == 24
    assert found.members == 20


def test_an_unscored_row_stays_nan(laplace: LaplaceRewardModel) -> None:
    x = laplace.score(PROMPTS, COMPLETIONS)
    x[1] = torch.nan
    found = laplace.estimate(x, own(x))
    assert bool(found.mean[1].isnan())
    assert bool(found.variance[1].isnan())
    assert bool(found.variance[[0, 2]].isfinite().all())


def test_works_for_an_encoder(encoder_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(encoder_path, num_labels=1)
    from surefoot.rewards.trunk.loading import load_tokenizer

    model.save_pretrained(tmp_path / "rm")
    load_tokenizer(encoder_path).save_pretrained(tmp_path / "rm")
    source = fit_laplace(pairs, tmp_path / "rm", LaplaceConfig(), device="cpu")
    assert (
        float(source.margins(*(source.score(PROMPTS, c) for c in (COMPLETIONS, COMPLETIONS[::-1]))).variance.max()) > 0
    )


def test_a_head_that_is_not_last_is_refused(model_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(model_path)
    reader = RewardReader(model)
    model.score.register_forward_hook(lambda module, args, output: 10 + 3 * output)
    with pytest.raises(ModelError, match="is not its last linear layer's output"):
        reader(torch.tensor([[3, 4, 5]]), torch.ones(1, 3, dtype=torch.long))


def test_every_loader_refuses_a_reward_made_after_the_head(
    model_path: Path, pairs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    from surefoot.rewards.kinds import laplace as module

    plain = module.load_classifier

    def changed(*args: object, **keywords: object) -> object:
        model = plain(*args, **keywords)  # type: ignore[arg-type]
        model.score.register_forward_hook(lambda module, args, output: 10 + 3 * output)
        return model

    monkeypatch.setattr(module, "load_classifier", changed)
    with pytest.raises(ModelError, match="is not its last linear layer's output"):
        fit_laplace(pairs, model_path, LaplaceConfig(), device="cpu")
    with pytest.raises(ModelError, match="is not its last linear layer's output"):
        DropoutMembers.from_model(model_path, DropoutConfig(2), device="cpu")


def test_dropout_of_an_encoder(encoder_path: Path, tmp_path: Path) -> None:
    from surefoot.rewards.kinds.independent.source import IndependentMembers
    from surefoot.rewards.trunk.loading import load_tokenizer

    torch.manual_seed(0)
    AutoModelForSequenceClassification.from_pretrained(encoder_path, num_labels=1).save_pretrained(tmp_path)
    load_tokenizer(encoder_path).save_pretrained(tmp_path)
    source = DropoutMembers.from_model(tmp_path, DropoutConfig(3, rate=0.3, start=0.5), device="cpu")
    together = source.score(PROMPTS, COMPLETIONS)
    alone = torch.cat([source.score([p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-6)
    assert float(together.std(dim=1).min()) > 1e-5
    plain = IndependentMembers.from_models([tmp_path], device="cpu").score(PROMPTS, COMPLETIONS)
    thin = DropoutMembers.from_model(tmp_path, DropoutConfig(2, rate=1e-9), device="cpu")
    torch.testing.assert_close(thin.score(PROMPTS, COMPLETIONS), plain.expand(-1, 2), rtol=1e-4, atol=1e-6)


@pytest.fixture
def dropout(model_path: Path) -> DropoutMembers:
    return DropoutMembers.from_model(model_path, DropoutConfig(members=4, rate=0.2, seed=3), device="cpu")


def test_dropout_members_are_functions_of_the_text(dropout: DropoutMembers, model_path: Path, tmp_path: Path) -> None:
    together = dropout.score(PROMPTS, COMPLETIONS)
    alone = torch.cat([dropout.score([p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(together, dropout.score(PROMPTS, COMPLETIONS))
    assert float(together.std(dim=1).min()) > 1e-3
    other = DropoutMembers.from_model(model_path, DropoutConfig(members=4, rate=0.2, seed=4), device="cpu")
    assert float((other.score(PROMPTS, COMPLETIONS) - together).abs().max()) > 1e-3
    round_trip(dropout, tmp_path)


def test_dropout_members_come_from_seed_and_number_alone(dropout: DropoutMembers, model_path: Path) -> None:
    two = DropoutMembers.from_model(model_path, DropoutConfig(members=2, rate=0.2, seed=3), device="cpu")
    torch.testing.assert_close(two.score(PROMPTS, COMPLETIONS), dropout.score(PROMPTS, COMPLETIONS)[:, :2])


def test_little_dropout_is_the_model_and_masks_are_unbiased(model_path: Path) -> None:
    from surefoot.rewards.kinds.independent.source import IndependentMembers

    plain = IndependentMembers.from_models([model_path], device="cpu").score(PROMPTS, COMPLETIONS)
    thin = DropoutMembers.from_model(model_path, DropoutConfig(members=2, rate=1e-9), device="cpu")
    torch.testing.assert_close(thin.score(PROMPTS, COMPLETIONS), plain.expand(-1, 2), rtol=1e-4, atol=1e-5)
    many = DropoutMembers.from_model(model_path, DropoutConfig(members=4000, rate=0.3), device="cpu")
    assert float(many._masks(0, 32).mean()) == pytest.approx(1, abs=0.01)


def test_shared_layers_change_nothing_but_the_cost(model_path: Path) -> None:
    upper = DropoutMembers.from_model(model_path, DropoutConfig(members=3, rate=0.2, start=0.5), device="cpu")
    assert upper.first == 1
    found = upper.score(PROMPTS, COMPLETIONS)
    assert float(found.std(dim=1).min()) > 1e-4


def test_a_distilled_source_saved_and_loaded(policy_path: Path, tmp_path: Path) -> None:
    words = ["red", "green", "blue", "the", "a", "and", "runs", "sleeps"]
    rows = [(f"{words[i % 8]} ", f"cat {words[i % 7]} {words[i % 5]}", f"dog {words[i % 5]}") for i in range(200)]
    data = Dataset.from_dict(
        dict(zip(("prompt", "chosen", "rejected"), map(list, zip(*rows, strict=True)), strict=True))
    )

    def teacher(prompts: object, completions: list[str]) -> list[list[float]]:
        noise = torch.Generator().manual_seed(0)
        size = [1.0 if "dog" in text else 0.1 for text in completions]
        return [(s * torch.randn(4, generator=noise)).tolist() for s in size]

    source = distil(data, FunctionMembers(teacher, 4), policy_path, DistilledConfig(layer=0, epochs=20), device="cpu")
    assert source.calibration is not None
    assert "distilled_spearman" in source.calibration.notes
    found = round_trip(source, tmp_path)
    assert found.estimate(found.score(PROMPTS, COMPLETIONS)).has_variance


def test_distillation_ranks_variances_on_held_out_pairs(policy_path: Path) -> None:
    words = ["red", "green", "blue", "the", "a", "and", "runs", "sleeps"]
    rows = [(f"{words[i % 8]} ", f"{words[i % 7]} {words[i % 5]}", f"{words[(3 * i) % 8]} cat") for i in range(300)]
    data = Dataset.from_dict(
        dict(zip(("prompt", "chosen", "rejected"), map(list, zip(*rows, strict=True)), strict=True))
    )

    def teacher(prompts: list[str], completions: list[str]) -> tuple[list[float], list[float]]:
        return [float(len(c)) for c in completions], [5.0 if "cat" in c else 0.1 + 0.1 * len(c) for c in completions]

    source = distil(data, FunctionReward(teacher), policy_path, DistilledConfig(layer=0), device="cpu")
    assert source.calibration is not None
    assert source.calibration.notes["distilled_spearman"] > 0.9


def test_function_reward(tmp_path: Path) -> None:
    source = FunctionReward(lambda p, c: ([1.0, 2.0], [0.5, 0.25]), name="mine")
    rows = source.score(["a", "b"], ["c", "d"])
    found = source.estimate(rows)
    assert found.mean.tolist() == [1.0, 2.0]
    assert found.variance.tolist() == [0.5, 0.25]
    margin = source.margins(rows[:1], rows[1:])
    assert (float(margin.mean), float(margin.variance)) == (-1.0, 0.75)
    assert source.calibrate(rows).reference_variance == 0.375
    with pytest.raises(DataError, match=r"'mine' gave means of shape \(2,\) for 1 completions"):
        source.score(["a"], ["b"])
    with pytest.raises(DataError, match=r"variance of -1.0 in row 0"):
        FunctionReward(lambda p, c: ([1.0], [-1.0])).score(["a"], ["b"])


@pytest.mark.parametrize("factor", [0.5, 3.0])
def test_the_variance_factor_is_found(factor: float) -> None:
    """Labels drawn from σ(m + √(c v) z): the fitted c is within its error of the true one."""
    stream = torch.Generator().manual_seed(1)
    m = 2.5 * torch.randn(200_000, generator=stream, dtype=torch.float64)
    v = 0.5 + 2 * torch.rand(200_000, generator=stream, dtype=torch.float64)
    noisy = m + (factor * v).sqrt() * torch.randn(200_000, generator=stream, dtype=torch.float64)
    wins = torch.rand(200_000, generator=stream, dtype=torch.float64) < torch.sigmoid(noisy)
    found = fit_variance_factor(torch.where(wins, m, -m), v)
    assert found == pytest.approx(factor, rel=0.25)


def test_a_tenth_of_the_variance_asks_for_ten_times_the_factor() -> None:
    """By likelihood alone; the prior draws a few hundred labels' factor towards 1, and yields to many."""
    stream = torch.Generator().manual_seed(2)
    m = 2.5 * torch.randn(400, generator=stream, dtype=torch.float64)
    noisy = m + 3 * torch.randn(400, generator=stream, dtype=torch.float64)
    wins = torch.rand(400, generator=stream, dtype=torch.float64) < torch.sigmoid(noisy)
    m, v = torch.where(wins, m, -m), torch.full((400,), 9.0, dtype=torch.float64)
    alone = [fit_variance_factor(m, scale * v, prior_scale=math.inf) for scale in (1.0, 0.1)]
    assert alone[1] == pytest.approx(10 * alone[0], rel=1e-3)
    drawn = fit_variance_factor(m, 0.1 * v)
    assert 1 < drawn < alone[1]
    many = fit_variance_factor(m.repeat(100), 0.1 * v.repeat(100))
    assert many == pytest.approx(alone[1], rel=0.05)


def test_the_factor_scales_every_variance_and_no_weight(laplace: LaplaceRewardModel, tmp_path: Path) -> None:
    x = laplace.score(PROMPTS, COMPLETIONS)
    before, reference = laplace.estimate(x, own(x)).variance, laplace.calibrate(x, own(x)).reference_variance
    laplace.variance_factor = 4.0
    after = laplace.estimate(x, own(x)).variance
    torch.testing.assert_close(after, 4 * before)
    assert reference is not None
    assert laplace.calibrate(x, own(x)).reference_variance == pytest.approx(4 * reference)
    laplace.save(tmp_path / "source")
    assert load_source(tmp_path / "source", "cpu").variance_factor == 4.0


def test_bad_settings(model_path: Path, pairs: Dataset) -> None:
    with pytest.raises(ConfigError, match="rate must lie between 0 and 1"):
        DropoutConfig(rate=1.0)
    with pytest.raises(ConfigError, match="distance must not be negative"):
        fit_laplace(pairs, model_path, LaplaceConfig(distance=-1.0))
    with pytest.raises(DataError, match="at least 20 pairs, got 3"):
        distil(pairs.select(range(3)), FunctionMembers(lambda p, c: [[0.0]], 1), model_path, DistilledConfig())


def test_a_distance_term_shares_prompts_too(model_path: Path, pairs: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shared prompts give the same rewards, features and distance features, and are computed once."""
    from surefoot.rewards.trunk import hidden_states as states

    source = fit_laplace(pairs, model_path, LaplaceConfig(distance=1.0, distance_layer=1), device="cpu")
    prompts = [f"the {'red cat and ' * 5}"] * 4 + [f"a {'blue dog and ' * 5}"] * 4
    completions = ["runs", "sleeps and", "cat", "dog runs and", "red", "a", "the cat", "and"]
    calls = []
    real = states.forward_shared
    monkeypatch.setattr(states, "forward_shared", lambda *a, **k: calls.append(1) or real(*a, **k))
    shared = source.score(prompts, completions)
    assert calls
    alone = torch.cat([source.score([p], [c]) for p, c in zip(prompts, completions, strict=True)])
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)
    source.reader.trunk = None  # the model's own forward
    torch.testing.assert_close(source.score(prompts, completions), alone, rtol=1e-4, atol=1e-4)


def test_a_function_is_not_trained(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="made in Python"):
        FunctionReward.fit(None)  # type: ignore[arg-type]
