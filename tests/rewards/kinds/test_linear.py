"""The linear source: its reward and variance against the dense matrices, what it keeps, and how it is made."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.diagnosis.disagreement import measure_disagreement
from surefoot.errors import ConfigError, DataError
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.config import RewardSourceArguments, reward_arguments
from surefoot.rewards.hub import model_card, write_card
from surefoot.rewards.kinds.linear import LinearConfig, LinearReward, fit_linear
from surefoot.rewards.registry import load_source
from surefoot.types import Calibration

PROMPTS = ["the red ", "a blue ", "the red ", "a blue "]
COMPLETIONS = ["cat runs", "dog and the cat", "dog", "cat sleeps"]
GROUPS = torch.tensor([0, 1, 0, 1])
CONFIG = LinearConfig(layer=0, penalty=0.7)


@pytest.fixture(params=["laplace", "sandwich"])
def source(policy_path: Path, pairs: Dataset, request: pytest.FixtureRequest) -> LinearReward:
    return fit_linear(pairs, policy_path, replace(CONFIG, covariance=request.param), device="cpu")


def dense(source: LinearReward, pairs: Dataset) -> tuple[torch.Tensor, torch.Tensor]:
    """(weights' gradient at the source's weights, covariance) from the pairs' own scored rows, by plain matrices."""
    chosen, rejected = (source.score(pairs["prompt"], pairs[side]).double()[:, 1:] for side in ("chosen", "rejected"))
    d, w = chosen - rejected, source.weights.double()
    p = torch.sigmoid(d @ w)
    hessian = d.T @ torch.diag(p * (1 - p)) @ d + 0.7 * torch.eye(d.shape[1], dtype=torch.float64)
    inverse = torch.linalg.inv(hessian)
    if source.figures["covariance"] == "sandwich":
        inverse = inverse @ d.T @ torch.diag((1 - p).square()) @ d @ inverse
    return 0.7 * w - d.T @ (1 - p), inverse


def test_reward_and_variance_against_the_dense_matrices(source: LinearReward, pairs: Dataset) -> None:
    gradient, covariance = dense(source, pairs)
    assert float(gradient.abs().max()) < 1e-4  # weights are kept in float32
    x = source.score(PROMPTS, COMPLETIONS)
    features = x[:, 1:].double()
    torch.testing.assert_close(x[:, 0], (features @ source.weights.double()).float(), rtol=1e-4, atol=1e-5)
    centred = torch.stack([features[i] - (features[i % 2] + features[i % 2 + 2]) / 2 for i in range(4)])
    found = source.estimate(x, group_anchors(x, GROUPS))
    expected = torch.einsum("bi,ij,bj->b", centred, covariance, centred)
    torch.testing.assert_close(found.variance, expected, rtol=1e-4, atol=1e-9)
    margin = source.margins(x[:1], x[2:3])
    d = (features[0] - features[2])[None]
    torch.testing.assert_close(margin.variance, torch.einsum("bi,ij,bj->b", d, covariance, d), rtol=1e-4, atol=1e-9)
    assert float(margin.mean) == pytest.approx(float(x[0, 0] - x[2, 0]), rel=1e-5)


def test_it_learns_what_was_preferred(source: LinearReward) -> None:
    scores = source.score(["the red "] * 2, ["cat runs and", "dog runs and"])[:, 0]
    assert float(scores[0]) > float(scores[1])


def test_saved_and_loaded(source: LinearReward, tmp_path: Path) -> None:
    rows = source.score(PROMPTS, COMPLETIONS)
    anchors = group_anchors(rows, GROUPS)
    source.calibrate(rows, anchors)
    source.save(tmp_path / "s")
    loaded = load_source(tmp_path / "s", "cpu")
    assert isinstance(loaded, LinearReward)
    assert torch.equal(loaded.score(PROMPTS, COMPLETIONS), rows)
    first, second = source.estimate(rows, anchors), loaded.estimate(rows, anchors)
    assert torch.equal(first.variance, second.variance)
    assert torch.equal(source.estimate(rows).variance, loaded.estimate(rows).variance)
    assert loaded.figures == source.figures
    assert loaded.calibration == source.calibration
    assert {path.suffix for path in (tmp_path / "s").rglob("*") if path.is_file()} <= {".safetensors", ".json"}


