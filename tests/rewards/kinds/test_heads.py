"""Heads trained together are heads trained apart; what is random comes from the seed; a saved source is the same."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.errors import ConfigError, ModelError
from surefoot.maths.ensemble import reliability
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.config import reward_arguments
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import fit_heads, train_heads
from surefoot.rewards.kinds.heads.source import Heads, HeadShape
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.bootstrap import bootstrap_weights
from surefoot.rewards.trunk.feature_cache import FeatureCache, compute_features, weights_hash
from surefoot.rewards.trunk.loading import load_trunk

CPU = torch.device("cpu")


def data(pairs: int = 60, features: int = 6) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    chosen = torch.randn(pairs, features, generator=generator) + 0.5
    rejected = torch.randn(pairs, features, generator=generator)
    weights = torch.rand(pairs, 3, generator=generator) * 2
    return chosen, rejected, weights, torch.zeros(pairs)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
@pytest.mark.parametrize("prior", [0.0, 1.5])
def test_together_is_apart(kind: str, prior: float) -> None:
    """Three heads in one pass equal head 0 trained alone on its own weights, same order of pairs."""
    chosen, rejected, weights, margins = data()
    config = HeadsConfig(members=3, head=kind, prior_scale=prior, epochs=5, batch_size=16)  # type: ignore[arg-type]
    together = fit_heads(chosen, rejected, weights, margins, config)
    alone = fit_heads(chosen, rejected, weights[:, :1], margins, replace(config, members=1))
    with torch.no_grad():
        torch.testing.assert_close(together(chosen)[:, :1], alone(chosen), rtol=1e-5, atol=1e-6)
        assert float((together(chosen)[:, 0] - together(chosen)[:, 1]).abs().max()) > 1e-3


def test_heads_learn_and_honour_margins() -> None:
    chosen, rejected, weights, margins = data(200)
    config = HeadsConfig(members=3, epochs=20, weight_decay=0.0, learning_rate=1e-2)
    plain = fit_heads(chosen, rejected, weights, margins, config)
    wide = fit_heads(chosen, rejected, weights, margins + 2.0, config)
    for heads in (plain, wide):
        heads.requires_grad_(False)
    plain_gap = float((plain(chosen) - plain(rejected)).mean())
    assert float((plain(chosen) > plain(rejected)).double().mean()) > 0.6
    assert float((wide(chosen) - wide(rejected)).mean()) > plain_gap + 0.1


def test_the_loss_is_bradley_terry() -> None:
    """Its optimum for two opposite comparisons, one counted three times, is a preference of 3/4."""
    chosen, rejected = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    weights = torch.tensor([[3.0], [1.0]])  # the first order preferred three times as often
    config = HeadsConfig(members=1, epochs=3000, batch_size=2, weight_decay=0.0, learning_rate=0.05)
    heads = fit_heads(chosen, rejected, weights, torch.zeros(2), config)
    gap = (heads(chosen) - heads(rejected))[0, 0].detach()
    assert float(gap.sigmoid()) == pytest.approx(0.75, abs=1e-3)


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_training_goes_on_from_earlier_heads(kind: str) -> None:
    """Without a step they are the earlier ones, to the features' centre; with one epoch ahead of new ones."""
    chosen, rejected, weights, margins = data(400)
    config = HeadsConfig(members=3, head=kind, prior_scale=0.5, epochs=20, learning_rate=1e-2)  # type: ignore[arg-type]
    few = slice(0, 300)
    earlier = fit_heads(chosen[few], rejected[few], weights[few], margins[few], config).requires_grad_(False)
    still = fit_heads(chosen, rejected, weights, margins, replace(config, learning_rate=0.0), start=earlier)
    torch.testing.assert_close(still(chosen).detach(), earlier(chosen), rtol=0, atol=0)
    once = replace(config, epochs=1, learning_rate=1e-3)
    warm, cold = (fit_heads(chosen, rejected, weights, margins, once, start=start) for start in (earlier, None))
    with torch.no_grad():
        losses = [(torch.nn.functional.softplus(h(rejected) - h(chosen)) * weights).mean() for h in (warm, cold)]
    assert losses[0] < losses[1] - 0.01


