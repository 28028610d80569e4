"""Batched LoRA members against PEFT's own adapters one by one; training, resuming, saving."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig as PeftConfig
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertModel

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.fit import train_lora
from surefoot.rewards.kinds.lora.source import AdapterShape, LoraMembers, LoraNetwork
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.batching import padded
from surefoot.rewards.trunk.replicated_layers import layers_of, replicated, start_layer

PROMPTS = ["red cat", "the", "a dog runs"]
COMPLETIONS = [" sleeps", " and the dog runs", " a cat"]


def config(**changes: Any) -> LoraConfig:
    settings: dict[str, Any] = {"members": 3, "rank": 4, "epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
    return LoraConfig(**settings | changes)


@pytest.fixture(params=[0, 1])
def network(policy_path: Path, request: pytest.FixtureRequest) -> LoraNetwork:
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
    shape = AdapterShape(3, rank=4, alpha=8.0, targets=("q_proj", "v_proj", "down_proj"), start=request.param)
    found = LoraNetwork(model, shape)
    found.start(0)
    stream = torch.Generator().manual_seed(1)
    for module in found.adapters.values():
        module.lora_B.data = 0.1 * torch.randn(module.lora_B.shape, generator=stream)
    return found.eval()


def source_of(network: LoraNetwork, policy_path: Path) -> LoraMembers:
    from surefoot.rewards.trunk.loading import load_tokenizer
    from surefoot.rewards.trunk.text_encoder import TextEncoder

    return LoraMembers(network, TextEncoder(load_tokenizer(policy_path), 64), str(policy_path))


def test_equals_a_loop_over_pefts_adapters(network: LoraNetwork, policy_path: Path, tmp_path: Path) -> None:
    source = source_of(network, policy_path)
    source.save(tmp_path / "source")
    ours = source.score(PROMPTS, COMPLETIONS)
    rows, pad = source.encoder(PROMPTS, COMPLETIONS), source.encoder.tokenizer.pad_token_id
    for k in range(3):
        base = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
        base.config.pad_token_id = pad
        model = PeftModel.from_pretrained(base, tmp_path / "source" / "members" / str(k)).eval()
        for row, mine in zip(rows, ours[:, k], strict=True):
            ids, mask = padded([row], pad, torch.device("cpu"))
            states = model.base_model.model.model(input_ids=ids, attention_mask=mask).last_hidden_state
            theirs = model.base_model.model.score(states)[0, -1, 0]
            assert float(theirs.detach()) == pytest.approx(float(mine), abs=1e-5)
    assert float(ours.std(dim=1).min()) > 1e-3  # members differ, so the comparison means something


def test_saved_and_loaded_scores_the_same(network: LoraNetwork, policy_path: Path, tmp_path: Path) -> None:
    source = source_of(network, policy_path)
    source.save(tmp_path / "source")
    again = load_source(tmp_path / "source", "cpu")
    torch.testing.assert_close(again.score(PROMPTS, COMPLETIONS), source.score(PROMPTS, COMPLETIONS))


def test_takes_pefts_own_adapters_of_different_ranks(policy_path: Path, tmp_path: Path) -> None:
    expected = []
    for k, (rank, alpha) in enumerate([(2, 4), (5, 20)]):
        torch.manual_seed(k)
        base = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
        made = PeftConfig(task_type="SEQ_CLS", r=rank, lora_alpha=alpha, target_modules=["q_proj", "v_proj"])
        model = get_peft_model(base, made).eval()
        for name, value in model.named_parameters():
            if "lora_B" in name:
                value.data = 0.1 * torch.randn(value.shape, generator=torch.Generator().manual_seed(k))
        model.save_pretrained(tmp_path / str(k))
        ids = torch.tensor([[3, 4, 5, 6]])
        states = model.base_model.model.model(input_ids=ids).last_hidden_state
        expected.append(float(model.base_model.model.score(states)[0, -1, 0].detach()))
    source = LoraMembers.from_adapters([tmp_path / "0", tmp_path / "1"], policy_path, device="cpu")
    with torch.no_grad():
        found = source.network(torch.tensor([[3, 4, 5, 6]]), torch.ones(1, 4, dtype=torch.long))[:, 0]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def own_reward(base: Path, adapter: Path, row: list[int]) -> float:
    """By PEFT and transformers alone."""
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    with torch.no_grad():
        return float(PeftModel.from_pretrained(model, adapter).eval()(input_ids=torch.tensor([row])).logits[0, 0])


@pytest.mark.parametrize("pad", [0, 1, None], ids=["its own", "eos", "none"])
def test_adapters_of_other_layers_and_pads_equal_pefts_own_loading(
    policy_path: Path, tmp_path: Path, pad: int | None
) -> None:
    """Targets by a regular expression, by layers, and all linear ones; read by us, saved by us and read by PEFT.

    Trained rewards stand there too, where the base's own forward reads them: before eos, if pad is eos.
    """
    base = tmp_path / "base"
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
    model.config.pad_token_id = pad
    model.save_pretrained(base)
    AutoTokenizer.from_pretrained(policy_path).save_pretrained(base)
    changes: list[dict[str, Any]] = [
        {"target_modules": r".*\.layers\.1\.self_attn\.(q|v)_proj"},
        {"target_modules": ["o_proj"], "layers_to_transform": [0], "use_rslora": True},
        {"target_modules": "all-linear"},
    ]
    folders = [tmp_path / str(k) for k in range(len(changes))]
    for k, (folder, change) in enumerate(zip(folders, changes, strict=True)):
        torch.manual_seed(k)
        plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
        made = get_peft_model(plain, PeftConfig(task_type="SEQ_CLS", r=2, **change))
        for name, value in made.named_parameters():
            if "lora_B" in name or "score" in name:
                value.data = 0.3 * torch.randn_like(value)
        made.save_pretrained(folder)
    source = LoraMembers.from_adapters(folders, base, device="cpu")
    rows, found = source.encoder(PROMPTS, COMPLETIONS), source.score(PROMPTS, COMPLETIONS)
    expected = torch.tensor([[own_reward(base, folder, row) for folder in folders] for row in rows])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
    ids, mask = padded(rows, source.encoder.tokenizer.pad_token_id, torch.device("cpu"))
    torch.testing.assert_close(source.network(ids, mask).T.detach(), expected, rtol=0, atol=1e-5)  # as in training
    source.save(tmp_path / "ours")
    again = [[own_reward(base, tmp_path / "ours" / "members" / str(k), row) for k in range(3)] for row in rows]
    torch.testing.assert_close(torch.tensor(again), expected, rtol=0, atol=1e-5)


def test_an_adapter_that_began_in_its_base_is_refused(policy_path: Path, tmp_path: Path) -> None:
    """PEFT's PiSSA takes the adapter's start out of the base, which the adapter's file doesn't hold."""
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
    made = PeftConfig(task_type="SEQ_CLS", r=2, target_modules=["q_proj"], init_lora_weights="pissa")
    get_peft_model(model, made).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="init_lora_weights pissa"):
        LoraMembers.from_adapters([tmp_path], policy_path, device="cpu")


def test_rows_do_not_depend_on_their_batch(network: LoraNetwork, policy_path: Path) -> None:
    source = source_of(network, policy_path)
    together = source.score(PROMPTS, COMPLETIONS)
    alone = torch.cat([source.score([p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_a_member_is_the_same_among_three_and_among_two(policy_path: Path, pairs: Dataset) -> None:
    three = train_lora(pairs, policy_path, config(), device="cpu").network
    two = train_lora(pairs, policy_path, config(members=2), device="cpu").network
    for name, value in two.trained().items():
        torch.testing.assert_close(value, three.trained()[name][:2], rtol=1e-3, atol=1e-5)


def test_learns_and_members_differ(policy_path: Path, pairs: Dataset) -> None:
    source = train_lora(pairs, policy_path, config(epochs=6), device="cpu")
    data = pairs
    margins = source.score(data["prompt"], data["chosen"]) - source.score(data["prompt"], data["rejected"])
    assert float((margins > 0).double().mean()) > 0.9
    assert float(margins.std(dim=1).mean()) > 1e-3


def test_the_shared_part_is_left_alone(policy_path: Path, pairs: Dataset) -> None:
    before = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1).model.state_dict()
    network = train_lora(pairs, policy_path, config(), device="cpu").network
    after = {name.replace(".base.", "."): value for name, value in network.trunk.state_dict().items()}
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0)


class _Stop(Exception):
    pass


def test_interrupted_training_goes_on_to_the_same_members(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    settings = config(save_steps=2)
    whole = train_lora(pairs, policy_path, settings, device="cpu").network.trained()
    steps: list[float] = []

    def stop(what: str, share: float) -> None:
        steps.append(share)
        if len(steps) == 3:
            raise _Stop

    with pytest.raises(_Stop):
        train_lora(pairs, policy_path, settings, directory=tmp_path / "run", device="cpu", on_progress=stop)
    more: list[float] = []
    resumed = train_lora(
        pairs,
        policy_path,
        settings,
        directory=tmp_path / "run",
        device="cpu",
        on_progress=lambda w, s: more.append(s),
    )
    assert len(more) == 4  # of 6 steps, two were on disk
    for name, value in resumed.network.trained().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-7)


def test_other_settings_start_anew(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    train_lora(pairs, policy_path, config(), directory=tmp_path / "run", device="cpu")
    more: list[float] = []
    other = config(learning_rate=5e-3)
    train_lora(
        pairs, policy_path, other, directory=tmp_path / "run", device="cpu", on_progress=lambda w, s: more.append(s)
    )
    assert len(more) == 6


def test_encoders_replicate_too() -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
    bert = BertModel(BertConfig(vocab_size=50, **shape)).eval()
    ids, mask = padded([[5, 6, 7, 8], [9, 10]], 0, torch.device("cpu"))
    plain = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    with replicated(bert, 1, 3):
        copied = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(copied, plain.repeat(3, 1, 1), rtol=1e-5, atol=1e-6)
    after = bert(input_ids=ids, attention_mask=mask).last_hidden_state
    torch.testing.assert_close(after, plain)  # the hooks are gone


def test_clear_errors(policy_path: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1)
    with pytest.raises(ModelError, match="no linear layer named nothing"):
        LoraNetwork(model, AdapterShape(2, targets=("nothing",)))
    with pytest.raises(ConfigError, match="share of the depth"):
        start_layer(model.model, 1.0)
    with pytest.raises(ModelError, match="keeps its layers in none of"):
        layers_of(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="is not a PEFT adapter"):
        LoraMembers.from_adapters([tmp_path], policy_path)


def test_an_adapter_is_an_ordinary_one(network: LoraNetwork, policy_path: Path, tmp_path: Path) -> None:
    source_of(network, policy_path).save(tmp_path / "source")
    names = load_file(tmp_path / "source" / "members" / "0" / "adapter_model.safetensors").keys()
    assert "base_model.model.score.weight" in names
    assert all(name.startswith("base_model.model.") for name in names)
    assert any(name.endswith("self_attn.q_proj.lora_A.weight") for name in names)
