"""A prompt's computation shared by its completions: the same rewards, fewer tokens, and only where it is right."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, ModernBertConfig, ModernBertModel

from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers
from surefoot.rewards.kinds.heads.source import Heads, HeadShape, SharedTrunkHeads
from surefoot.rewards.kinds.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.kinds.lora.source import AdapterShape, LoraMembers, LoraNetwork
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.hidden_states import last_token, read_states
from surefoot.rewards.trunk.loading import load_tokenizer
from surefoot.rewards.trunk.prefix_cache import plan
from surefoot.rewards.trunk.text_encoder import TextEncoder
from tests.models import WORDS

PROMPTS = [" ".join(WORDS[(i + j) % 10] for j in range(18 + 3 * i)) + " " for i in range(3)]
ROWS = [(p, " ".join(WORDS[(3 * k + j) % 10] for j in range(1 + k))) for p in PROMPTS for k in range(4)]
ROWS += [("a cat ", "runs"), ("a cat ", "sleeps and")]  # too short to share


def sources(policy_path: Path, pairs: Any, tmp_path: Path) -> dict[str, RewardSource]:
    encoder = TextEncoder(load_tokenizer(policy_path), 64)
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
    model.save_pretrained(tmp_path / "rm")
    encoder.tokenizer.save_pretrained(tmp_path / "rm")
    network = LoraNetwork(model, AdapterShape(3, start=1))
    network.start(0)
    for module in network.adapters.values():
        module.lora_B.data.normal_(std=0.1)
    trunk = AutoModel.from_pretrained(policy_path)
    heads = Heads(HeadShape(3, 32), 0)
    return {
        "lora": LoraMembers(network, encoder, str(policy_path)),
        "heads_last": SharedTrunkHeads(trunk, encoder, heads, "last"),
        "heads_mean": SharedTrunkHeads(trunk, encoder, heads, "mean", layer=1),
        "laplace": fit_laplace(pairs, tmp_path / "rm", LaplaceConfig(), device="cpu"),
        "dropout": DropoutMembers.from_model(tmp_path / "rm", DropoutConfig(3), device="cpu"),
    }


@pytest.mark.parametrize("name", ["lora", "heads_last", "heads_mean", "laplace", "dropout"])
def test_shared_equals_plain(
    name: str, policy_path: Path, pairs: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = sources(policy_path, pairs, tmp_path)[name]
    prompts, completions = [list(column) for column in zip(*ROWS, strict=True)]
    shared = source.score(prompts, completions)
    calls: list[int] = []
    monkeypatch.setattr(
        "surefoot.rewards.trunk.hidden_states.plan",
        lambda rows, keys, tokens: calls.append(1) or ([], list(range(len(rows)))),
    )
    plain = source.score(prompts, completions)
    assert calls
    torch.testing.assert_close(shared, plain, rtol=1e-4, atol=1e-4)
    alone = torch.cat([source.score([p], [c]) for p, c in ROWS])
    torch.testing.assert_close(shared, alone, rtol=1e-4, atol=1e-4)


def test_fewer_tokens_are_computed(policy_path: Path) -> None:
    trunk = AutoModel.from_pretrained(policy_path)
    encoder = TextEncoder(load_tokenizer(policy_path), 64)
    prompts, completions = [list(column) for column in zip(*ROWS[:4], strict=True)]
    rows, seen = encoder(prompts, completions), [0]
    trunk.layers[0].register_forward_hook(lambda m, a, o: seen.__setitem__(0, seen[0] + o.shape[0] * o.shape[1]))

    def count(keys: list[str] | None) -> int:
        seen[0] = 0
        read_states(trunk, rows, pad_token_id=0, tokens=4096, read_at=last_token(rows), keys=keys)
        return seen[0]

    count(prompts)  # the first call also checks that sharing is right here
    assert count(prompts) < 0.6 * count(None)


def test_plan_by_hand() -> None:
    long = list(range(100, 130))
    rows = [[*long, 1, 2], [*long, 3], [5, 6], [5, 7], [*long, 1]]
    batches, alone = plan(rows, ["a", "a", "b", "b", "c"], 1000)
    assert sorted(alone) == [2, 3, 4]  # too short a prefix; one row alone
    (batch,) = batches
    assert (batch.rows, batch.owner, batch.prefixes, batch.rests) == ([0, 1], [0, 0], [long], [[1, 2], [3]])


def test_equal_rows_keep_a_token_of_their_own() -> None:
    row = list(range(20))
    batches, _ = plan([row, row], ["a", "a"], 1000)
    assert batches[0].rests == [[19], [19]]


def test_a_trunk_that_looks_both_ways_is_not_shared() -> None:
    torch.manual_seed(0)
    trunk = ModernBertModel(
        ModernBertConfig(
            vocab_size=50,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            pad_token_id=0,
        )
    ).eval()
    rows = [[*range(5, 30), 31], [*range(5, 30), 32, 33]]
    together = read_states(trunk, rows, pad_token_id=0, tokens=1000, keys=["a", "a"])
    alone = torch.cat([read_states(trunk, [row], pad_token_id=0, tokens=1000) for row in rows], dim=1)
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
