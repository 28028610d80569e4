"""The two sides of a pair as one sequence: the same features, fewer tokens, and only where it is right."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import (
    AutoModel,
    GemmaConfig,
    GemmaModel,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MistralModel,
    ModernBertConfig,
    ModernBertModel,
)

from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.heads.source import SharedTrunkHeads
from surefoot.rewards.kinds.laplace import LaplaceConfig, fit_laplace
from surefoot.rewards.kinds.linear import LinearConfig, fit_linear
from surefoot.rewards.kinds.smoothed import smooth_variance
from surefoot.rewards.trunk.feature_cache import compute_features
from surefoot.rewards.trunk.hidden_states import last_token, read_states
from surefoot.rewards.trunk.packed_rows import pack
from tests.models import WORDS, save_reward_model

CPU = torch.device("cpu")
SHAPE: dict[str, Any] = {
    "vocab_size": 50, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0,
}  # fmt: skip
MODELS: dict[str, Callable[[], Any]] = {
    "llama": lambda: LlamaModel(LlamaConfig(**SHAPE)),
    "gemma": lambda: GemmaModel(GemmaConfig(**SHAPE)),
    "mistral": lambda: MistralModel(MistralConfig(**SHAPE, sliding_window=None)),
    "window of 8": lambda: MistralModel(MistralConfig(**SHAPE, sliding_window=8)),
}


def make_rows(triples: bool = False) -> tuple[list[list[int]], list[int]]:
    """Rows of five groups, whose beginnings and rests have different lengths, and two that share nothing."""
    stream = torch.Generator().manual_seed(1)
    rows, keys = [], []
    for k in range(5):
        prompt = torch.randint(1, 50, (18 + 3 * k,), generator=stream).tolist()
        for side in range(3 if triples else 2):
            rows.append(prompt + torch.randint(1, 50, (1 + 5 * side + k,), generator=stream).tolist())
            keys.append(k)
    return [*rows, [3, 4], [5, 6, 7]], [*keys, 9, 9]


def made(name: str, attention: str = "sdpa") -> Any:
    torch.manual_seed(0)
    trunk = MODELS[name]().eval()
    trunk.set_attn_implementation(attention)
    return trunk


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("triples", [False, True])
def test_packed_equals_plain(name: str, attention: str, triples: bool) -> None:
    """At the last token, averaged, at a shared token, and at two layers at once; a sliding window is kept."""
    trunk = made(name, attention)
    rows, keys = make_rows(triples)
    reads: list[dict[str, Any]] = [
        {"read_at": last_token(rows)},
        {"read_at": None, "layer": 1},
        {"read_at": [1] * len(rows)},
        {"read_at": last_token(rows), "mean_layer": -2},
    ]
    for read in reads:
        packed = read_states(trunk, rows, pad_token_id=0, tokens=150, keys=keys, packed=True, **read)
        plain = read_states(trunk, rows, pad_token_id=0, tokens=150, **read)
        torch.testing.assert_close(packed, plain, rtol=1e-5, atol=1e-5)


def count_tokens(trunk: Any) -> list[int]:
    """A list to which each forward of the trunk appends its computed tokens."""
    seen: list[int] = []
    trunk.layers[0].register_forward_hook(
        lambda module, args, output: seen.append(args[0].shape[0] * args[0].shape[1])
    )
    return seen


@pytest.mark.parametrize(("name", "shared"), [("llama", True), ("window of 8", False)])
def test_the_shared_beginning_is_computed_once(name: str, shared: bool) -> None:
    """Batches of one sequence, so nothing is padded; under a narrow window every row is computed whole."""
    trunk = made(name)
    rows, keys = make_rows()
    read: dict[str, Any] = {"pad_token_id": 0, "tokens": 1, "read_at": last_token(rows), "keys": keys, "packed": True}
    read_states(trunk, rows, **read)  # tests the trunk as well
    seen = count_tokens(trunk)
    read_states(trunk, rows, **read)
    whole = sum(map(len, rows))
    assert sum(seen) == (whole - sum(18 + 3 * k for k in range(5)) if shared else whole)


def test_pack_by_hand() -> None:
    long = list(range(100, 120))
    rows = [[*long, 1, 2], [5, 6], [*long, 3], [5, 7], [*long, 1]]
    batches, alone = pack(rows, ["a", "b", "a", "b", "c"], 1000)
    assert sorted(alone) == [1, 3, 4]  # too short a beginning; one row alone
    ((row,),) = batches
    assert (row.numbers, row.shared, row.ids, row.starts) == ([0, 2], 20, [*long, 1, 2, 3], [20, 22])
    assert row.owners() == [-1] * 20 + [0, 0, 1]
    assert [row.place(1, at) for at in (0, 19, 20)] == [0, 19, 22]


def test_batches_hold_about_so_many_tokens() -> None:
    rows, keys = make_rows()
    batches, _ = pack(rows, keys, 100)
    sizes = [len(batch) * max(len(row.ids) for row in batch) for batch in batches]
    assert max(sizes) <= 100
    assert sorted(number for batch in batches for row in batch for number in row.numbers) == list(range(10))


class Recurrent(torch.nn.Module):
    """Running sums of embeddings, whatever the mask says: what a recurrent layer would make of a packed row."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = torch.nn.Embedding(50, 16)
        self.layers = torch.nn.ModuleList()
        held = SimpleNamespace(use_cache=True, hidden_size=16)
        self.config = SimpleNamespace(get_text_config=lambda: held)

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.embedding.weight.dtype

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids).cumsum(dim=1))


