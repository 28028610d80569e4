"""`dtype`: what a source is fitted in is what it is scored in, unless its loader says otherwise."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from surefoot import load_source
from surefoot.errors import ConfigError
from surefoot.rewards.config import reward_arguments
from surefoot.rewards.kinds.distilled import DistilledConfig, distil
from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.kinds.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear
from surefoot.rewards.kinds.mixed import MixedSources
from surefoot.rewards.kinds.smoothed import SmoothedVariance, smooth_variance
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.dtypes import Dtype, dtype_of
from surefoot.rewards.trunk.feature_cache import FeatureCache
from surefoot.rewards.trunk.loading import load_trunk
from tests.models import save_reward_model

CPU = torch.device("cpu")
TEXTS = (["the red ", "a blue "], ["cat runs", "dog and"])


@pytest.fixture(scope="module")
def reward_model(policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(policy_path, tmp_path_factory.mktemp("rm"))


def smoothed(pairs: Dataset, trunk: Path, model: Path, dtype: Dtype) -> SmoothedVariance:
    """Over dropout members, which have no trunk of their own to lend."""
    members = DropoutMembers.from_model(model, DropoutConfig(3, dtype=dtype), device=CPU)
    return smooth_variance(members, pairs, trunk, dtype=dtype, device=CPU)


MAKE: dict[str, Callable[[Dataset, Path, Path, Dtype], RewardSource]] = {
    "linear": lambda pairs, trunk, model, dtype: fit_linear(pairs, trunk, LinearConfig(dtype=dtype), device=CPU),
    "heads": lambda pairs, trunk, model, dtype: train_heads(
        pairs, trunk, HeadsConfig(3, epochs=1, dtype=dtype), device=CPU
    ),
    "distilled": lambda pairs, trunk, model, dtype: distil(
        pairs,
        train_heads(pairs, trunk, HeadsConfig(3, epochs=1), device=CPU),
        trunk,
        DistilledConfig(epochs=1, dtype=dtype),
        device=CPU,
    ),
    "laplace": lambda pairs, trunk, model, dtype: fit_laplace(pairs, model, LaplaceConfig(dtype=dtype), device=CPU),
    "dropout": lambda pairs, trunk, model, dtype: DropoutMembers.from_model(
        model, DropoutConfig(3, dtype=dtype), device=CPU
    ),
    "independent": lambda pairs, trunk, model, dtype: IndependentMembers.from_models(
        [model, model], dtype=dtype, device=CPU
    ),
    "smoothed": smoothed,
    "mixed": lambda pairs, trunk, model, dtype: MixedSources(
        [fit_linear(pairs, trunk, LinearConfig(dtype=dtype), device=CPU)] * 2
    ),
}


def precisions(source: Any) -> set[torch.dtype]:
    """Precisions of the weights of the layers (of the trunks, not of heads) inside a source."""
    found: set[torch.dtype] = set()
    left = [source]
    while left:
        value = left.pop()
        if isinstance(value, torch.nn.Module):
            found |= {weight.dtype for name, weight in value.named_parameters() if "layers." in name}
        elif isinstance(value, list | tuple):
            left += value
        elif type(value).__module__.startswith("surefoot."):
            slots = getattr(type(value), "__slots__", ())
            left += [getattr(value, name) for name in slots] if slots else list(vars(value).values())
    return found


@pytest.mark.parametrize("kind", MAKE)
def test_a_source_runs_in_what_it_was_fitted_in(
    kind: str, pairs: Dataset, policy_path: Path, reward_model: Path, tmp_path: Path
) -> None:
    source = MAKE[kind](pairs, policy_path, reward_model, "bfloat16")
    assert precisions(source) == {torch.bfloat16}
    source.save(tmp_path / "source")
    again = load_source(tmp_path / "source", CPU)
    assert precisions(again) == {torch.bfloat16}
    rows = again.score(*TEXTS)
    assert rows.dtype == torch.float32
    assert torch.equal(rows, source.score(*TEXTS))
    other = load_source(tmp_path / "source", CPU, dtype="float32")
    assert precisions(other) == {torch.float32}
    assert not torch.equal(other.score(*TEXTS), rows)
    torch.testing.assert_close(other.score(*TEXTS), rows, rtol=0.1, atol=0.2)
    other.save(tmp_path / "other")
    assert precisions(load_source(tmp_path / "other", CPU)) == {torch.float32}


@pytest.mark.parametrize("kind", MAKE)
def test_an_earlier_source_is_auto(
    kind: str, pairs: Dataset, policy_path: Path, reward_model: Path, tmp_path: Path
) -> None:
    """One that doesn't say: in float32 on a CPU, as it was."""
    source = MAKE[kind](pairs, policy_path, reward_model, "auto")
    source.save(tmp_path / "source")
    removed = 0
    for path in (tmp_path / "source").rglob("source.json"):
        held = json.loads(path.read_text())
        for part in (held, held.get("config", {}), held.get("trunk", {})):
            removed += part.pop("dtype", None) == "auto"
        path.write_text(json.dumps(held))
    assert removed > 0
    again = load_source(tmp_path / "source", CPU)
    assert precisions(again) == precisions(source) == {torch.float32}
    assert torch.equal(again.score(*TEXTS), source.score(*TEXTS))