def test_heads_of_other_settings_are_no_start(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    config = HeadsConfig(members=3, epochs=1)
    train_heads(pairs, policy_path, config, device=CPU).save(tmp_path / "earlier")
    start = replace(config, start_heads=str(tmp_path / "earlier"))
    assert train_heads(pairs, policy_path, start, device=CPU).num_members == 3
    with pytest.raises(ModelError, match=r"start_heads .*earlier has other heads .*3 there, 4 here"):
        train_heads(pairs, policy_path, replace(start, members=4), device=CPU)
    with pytest.raises(ConfigError, match="start_heads needs a frozen trunk"):
        train_heads(pairs, policy_path, replace(start, trunk_epochs=1), device=CPU)
    other = AutoModelForCausalLM.from_pretrained(policy_path)
    with torch.no_grad():
        other.model.layers[0].mlp.up_proj.weight.add_(0.01)
    other.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(policy_path).save_pretrained(tmp_path / "other")
    with pytest.raises(ModelError, match=r"start_heads .*earlier has another trunk"):
        train_heads(pairs, tmp_path / "other", start, device=CPU)


def test_head_k_does_not_depend_on_how_many_there_are() -> None:
    few, many = Heads(HeadShape(3, 4, prior_scale=1.0), seed=7), Heads(HeadShape(10, 4, prior_scale=1.0), seed=7)
    x = torch.randn(5, 4)
    with torch.no_grad():
        torch.testing.assert_close(few(x), many(x)[:, :3])
        other = Heads(HeadShape(3, 4, prior_scale=1.0), seed=8)
        assert float((few(x) - other(x)).abs().min()) > 0


def test_priors_keep_heads_apart_where_there_are_no_data() -> None:
    """Feature 5 never varies in training; a point far along it must make the members disagree, with priors only."""
    chosen, rejected, _, margins = data(300)
    chosen[:, 5], rejected[:, 5] = 0.01 * chosen[:, 5], 0.01 * rejected[:, 5]
    far = torch.zeros(1, 6)
    far[0, 5] = 0.1
    spread = {}
    for scale in (0.0, 2.0):
        config = HeadsConfig(members=5, prior_scale=scale, epochs=10)
        heads = fit_heads(chosen, rejected, torch.ones(300, 5), margins, config)
        with torch.no_grad():
            spread[scale] = float((heads(far) - heads(torch.zeros(1, 6))).std(dim=1, correction=1))
    assert spread[2.0] > 3 * spread[0.0]


def test_a_saved_source_scores_the_same(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    config = HeadsConfig(members=4, layer=0, prior_scale=1.0, bootstrap="exponential", epochs=3)
    source = train_heads(pairs, policy_path, config, device="cpu")
    scores = source.score(pairs["prompt"], pairs["chosen"])
    source.calibrate(scores, group_anchors(scores, torch.arange(24) % 5))
    source.save(tmp_path / "s")
    loaded = load_source(tmp_path / "s", device="cpu")
    torch.testing.assert_close(loaded.score(pairs["prompt"], pairs["chosen"]), scores)
    assert loaded.calibration == source.calibration
    assert {path.suffix for path in (tmp_path / "s").rglob("*") if path.is_file()} <= {".safetensors", ".json"}


def test_scores_do_not_depend_on_company(policy_path: Path, pairs: Dataset) -> None:
    """Padding, batching and order must not show in a score."""
    source = train_heads(pairs, policy_path, HeadsConfig(members=3, epochs=2), device="cpu")
    together = source.score(pairs["prompt"], pairs["rejected"])
    one_by_one = torch.cat([source.score([row["prompt"]], [row["rejected"]]) for row in pairs])
    torch.testing.assert_close(together, one_by_one, rtol=1e-4, atol=1e-5)


def test_same_seed_same_source(policy_path: Path, pairs: Dataset) -> None:
    config = HeadsConfig(members=3, epochs=2)
    first, second = (train_heads(pairs, policy_path, config, device="cpu") for _ in range(2))
    other = train_heads(pairs, policy_path, replace(config, seed=1), device="cpu")
    score = [source.score(pairs["prompt"], pairs["chosen"]) for source in (first, second, other)]
    torch.testing.assert_close(score[0], score[1], rtol=0, atol=0)
    assert float((score[0] - score[2]).abs().max()) > 1e-4


def test_pooling_by_hand(policy_path: Path) -> None:
    """Each pooling on padded batches equals the hidden states of the row alone."""
    trunk = load_trunk(policy_path, CPU)
    rows = [[3, 4, 5, 6, 7], [8, 9]]
    for pooling in ("last", "mean", "cls"):
        found = compute_features(trunk, rows, pooling=pooling, layer=-1, pad_token_id=0)  # type: ignore[arg-type]
        for row, feature in zip(rows, found, strict=True):
            with torch.no_grad():
                states = trunk(input_ids=torch.tensor([row])).last_hidden_state[0]
            expected = {"last": states[-1], "mean": states.mean(dim=0), "cls": states[0]}[pooling]
            torch.testing.assert_close(feature, expected, rtol=1e-4, atol=1e-5)


def test_the_cache_knows_weights_and_not_paths(
    policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trunk = load_trunk(policy_path, CPU)
    cache = FeatureCache(tmp_path)
    first = cache.get(trunk, [[3, 4], [5]], pooling="mean", layer=0, pad_token_id=0)
    monkeypatch.setattr("surefoot.rewards.trunk.feature_cache.read_states", lambda *_, **__: 1 / 0)
    torch.testing.assert_close(cache.get(trunk, [[3, 4], [5]], pooling="mean", layer=0, pad_token_id=0), first)
    before = weights_hash(trunk)
    with torch.no_grad():
        next(iter(trunk.parameters())).add_(1.0)  # the same object, the same path, other weights
    assert weights_hash(trunk) != before
    for changed in ({"rows": [[3, 4], [5]]}, {"rows": [[3, 4], [6]]}):
        with pytest.raises(ZeroDivisionError):
            cache.get(trunk, changed["rows"], pooling="mean", layer=0, pad_token_id=0)


def test_bad_settings() -> None:
    with pytest.raises(ConfigError, match="'linear' or 'mlp'"):
        HeadShape(3, 4, kind="cubic")  # type: ignore[arg-type]
    chosen, rejected, weights, margins = data()
    with pytest.raises(ConfigError, match="epochs and batch_size"):
        fit_heads(chosen, rejected, weights, margins, HeadsConfig(members=3, epochs=0))


@pytest.mark.parametrize(
    ("kind", "given", "members"),
    [("heads", None, 50), ("heads", 5, 5), ("lora", None, 5), ("independent", None, 5), ("dropout", None, 5)],
)
def test_the_usual_number_of_members(kind: str, given: int | None, members: int) -> None:
    args = reward_arguments(
        output_dir="out", model_name_or_path="model", dataset_name="data", kind=kind, members=given
    )
    args.check()
    assert args.kind_settings.members == members


def test_fifty_heads_are_the_default_and_a_hundred_can_be_had(policy_path: Path, pairs: Dataset) -> None:
    assert HeadsConfig().members == 50
    for kind in ("linear", "mlp"):
        config = HeadsConfig(members=100, head=kind, layer=0, epochs=1)  # type: ignore[arg-type]
        source = train_heads(pairs, policy_path, config, device="cpu")
        scores = source.score(pairs["prompt"], pairs["chosen"])
        assert scores.shape == (24, 100)
        assert len(scores.T.unique(dim=0)) == 100


def test_more_heads_make_the_variance_more_reliable() -> None:
    """Heads on bootstrapped pairs: halves of 5 disagree about ln s², halves of 100 hardly do."""
    stream = torch.Generator().manual_seed(3)
    chosen, rejected = (torch.randn(400, 8, generator=stream) for _ in range(2))
    weights = bootstrap_weights(list(range(400)), 100, 0, "poisson")
    heads = fit_heads(chosen, rejected, weights, torch.zeros(400), HeadsConfig(members=100, epochs=30))
    with torch.no_grad():
        scores = heads(torch.randn(300, 8, generator=stream)) - heads(torch.zeros(1, 8))
    few, many = reliability(scores[:, :5]), reliability(scores)
    assert many > 0.9
    assert few < many - 0.2
