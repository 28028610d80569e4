"""LoRA members over encoders: one forward for all against PEFT's own models one by one; training; what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import AutoPeftModelForSequenceClassification, PeftModel, get_peft_model
from peft import LoraConfig as PeftConfig
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification

from surefoot.errors import ModelError
from surefoot.files import read_json
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.fit import train_lora
from surefoot.rewards.kinds.lora.layers import PEFT_SAVES, drawn_anew
from surefoot.rewards.kinds.lora.source import AdapterShape, LoraMembers, LoraNetwork
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.batching import padded
from surefoot.rewards.trunk.loading import load_base, load_tokenizer
from surefoot.rewards.trunk.text_encoder import TextEncoder

PROMPTS = ["red cat ", "the ", "a dog runs "]
COMPLETIONS = ["sleeps", "and the dog runs", "a cat"]
CPU = torch.device("cpu")

_SIZE = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
_IDS = {
    "vocab_size": 40,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "cls_token_id": 1,
    "sep_token_id": 2,
}
_COMMON = _SIZE | _IDS | {"max_position_embeddings": 64}
_DISTIL = {"dim": 16, "hidden_dim": 32, "n_layers": 3, "n_heads": 2, "vocab_size": 40, "pad_token_id": 0}
_RELATIVE = {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert": ("bert", _COMMON),
    "bert_without_pooler": ("bert", _COMMON),
    "roberta": ("roberta", _COMMON),
    "distilbert": ("distilbert", _DISTIL),
    "modernbert": ("modernbert", _COMMON | {"classifier_pooling": "mean"}),
    "deberta": ("deberta-v2", _COMMON | _RELATIVE),
}
TARGETS = {
    "bert": ("query", "value"),
    "bert_without_pooler": ("query", "value"),
    "roberta": ("query", "value"),
    "distilbert": ("q_lin", "v_lin"),
    "modernbert": ("Wqkv",),
    "deberta": ("query_proj", "value_proj"),
}
OWNED = {
    "bert": ["classifier"],
    "bert_without_pooler": ["bert.pooler", "classifier"],
    "roberta": ["classifier"],
    "distilbert": ["pre_classifier", "classifier"],
    "modernbert": ["head", "classifier"],
    "deberta": ["pooler", "classifier"],
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, encoder_path: Path) -> dict[str, Path]:
    """Trunks as they are published, without a reward head, beside the tiny BERT's tokenizer."""
    found: dict[str, Path] = {}
    for name, (kind, settings) in BASES.items():
        torch.manual_seed(0)
        extra = {"add_pooling_layer": False} if name == "bert_without_pooler" else {}
        trunk = AutoModel.from_config(AutoConfig.for_model(kind, **settings), **extra)
        for parameter in trunk.parameters():
            if parameter.ndim > 1:
                parameter.data *= 3  # else a tiny model hardly sees its text
        found[name] = tmp_path_factory.mktemp(name)
        trunk.save_pretrained(found[name])
        load_tokenizer(encoder_path).save_pretrained(found[name])
    return found


@pytest.fixture(params=list(BASES))
def base(request: pytest.FixtureRequest, bases: dict[str, Path]) -> Path:
    return bases[request.param]


def members_of(base: Path, start: int = 1, members: int = 3) -> LoraMembers:
    """Members with adapters that do something."""
    model, missing = load_base(base, CPU)
    shape = AdapterShape(members, rank=4, alpha=8.0, start=start)
    network = LoraNetwork(model, shape, (*PEFT_SAVES, *drawn_anew(model, missing)))
    network.start(0)
    stream = torch.Generator().manual_seed(1)
    for name, value in network.trained().items():
        if not name.endswith("lora_A"):
            value.data = 0.3 * torch.randn(value.shape, generator=stream)
    return LoraMembers(network, TextEncoder(load_tokenizer(base), 32), str(base))