def test_the_card_says_how_it_was_fitted(source: LinearReward, tmp_path: Path) -> None:
    rows = source.score(PROMPTS, COMPLETIONS)
    source.calibrate(rows, group_anchors(rows, GROUPS))
    source.save(tmp_path)
    write_card(tmp_path, source, "me/mine")
    card = (tmp_path / "README.md").read_text()
    assert 'load_source("me/mine")' in card
    assert "penalty τ of the weights, on standardised features | 0.7 |" in card
    assert f"covariance of the weights | {source.figures['covariance']} |" in card
    assert f"not the pairs | {source.figures['shrinkage']:.3g} |" in card
    assert "(left_out) | 0 |" in card
    assert "reliability of the variance, at most 1 | 1.00 |" in card
    exec("\n".join(line for line in card.splitlines() if line.startswith(("import ", "from "))), {})


@pytest.mark.parametrize(
    ("shrinkage", "reliability", "warned"), [(0.2, 1.0, (False, False)), (0.9, 0.4, (True, True))]
)
def test_the_card_warns(shrinkage: float, reliability: float, warned: tuple[bool, bool]) -> None:
    calibration = Calibration((0.0,), (1.0,), None, 0.5, 9, {"weight_cv": 0.5, "reliability": reliability})
    card = model_card("linear", "mine", None, calibration, "me/mine", {"shrinkage": shrinkage})
    said = "The penalty determines most of the weights" in card, "weights made of it are mostly noise" in card
    assert said == warned
    uncalibrated = model_card("linear", "mine", None, None, "me/mine", {"shrinkage": shrinkage})
    assert "Not calibrated yet" in uncalibrated
    assert ("The penalty determines" in uncalibrated) == warned[0]


def test_posterior_draws_have_the_variance(source: LinearReward) -> None:
    x = source.score(PROMPTS, COMPLETIONS)
    draws = source.sample_members(x, 40_000)
    margins = draws[0] - draws[2]
    expected = float(source.margins(x[:1], x[2:3]).variance)
    assert float(margins.var(correction=1)) == pytest.approx(expected, rel=0.05)


def test_diagnose_reads_the_draws(source: LinearReward, pairs: Dataset) -> None:
    assert measure_disagreement(source, pairs).members == 20


def test_scores_do_not_depend_on_company(source: LinearReward, pairs: Dataset) -> None:
    together = source.score(pairs["prompt"], pairs["rejected"])
    one_by_one = torch.cat([source.score([row["prompt"]], [row["rejected"]]) for row in pairs])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_the_same_pairs_give_the_same_source(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    """With and without the cache, and with it filled."""
    made = [
        fit_linear(pairs, policy_path, LinearConfig(layer=0), cache_directory=cache, device="cpu")
        for cache in (None, tmp_path, tmp_path)
    ]
    for other in made[1:]:
        assert torch.equal(other.weights, made[0].weights)
        assert torch.equal(other.terms[0].covariance.shift, made[0].terms[0].covariance.shift)
    assert len(list(tmp_path.rglob("features.safetensors"))) == 1


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_of_an_encoder(encoder_path: Path, pairs: Dataset, pooling: Any) -> None:
    source = fit_linear(pairs, encoder_path, LinearConfig(pooling=pooling), device="cpu")
    margins = source.margins(*(source.score(PROMPTS, texts) for texts in (COMPLETIONS, COMPLETIONS[::-1])))
    assert float(margins.variance.max()) > 0
    assert bool(margins.mean.isfinite().all())


def test_margins_of_the_data_count(policy_path: Path, pairs: Dataset) -> None:
    wide = pairs.add_column("margin", [2.0] * len(pairs))  # type: ignore[call-arg]
    gaps = []
    for data in (pairs, wide):
        source = fit_linear(data, policy_path, CONFIG, device="cpu")
        chosen, rejected = (source.score(pairs["prompt"], pairs[side])[:, 0] for side in ("chosen", "rejected"))
        gaps.append(float((chosen - rejected).mean()))
    assert gaps[1] > gaps[0] + 0.1


def test_shares_of_answers_are_as_so_many_rows(policy_path: Path, pairs: Dataset) -> None:
    """Three of four answers for `chosen`: the same weights as four rows, one of them turned."""
    rows = list(pairs.select_columns(["prompt", "chosen", "rejected"]))
    shared = Dataset.from_list([{**row, "chosen_share": 0.75, "answers": 4} for row in rows])
    turned = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows]
    # The spread of the features has divisor N − 1, so that repeated rows change it by little.
    first, second = (
        fit_linear(table, policy_path, CONFIG, device="cpu")
        for table in (shared, Dataset.from_list(rows * 3 + turned))
    )
    torch.testing.assert_close(first.weights, second.weights, rtol=0.02, atol=1e-3)
    plain = fit_linear(pairs, policy_path, CONFIG, device="cpu")
    assert float(first.weights.norm()) < 0.9 * float(plain.weights.norm())
    assert first.figures["flip_rate"] == 0


