"""Training the trunk with its heads: the loss, the resume, and what is left alone by default."""

import math
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from torch.nn.functional import softplus

from surefoot.errors import ConfigError
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.heads.trunk_training import pooled_states
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.bootstrap import bootstrap_weights
from surefoot.rewards.trunk.feature_cache import Pooling, compute_features
from surefoot.rewards.trunk.loading import load_tokenizer, load_trunk
from surefoot.rewards.trunk.text_encoder import TextEncoder, encode_pairs

CPU = torch.device("cpu")


def config(**changes: object) -> HeadsConfig:
    settings = {"members": 3, "epochs": 2, "max_length": 16, "trunk_epochs": 1, "trunk_learning_rate": 1e-3}
    return HeadsConfig(**(settings | changes))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("base", "pooling"), [("policy_path", "last"), ("policy_path", "mean"), ("encoder_path", "cls")]
)
@pytest.mark.parametrize("layer", [-1, 1])
def test_features_with_a_gradient_are_the_features(
    base: str, pooling: Pooling, layer: int, request: pytest.FixtureRequest
) -> None:
    trunk = load_trunk(request.getfixturevalue(base), CPU)
    rows = [[3, 4, 5, 6], [7, 8], [9, 4, 5]]
    ids = torch.tensor([row + [0] * (4 - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (4 - len(row)) for row in rows])
    expected = compute_features(trunk, rows, pooling=pooling, layer=layer, pad_token_id=0)
    found = pooled_states(trunk, ids, mask, pooling, layer)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-4, atol=1e-5)


def test_steps_are_those_of_a_plain_loop(policy_path: Path, pairs: Dataset) -> None:
    """Two steps of AdamW with the schedule, on whole batches, by hand."""
    settings = config(trunk_batch_size=12, pooling="last")
    found = train_heads(pairs, policy_path, settings, device="cpu")
    start = train_heads(pairs, policy_path, config(trunk_epochs=0, pooling="last"), device="cpu")
    trunk, heads = start.trunk.requires_grad_(True), start.heads
    encoded = encode_pairs(pairs, TextEncoder(load_tokenizer(policy_path), 16))
    rows = list(zip(encoded["chosen_ids"], encoded["rejected_ids"], strict=True))
    weights = bootstrap_weights(rows, 3, 0, "poisson")
    groups = [{"params": trunk.parameters(), "weight_decay": 0.0}, {"params": heads.parameters(), "weight_decay": 1.0}]
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(groups, lr=1e-3)
    rates = [1.0, 0.5 + 0.5 * math.cos(math.pi / 2)]  # one step of warmup, then half-way down the cosine
    for rate, batch in zip(
        rates, torch.randperm(24, generator=torch.Generator().manual_seed(0)).split(12), strict=True
    ):
        loss = torch.zeros(())
        for i in batch.tolist():
            chosen, rejected = (
                heads(trunk(input_ids=torch.tensor([side])).last_hidden_state[:, -1])[0] for side in rows[i]
            )
            loss = loss + (softplus(rejected - chosen) * weights[i]).mean() / 12
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * rate
        optimiser.step()
    for name, value in found.trunk.state_dict().items():
        torch.testing.assert_close(value, trunk.state_dict()[name], rtol=1e-3, atol=2e-5)


def test_frozen_unless_asked(policy_path: Path, pairs: Dataset) -> None:
    before = load_trunk(policy_path, CPU).state_dict()
    frozen = train_heads(pairs, policy_path, config(trunk_epochs=0), device="cpu").trunk.state_dict()
    trained = train_heads(pairs, policy_path, config(), device="cpu").trunk.state_dict()
    assert all(torch.equal(frozen[name], before[name]) for name in before)
    assert any(not torch.equal(trained[name], before[name]) for name in before)


def test_it_learns_and_is_saved(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    def loss(epochs: int) -> float:
        source = train_heads(pairs, policy_path, config(trunk_epochs=epochs, bootstrap="none"), device="cpu")
        if epochs:
            source.save(tmp_path / "source")
            again = load_source(tmp_path / "source", "cpu")
            torch.testing.assert_close(
                again.score(pairs["prompt"], pairs["chosen"]), source.score(pairs["prompt"], pairs["chosen"])
            )
        margin = source.score(pairs["prompt"], pairs["chosen"]) - source.score(pairs["prompt"], pairs["rejected"])
        return float(softplus(-margin).mean())

    assert loss(3) < 0.9 * loss(0)


class _Stop(Exception):
    pass


def test_an_interruption_changes_nothing(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    settings = config(trunk_batch_size=4, trunk_epochs=10)  # 60 steps, a checkpoint after 50
    whole = train_heads(pairs, policy_path, settings, device="cpu")
    seen: list[float] = []

    def watch(what: str, share: float) -> None:
        if what == "trunk":
            seen.append(share)
            if len(seen) == 53:
                raise _Stop

    with pytest.raises(_Stop):
        train_heads(pairs, policy_path, settings, directory=tmp_path / "c", device="cpu", on_progress=watch)
    resumed = train_heads(pairs, policy_path, settings, directory=tmp_path / "c", device="cpu", on_progress=watch)
    assert len(seen) == 53 + 10
    for found, expected in ((resumed.trunk, whole.trunk), (resumed.heads, whole.heads)):
        for name, value in expected.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_bad_settings(policy_path: Path, pairs: Dataset) -> None:
    with pytest.raises(ConfigError, match="trunk_epochs must not be negative"):
        train_heads(pairs, policy_path, config(trunk_epochs=-1), device="cpu")