def peft_models(source: LoraMembers, folder: Path, **keywords: Any) -> list[Any]:
    """PEFT's own load of the saved adapters."""
    source.save(folder)
    return [
        AutoPeftModelForSequenceClassification.from_pretrained(
            folder / f"members/{k}", num_labels=1, **keywords
        ).eval()
        for k in range(source.num_members)
    ]


@pytest.mark.parametrize("start", [0, 1])
def test_equals_a_loop_over_pefts_own_models(base: Path, start: int, tmp_path: Path) -> None:
    source = members_of(base, start)
    ours = source.score(PROMPTS, COMPLETIONS)
    rows = source.encoder(PROMPTS, COMPLETIONS)
    for k, model in enumerate(peft_models(source, tmp_path / "source")):
        for row, mine in zip(rows, ours[:, k], strict=True):
            ids, mask = padded([row], 0, CPU)
            theirs = model(input_ids=ids, attention_mask=mask).logits[0, 0]
            assert float(theirs.detach()) == pytest.approx(float(mine), abs=1e-5)
    assert float(ours.std(dim=0, correction=1).min()) > 1e-3  # texts differ for each member, and members
    assert float(ours.std(dim=1, correction=1).min()) > 1e-3  # for each text: the comparison means something


def test_gradients_equal_those_of_pefts_own_models(base: Path, tmp_path: Path) -> None:
    source = members_of(base)
    network = source.network
    ids, mask = padded(source.encoder(PROMPTS[:2], COMPLETIONS[:2]), 0, CPU)
    scores = network(ids, mask)
    torch.nn.functional.softplus(scores[:, 1] - scores[:, 0]).sum().backward()
    names = network._peft_names()
    for k, model in enumerate(peft_models(source, tmp_path / "source", is_trainable=True)):
        theirs = model(input_ids=ids, attention_mask=mask).logits[:, 0]
        torch.nn.functional.softplus(theirs[1] - theirs[0]).backward()
        held = {
            name.replace(".modules_to_save", "").replace(".default", ""): value.grad
            for name, value in model.named_parameters()
            if value.requires_grad
        }
        assert held.keys() == set(names.values())
        for name, value in network.trained().items():
            assert value.grad is not None
            torch.testing.assert_close(value.grad[k], held[names[name]], rtol=1e-4, atol=1e-5)


def test_layers_run_once_for_all_members(bases: dict[str, Path]) -> None:
    source = members_of(bases["bert"], start=2)
    seen: list[int] = []
    for layer in source.network.trunk.encoder.layer:
        layer.register_forward_hook(lambda module, args, out: seen.append(len(args[0])))
    ids, mask = padded(source.encoder(PROMPTS, COMPLETIONS), 0, CPU)
    source.network(ids, mask)
    assert seen == [3, 3, 9]  # three texts; the third layer has them for three members
    assert source.network.trunk(input_ids=ids, attention_mask=mask).last_hidden_state.shape[0] == 3  # hooks are gone


def test_saved_and_loaded_scores_the_same(base: Path, tmp_path: Path) -> None:
    source = members_of(base)
    source.save(tmp_path / "source")
    torch.manual_seed(17)  # what a checkpoint lacks would be drawn otherwise now
    again = load_source(tmp_path / "source", "cpu")
    torch.testing.assert_close(again.score(PROMPTS, COMPLETIONS), source.score(PROMPTS, COMPLETIONS))


def test_targets_and_owned_modules_by_architecture(bases: dict[str, Path]) -> None:
    for name, path in bases.items():
        network = members_of(path).network
        assert network.targets == TARGETS[name]
        assert list(network.owned) == OWNED[name]