def test_a_share_out_of_range_is_refused(policy_path: Path, pairs: Dataset) -> None:
    wrong = pairs.add_column("chosen_share", [1.5] * len(pairs))
    with pytest.raises(DataError, match="pair 0: the share of answers for the first completion must be between 0"):
        fit_linear(wrong, policy_path, CONFIG, device="cpu")


# From settings


def arguments(**changes: Any) -> RewardSourceArguments:
    return reward_arguments(output_dir="x", model_name_or_path="m", dataset_name="d", kind="linear", **changes)


def test_settings_reach_the_fit() -> None:
    given = arguments(pooling="last", layer=0, penalty=2.0, penalty_by="held_out", covariance="sandwich", max_length=9)
    given.check()
    assert given.kind_settings == LinearConfig("last", 0, 2.0, "held_out", "sandwich", 9)
    assert arguments().kind_settings == LinearConfig()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"penalty": -1.0}, "penalty must be positive, got -1.0"),
        ({"penalty_by": "luck"}, "penalty_by must be one of evidence, held_out, got 'luck'"),
        ({"covariance": "full"}, "covariance must be one of laplace, sandwich, got 'full'"),
        ({"flip_rate_by": "luck"}, "flip_rate_by must be one of none, evidence, got 'luck'"),
        ({"epochs": 3}, "kind: linear has no epochs"),
        ({"members": 5}, r"kind: linear has no members \(kind: dropout or heads or independent or lora\)"),
        ({"scale_members": True}, "kind: linear has no members: scale_members and variance don't apply"),
        ({"variance": "smoothed"}, "kind: linear has no members"),
        ({"variance": "raw"}, "kind: linear has no members"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        arguments(**changes).check()


def test_of_other_kinds_penalty_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kind: heads has no penalty \(kind: linear\)"):
        reward_arguments(kind="heads", output_dir="x", model_name_or_path="m", dataset_name="d", penalty=1.0)
    assert reward_arguments(output_dir="x", model_name_or_path="m", dataset_name="d", penalty=1.0).kind == "linear"


def test_from_the_command(
    policy_path: Path, pairs: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs.to_parquet(tmp_path / "pairs.parquet")
    words = ["--kind=linear", f"--model_name_or_path={policy_path}", f"--dataset_name={tmp_path / 'pairs.parquet'}"]
    words += [f"--output_dir={tmp_path / 'run'}", "--layer=0", "--held_out=0.4", "--penalty_by=held_out"]
    assert main(["reward", *words]) == 0
    said = capsys.readouterr().out
    assert "reliability of the variance: 1.00" in said
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert record["metrics"]["accuracy_of_mean"] > 0.9
    assert record["metrics"]["variance_factor"] > 0
    loaded = load_source(tmp_path / "run" / "source", "cpu")
    assert isinstance(loaded, LinearReward)
    assert loaded.calibration is not None
    assert loaded.calibration.notes["reliability"] == 1.0
    assert loaded.variance_factor == pytest.approx(record["metrics"]["variance_factor"])
    assert "kind `linear`" in (tmp_path / "run" / "source" / "README.md").read_text()