def both_ways() -> Any:
    torch.manual_seed(0)
    config = ModernBertConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, pad_token_id=0
    )
    return ModernBertModel(config).eval()


class CountsOn(LlamaModel):
    """Takes no positions from outside: a packed row's second side would come after its first."""

    def forward(self, *given: Any, position_ids: Any = None, **keywords: Any) -> Any:
        return super().forward(*given, **keywords)


def counts_on() -> Any:
    torch.manual_seed(0)
    return CountsOn(LlamaConfig(**{**SHAPE, "initializer_range": 0.3})).eval()


@pytest.mark.parametrize("make", [Recurrent, both_ways, counts_on])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pooling", ["last", "mean"])
def test_where_it_would_be_wrong_nothing_is_shared(make: Callable[[], Any], dtype: torch.dtype, pooling: str) -> None:
    """An average hides what is wrong in a part of a row, so it is no measure of it."""
    rows, keys = make_rows()
    read_at = last_token(rows) if pooling == "last" else None
    for packed in (True, False):
        trunk = make().to(dtype)
        read: dict[str, Any] = {"pad_token_id": 0, "tokens": 150, "read_at": read_at}
        shared = read_states(trunk, rows, **read, keys=keys, packed=packed)
        if make is counts_on and not packed:
            continue  # a key-value cache counts right by itself
        torch.testing.assert_close(shared, read_states(trunk, rows, **read), rtol=0, atol=0)


@pytest.mark.parametrize("packed", [True, False])
def test_a_trunk_in_bf16_shares(packed: bool) -> None:
    """Its rounding is no reason not to: it is as large between one batch and another."""
    torch.manual_seed(0)
    trunk = LlamaModel(LlamaConfig(**{**SHAPE, "num_hidden_layers": 24, "initializer_range": 0.1})).eval()
    rows, keys = make_rows()
    read: dict[str, Any] = {"pad_token_id": 0, "tokens": 150, "read_at": last_token(rows)}
    exact = read_states(trunk, rows, **read)
    trunk.to(torch.bfloat16)
    plain = read_states(trunk, rows, **read)
    shared = read_states(trunk, rows, **read, keys=keys, packed=packed)
    off = [float((found - exact).norm() / exact.norm()) for found in (plain, shared)]
    assert not torch.equal(shared, plain)
    assert off[1] < 1.5 * off[0]


@pytest.fixture
def long_pairs() -> Dataset:
    """Sixteen pairs whose prompts have thirty tokens."""
    prompts = [" ".join(WORDS[(i + j) % 10] for j in range(30)) + " " for i in range(16)]
    sides = [[f"{first} {WORDS[i % 7]} and" for i in range(16)] for first in ("cat", "dog")]
    return Dataset.from_dict({"prompt": prompts, "chosen": sides[0], "rejected": sides[1]})


@pytest.fixture(scope="module")
def reward_model(policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(policy_path, tmp_path_factory.mktemp("rm"))


def fits(pairs: Dataset, trunk: Path, model: Path) -> dict[str, torch.Tensor]:
    """What each fit that reads features comes to."""
    heads = train_heads(pairs, trunk, HeadsConfig(members=2, epochs=1), device=CPU)
    assert isinstance(heads, SharedTrunkHeads)
    return {
        "linear": fit_linear(pairs, trunk, LinearConfig(penalty=1.0), device=CPU).weights,
        "heads": heads.heads.centre,
        "laplace": fit_laplace(pairs, model, LaplaceConfig(precision=1.0, distance=0.5), device=CPU).terms[0].origin,
        "smoothed": smooth_variance(heads, pairs, trunk, device=CPU).spread,
    }


def test_fits_share_their_pairs_beginnings(
    policy_path: Path, reward_model: Path, long_pairs: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every fit asks for it, with both sides of a pair together, and comes to what it comes to without."""
    packs: list[int] = []

    def counted(rows: list[list[int]], keys: list[int], tokens: int) -> Any:
        batches, alone = pack(rows, keys, tokens)
        packs.append(sum(len(batch) for batch in batches))
        assert all(row.numbers[1] == row.numbers[0] + 16 for batch in batches for row in batch)
        return batches, alone

    monkeypatch.setattr("surefoot.rewards.trunk.hidden_states.pack", counted)
    shared = fits(long_pairs, policy_path, reward_model)
    assert packs == [16, 16, 16, 16]
    monkeypatch.setattr(
        "surefoot.rewards.trunk.hidden_states.pack", lambda rows, keys, tokens: ([], list(range(len(rows))))
    )
    for name, alone in fits(long_pairs, policy_path, reward_model).items():
        torch.testing.assert_close(shared[name], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("pooling", ["last", "mean", "cls"])
def test_an_encoder_is_read_as_before(encoder_path: Path, pooling: Any) -> None:
    trunk = AutoModel.from_pretrained(encoder_path)
    rows = [[1, *([5, 6, 7] * 7), 3 + k, 2] for k in range(4)]
    read: dict[str, Any] = {"pooling": pooling, "layer": -1, "pad_token_id": 0}
    plain = compute_features(trunk, rows, **read)
    assert torch.equal(compute_features(trunk, rows, keys=[0, 0, 1, 1], packed=True, **read), plain)