def test_a_saved_adapter_names_what_peft_names(bases: dict[str, Path], tmp_path: Path) -> None:
    members_of(bases["bert"]).save(tmp_path / "source")
    folder = tmp_path / "source" / "members" / "0"
    made = PeftConfig(task_type="SEQ_CLS", r=4, layers_to_transform=[1, 2])
    get_peft_model(load_base(bases["bert"], CPU)[0], made).save_pretrained(tmp_path / "peft")
    theirs = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    assert {n: v.shape for n, v in load_file(folder / "adapter_model.safetensors").items()} == {
        n: v.shape for n, v in theirs.items()
    }
    ours, expected = read_json(folder / "adapter_config.json"), read_json(tmp_path / "peft" / "adapter_config.json")
    for name in ("task_type", "modules_to_save", "layers_to_transform", "r"):
        assert ours[name] == expected[name]
    assert sorted(ours["target_modules"]) == sorted(expected["target_modules"])


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert"])
def test_takes_pefts_own_adapters_of_different_ranks(name: str, bases: dict[str, Path], tmp_path: Path) -> None:
    ids = torch.tensor([[1, 4, 5, 6, 2]])
    expected = []
    for k, (rank, alpha) in enumerate([(2, 4), (5, 20)]):
        torch.manual_seed(k)
        made = PeftConfig(task_type="SEQ_CLS", r=rank, lora_alpha=alpha, target_modules=list(TARGETS[name]))
        model = get_peft_model(load_base(bases[name], CPU)[0], made).eval()
        for parameter, value in model.named_parameters():
            if "lora_B" in parameter:
                value.data = 0.3 * torch.randn(value.shape, generator=torch.Generator().manual_seed(k))
        model.save_pretrained(tmp_path / str(k))
        expected.append(float(model(input_ids=ids).logits[0, 0].detach()))
    source = LoraMembers.from_adapters([tmp_path / "0", tmp_path / "1"], bases[name], device="cpu")
    found = source.network(ids, torch.ones_like(ids))[:, 0]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


def test_rows_do_not_depend_on_their_batch(base: Path) -> None:
    source = members_of(base)
    alone = torch.cat([source.score([p], [c]) for p, c in zip(PROMPTS, COMPLETIONS, strict=True)])
    torch.testing.assert_close(source.score(PROMPTS, COMPLETIONS), alone, rtol=1e-4, atol=1e-5)


def config(**changes: Any) -> LoraConfig:
    settings: dict[str, Any] = {"members": 3, "rank": 4, "epochs": 2, "batch_size": 8, "learning_rate": 1e-2}
    return LoraConfig(**settings | changes)


def test_learns_and_members_differ(base: Path, pairs: Dataset) -> None:
    source = train_lora(pairs, base, config(epochs=6), device="cpu")
    margins = source.score(pairs["prompt"], pairs["chosen"]) - source.score(pairs["prompt"], pairs["rejected"])
    assert float((margins > 0).double().mean()) > 0.9
    assert float(margins.std(dim=1, correction=1).mean()) > 1e-3


@pytest.mark.parametrize("name", ["bert", "bert_without_pooler", "roberta"])
def test_a_member_is_the_same_among_three_and_among_two(name: str, bases: dict[str, Path], pairs: Dataset) -> None:
    three = train_lora(pairs, bases[name], config(), device="cpu").network
    two = train_lora(pairs, bases[name], config(members=2), device="cpu").network
    for parameter, value in two.trained().items():
        torch.testing.assert_close(value, three.trained()[parameter][:2], rtol=1e-3, atol=1e-4)


class _Stop(Exception):
    pass


def test_interrupted_training_goes_on_to_the_same_members(base: Path, pairs: Dataset, tmp_path: Path) -> None:
    settings = config(save_steps=2)
    whole = train_lora(pairs, base, settings, device="cpu").network.trained()
    steps: list[float] = []

    def stop(what: str, share: float) -> None:
        steps.append(share)
        if len(steps) == 3:
            raise _Stop

    with pytest.raises(_Stop):
        train_lora(pairs, base, settings, directory=tmp_path / "run", device="cpu", on_progress=stop)
    more: list[float] = []
    resumed = train_lora(
        pairs, base, settings, directory=tmp_path / "run", device="cpu", on_progress=lambda w, s: more.append(s)
    )
    assert len(more) == 4  # of 6 steps, two were on disk
    for name, value in resumed.network.trained().items():
        torch.testing.assert_close(value, whole[name], rtol=1e-6, atol=1e-7)