def test_what_auto_is() -> None:
    assert dtype_of("auto", CPU) == torch.float32
    assert dtype_of("auto", torch.device("cuda")) == torch.bfloat16
    assert dtype_of("float32", torch.device("cuda")) == torch.float32
    assert dtype_of("bfloat16", CPU) == torch.bfloat16


@pytest.mark.parametrize(("dtype", "said"), [("float16", "65,504.*take bfloat16"), ("int8", "got 'int8'")])
def test_other_precisions_are_refused(
    dtype: Any, said: str, pairs: Dataset, policy_path: Path, tmp_path: Path
) -> None:
    """Before anything is loaded; by the settings, the fit, and the loader."""
    given = {"output_dir": "out", "model_name_or_path": "model", "dataset_name": "data", "dtype": dtype}
    with pytest.raises(ConfigError, match=said):
        reward_arguments(**given)
    with pytest.raises(ConfigError, match=said):
        fit_linear(pairs, "no/such-model", LinearConfig(dtype=dtype), device=CPU)
    fit_linear(pairs, policy_path, LinearConfig(), device=CPU).save(tmp_path / "source")
    with pytest.raises(ConfigError, match=said):
        load_source(tmp_path / "source", CPU, dtype=dtype)


def test_the_setting_reaches_the_kinds_that_have_it() -> None:
    given = {"output_dir": "out", "model_name_or_path": "model", "dataset_name": "data", "dtype": "bfloat16"}
    for kind in ("linear", "heads", "laplace", "dropout"):
        assert reward_arguments(**given, kind=kind).kind_settings.dtype == "bfloat16"
    with pytest.raises(ConfigError, match="kind: lora has no dtype"):
        reward_arguments(**given, kind="lora").check()
    reward_arguments(**given, kind="lora", variance="smoothed").check()  # of the trunk that the features are from


def test_features_in_two_precisions_are_two_in_the_cache(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the weights' hash is the same."""
    monkeypatch.setattr("surefoot.rewards.trunk.feature_cache.weights_hash", lambda model: "0")
    cache, read = FeatureCache(tmp_path), {"pooling": "mean", "layer": -1, "pad_token_id": 0}
    first, second = (
        cache.get(load_trunk(policy_path, CPU, dtype), [[3, 4], [5]], **read)  # type: ignore[arg-type]
        for dtype in ("float32", "bfloat16")
    )
    assert first.dtype == second.dtype == torch.float32
    assert not torch.equal(first, second)
    assert len(list(tmp_path.rglob("features.safetensors"))) == 2


def test_earlier_heads_in_bfloat16_are_a_start(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    config = HeadsConfig(members=3, epochs=1, dtype="bfloat16")
    train_heads(pairs, policy_path, config, device=CPU).save(tmp_path / "earlier")
    start = HeadsConfig(members=3, epochs=1, dtype="bfloat16", start_heads=str(tmp_path / "earlier"))
    assert train_heads(pairs, policy_path, start, device=CPU).num_members == 3
