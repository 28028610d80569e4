"""A smoothed variance: what it is made of, that it is kept, and that every kind of ensemble can have it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.errors import ConfigError, DataError
from surefoot.maths.ensemble import degrees_of_freedom, sample_variance
from surefoot.maths.smoothing import fit_log_variance
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.config import reward_arguments
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.heads.source import SharedTrunkHeads
from surefoot.rewards.kinds.independent.config import IndependentConfig
from surefoot.rewards.kinds.independent.fit import train_independent
from surefoot.rewards.kinds.smoothed import SmoothedVariance, smooth_variance
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.loading import load_trunk
from surefoot.types import Calibration
from tests.models import WORDS

MEMBERS = 6
PROMPTS = [f"the {word} " for word in WORDS[:4] for _ in range(5)]
COMPLETIONS = [f"{WORDS[(3 * i) % 10]} {WORDS[(7 * i + i // 5) % 10]}" for i in range(20)]
GROUPS = torch.arange(20) // 5


@pytest.fixture
def heads(policy_path: Path, pairs: Dataset) -> SharedTrunkHeads:
    return train_heads(pairs, policy_path, HeadsConfig(members=MEMBERS, layer=0, epochs=3), device="cpu")


@pytest.fixture
def source(heads: SharedTrunkHeads, pairs: Dataset, policy_path: Path) -> SmoothedVariance:
    found = smooth_variance(heads, pairs, policy_path)
    rows = found.score(PROMPTS, COMPLETIONS)
    found.calibrate(rows, group_anchors(rows, GROUPS))
    return found


def test_columns_are_the_members_and_the_features(source: SmoothedVariance, heads: SharedTrunkHeads) -> None:
    rows = source.score(PROMPTS, COMPLETIONS)
    torch.testing.assert_close(rows[:, :MEMBERS], heads.score(PROMPTS, COMPLETIONS))
    torch.testing.assert_close(rows[:, MEMBERS:] * source.spread, heads.features(PROMPTS, COMPLETIONS))
    assert source.num_members == MEMBERS


def test_the_trunk_of_heads_runs_once(source: SmoothedVariance, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def counted(*args: Any, **keywords: Any) -> torch.Tensor:
        calls.append(1)
        return compute_features(*args, **keywords)

    monkeypatch.setattr("surefoot.rewards.kinds.heads.source.compute_features", counted)
    monkeypatch.setattr("surefoot.rewards.kinds.smoothed.compute_features", counted)
    source.score(PROMPTS, COMPLETIONS)
    assert len(calls) == 1


def test_the_variance_is_the_regressions_and_the_mean_the_members(source: SmoothedVariance) -> None:
    rows = source.score(PROMPTS, COMPLETIONS)
    anchors = group_anchors(rows, GROUPS)
    found = source.estimate(rows, anchors)
    delta = rows.double() - anchors.rows
    members, lengths = delta[:, :MEMBERS], source.scatter.lengths(delta[:, MEMBERS:])
    fitted = fit_log_variance(lengths, sample_variance(members), degrees_of_freedom(members))
    torch.testing.assert_close(found.variance, fitted.of(lengths), rtol=1e-10, atol=0)
    torch.testing.assert_close(found.mean, rows[:, :MEMBERS].double().mean(dim=1), rtol=1e-6, atol=1e-7)
    assert found.members is not None
    assert found.members.shape == (20, MEMBERS)
    assert float((found.variance - sample_variance(members)).abs().max()) > 0


def test_a_margin_is_anchored_by_the_other_side(source: SmoothedVariance) -> None:
    rows = source.score(PROMPTS, COMPLETIONS)
    found = source.margins(rows[:5], rows[5:10])
    lengths = source.scatter.lengths((rows[:5] - rows[5:10]).double()[:, MEMBERS:])
    assert source.calibration is not None
    _, fitted = source._fitted()
    torch.testing.assert_close(found.variance, fitted.of(lengths))
    torch.testing.assert_close(found.mean, (rows[:5] - rows[5:10]).double()[:, :MEMBERS].mean(dim=1))


def test_saved_and_loaded(source: SmoothedVariance, tmp_path: Path) -> None:
    rows = source.score(PROMPTS, COMPLETIONS)
    anchors = group_anchors(rows, GROUPS)
    source.save(tmp_path / "s")
    loaded = load_source(tmp_path / "s", "cpu")
    assert isinstance(loaded, SmoothedVariance)
    assert torch.equal(loaded.score(PROMPTS, COMPLETIONS), rows)
    assert loaded.calibration == source.calibration
    for given in (anchors, None):
        assert torch.equal(loaded.estimate(rows, given).variance, source.estimate(rows, given).variance)
    assert loaded.calibrate(rows, anchors) == source.calibrate(rows, anchors)
    assert {path.suffix for path in (tmp_path / "s").rglob("*") if path.is_file()} <= {".safetensors", ".json"}


def test_a_checkpoint_holds_all_of_the_calibration(source: SmoothedVariance) -> None:
    """A trainer keeps `Calibration.to_dict` and calibrates again on other rows: both must be enough by themselves."""
    rows = source.score(PROMPTS, COMPLETIONS)
    anchors = group_anchors(rows, GROUPS)
    held = json.loads(json.dumps(source.calibration.to_dict()))  # type: ignore[union-attr]
    before = source.estimate(rows, anchors).variance
    source.calibrate(rows[:12], anchors_of(rows[:12]))
    assert float((source.estimate(rows, anchors).variance / before - 1).abs().max()) > 1e-3
    source.calibration = Calibration.from_dict(held)
    assert torch.equal(source.estimate(rows, anchors).variance, before)


def anchors_of(rows: torch.Tensor) -> Any:
    return group_anchors(rows, torch.arange(len(rows)) // 4)


def test_stored_anchors_give_the_variance_of_given_ones(source: SmoothedVariance) -> None:
    rows = source.score(PROMPTS, COMPLETIONS)
    store = AnchorStore(source.name, 5)
    store.add(PROMPTS[::5], rows)
    found, expected = source.estimate(rows, store.of(PROMPTS)), source.estimate(rows, group_anchors(rows, GROUPS))
    torch.testing.assert_close(found.variance, expected.variance, rtol=1e-4, atol=1e-9)
    assert found.anchor_kinds == ["reference"] * 20


def test_scaled_members(heads: SharedTrunkHeads, pairs: Dataset, policy_path: Path, tmp_path: Path) -> None:
    heads.scale_members = True
    source = smooth_variance(heads, pairs, policy_path)
    rows = source.score(PROMPTS, COMPLETIONS)
    calibration = source.calibrate(rows, group_anchors(rows, GROUPS))
    assert len(set(calibration.scales[:MEMBERS])) == MEMBERS
    assert set(calibration.scales[MEMBERS:]) == {1.0}
    source.save(tmp_path)
    loaded = load_source(tmp_path, "cpu")
    assert isinstance(loaded, SmoothedVariance)
    assert loaded.members.scale_members
    assert loaded.calibrate(rows, group_anchors(rows, GROUPS)) == calibration


def test_independent_members_read_a_trunk_beside_them(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    config = IndependentConfig(members=2, epochs=1, batch_size=8, learning_rate=1e-3, max_length=16)
    members = train_independent(pairs, policy_path, tmp_path / "m", config, device="cpu")
    source = smooth_variance(members, pairs, policy_path, pooling="mean", layer=0, max_length=16, device="cpu")
    rows = source.score(PROMPTS, COMPLETIONS)
    torch.testing.assert_close(rows[:, :2], members.score(PROMPTS, COMPLETIONS))
    trunk = load_trunk(policy_path, torch.device("cpu"))
    assert source.trunk is not None
    ids = source.trunk.encoder(PROMPTS, COMPLETIONS)
    features = compute_features(trunk, ids, pooling="mean", layer=0, pad_token_id=0)
    torch.testing.assert_close(rows[:, 2:] * source.spread, features, rtol=1e-4, atol=1e-5)
    source.calibrate(rows, group_anchors(rows, GROUPS))
    source.save(tmp_path / "s")
    loaded = load_source(tmp_path / "s", "cpu")
    torch.testing.assert_close(loaded.score(PROMPTS, COMPLETIONS), rows)
    assert torch.equal(loaded.estimate(rows).variance, source.estimate(rows).variance)


def test_what_cannot_be_smoothed(heads: SharedTrunkHeads, pairs: Dataset, policy_path: Path) -> None:
    source = smooth_variance(heads, pairs, policy_path)
    rows = source.score(PROMPTS, COMPLETIONS)
    with pytest.raises(DataError, match="isn't calibrated: its variance is fitted by `calibrate`"):
        source.estimate(rows, group_anchors(rows, GROUPS))
    with pytest.raises(DataError, match="isn't calibrated"):
        source.margins(rows[:2], rows[2:4])
    with pytest.raises(DataError, match=r"reads rows of 38 columns, got \(20, 6\)"):
        source.estimate(rows[:, :6])
    one = FunctionMembers(lambda p, c: [[1.0]] * len(p), 1)
    with pytest.raises(ConfigError, match="needs at least two members, got 1"):
        SmoothedVariance(one, source.trunk, source.spread, source.scatter)
    two = FunctionMembers(lambda p, c: [[1.0, 2.0]] * len(p), 2, "mine")
    with pytest.raises(ConfigError, match="'mine' has no trunk that its members share"):
        SmoothedVariance(two, None, source.spread, source.scatter)


# From settings


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kind": "mixed"}, "reads the features of a trunk, which kind: mixed hasn't; it is for heads, independent"),
        ({"kind": "judge"}, "reads the features of a trunk, which kind: judge hasn't"),
        ({"kind": "laplace"}, "kind: laplace has no members"),
        ({"kind": "heads", "members": 1}, "variance: smoothed needs at least two members"),
        ({"kind": "lora", "penalty": 1.0}, "kind: lora has no penalty"),
        ({"variance": "smooth"}, "variance must be one of moderated, raw, smoothed, got 'smooth'"),
        ({"variance": "raw", "kind": "lora", "layer": 0}, "kind: lora has no layer"),
    ],
)
def test_settings_that_make_no_sense(changes: dict[str, Any], message: str) -> None:
    settings = {"output_dir": "x", "model_name_or_path": "m", "dataset_name": "d", "variance": "smoothed"} | changes
    with pytest.raises(ConfigError, match=message):
        reward_arguments(**settings).check()


@pytest.mark.parametrize("kind", ["heads", "independent", "lora", "dropout"])
def test_from_the_command(
    kind: str, policy_path: Path, pairs: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pairs.to_parquet(tmp_path / "pairs.parquet")
    common = [f"--dataset_name={tmp_path / 'pairs.parquet'}", "--held_out=0.4", "--max_length=16"]
    base = policy_path
    if kind == "dropout":  # it thins a model that is there
        words = ["--kind=independent", "--members=1", "--epochs=1", f"--model_name_or_path={policy_path}"]
        assert main(["reward", *words, *common, f"--output_dir={tmp_path / 'rm'}"]) == 0
        base = tmp_path / "rm" / "source" / "members" / "0"
    words = [f"--kind={kind}", "--members=4", "--variance=smoothed", "--layer=0", "--pooling=mean"]
    words += [] if kind == "dropout" else ["--epochs=1"]
    words += [f"--model_name_or_path={base}", *common, f"--output_dir={tmp_path / 'run'}"]
    assert main(["reward", *words]) == 0, capsys.readouterr().err
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    assert len(record["metrics"]["accuracy_of_members"]) == 4
    assert record["metrics"]["calibration"]["variance_kind"] == "smoothed"
    source = load_source(tmp_path / "run" / "source", "cpu")
    assert isinstance(source, SmoothedVariance)
    assert source.variance_factor == pytest.approx(record["metrics"]["variance_factor"])
    assert source.estimate(source.score(PROMPTS, COMPLETIONS)).has_variance
    assert "kind `smoothed`: 4 members" in (tmp_path / "run" / "source" / "README.md").read_text()