def test_dropout_is_off_in_training(bases: dict[str, Path]) -> None:
    source = members_of(bases["roberta"])
    ids, mask = padded(source.encoder(PROMPTS, COMPLETIONS), 0, CPU)
    torch.testing.assert_close(source.network(ids, mask), source.network(ids, mask), rtol=0, atol=0)


@pytest.mark.parametrize(
    ("kind", "changes", "said"),
    [
        ("longformer", {"attention_window": 4}, "mixes its members when 4 run at once"),
        ("deberta-v2", _RELATIVE | {"share_att_key": True}, "a target is also used on 1 rows"),
        ("bart", {"d_model": 16}, "has an encoder and a decoder"),
        ("albert", {}, "keeps its layers in none of"),
        ("bert", {"num_labels": 2}, "gives 2 outputs per text"),
    ],
)
def test_what_cannot_be_batched_is_refused(kind: str, changes: dict[str, Any], said: str) -> None:
    torch.manual_seed(0)
    settings = {"num_labels": 1} | _COMMON | changes
    model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **settings))
    with pytest.raises(ModelError, match=said):
        LoraNetwork(model, AdapterShape(4, start=1))


def test_clear_errors(bases: dict[str, Path], tmp_path: Path) -> None:
    model, _ = load_base(bases["bert"], CPU)
    with pytest.raises(ModelError, match=r"no linear layer named q_proj; set targets to some of dense, key, query"):
        LoraNetwork(model, AdapterShape(2, targets=("q_proj",)))
    model, _ = load_base(bases["bert"], CPU)
    model.reward, model.classifier = model.classifier, torch.nn.Identity()  # a head by a name of its own
    model.register_forward_hook(lambda module, args, out: type(out)(logits=module.reward(out.logits)))
    with pytest.raises(ModelError, match="no linear layer with one output in a module named classifier or score"):
        LoraNetwork(model, AdapterShape(2))
    weights = load_file(bases["bert"] / "model.safetensors")
    shutil.copytree(bases["bert"], tmp_path / "cut")
    short = {name: value for name, value in weights.items() if "layer.2.output.dense" not in name}
    save_file(short, tmp_path / "cut" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"has no bert.encoder.layer.2.output.dense.bias, a part of the trunk"):
        train_lora(Dataset.from_dict({"prompt": [], "chosen": [], "rejected": []}), tmp_path / "cut", config())


def test_adapters_that_lack_a_part_of_the_way_are_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    base = bases["bert_without_pooler"]
    model = get_peft_model(load_base(base, CPU)[0], PeftConfig(task_type="SEQ_CLS", r=2))
    assert isinstance(model, PeftModel)
    model.save_pretrained(tmp_path / "adapter")  # PEFT froze a pooler that was drawn, and doesn't save it
    with pytest.raises(ModelError, match=r"holds bert.pooler.dense.bias, bert.pooler.dense.weight, so the rewards"):
        LoraMembers.from_adapters([tmp_path / "adapter"], base, device="cpu")


def test_an_adapter_of_two_labels_is_refused(bases: dict[str, Path], tmp_path: Path) -> None:
    two = AutoModelForSequenceClassification.from_pretrained(bases["bert"], num_labels=2)
    get_peft_model(two, PeftConfig(task_type="SEQ_CLS", r=2)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(
        ModelError, match=r"classifier.weight of adapter 0 is \(2, 16\); the base has room for \(1, 16"
    ):
        LoraMembers.from_adapters([tmp_path / "adapter"], bases["bert"], device="cpu")
