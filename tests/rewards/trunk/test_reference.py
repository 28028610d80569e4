"""Sources that refer to their trunk: what is saved, where weights are looked for, and which are refused."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file

from surefoot.errors import ConfigError, ModelError
from surefoot.rewards.config import reward_arguments
from surefoot.rewards.registry import load_source
from surefoot.rewards.run import run_reward
from surefoot.rewards.trunk.reference import REFERENCE, VARIABLE
from tests.models import WORDS, save_policy

PROMPTS, COMPLETIONS = ["the cat ", "a dog "], ["runs and sleeps", "red"]


@pytest.fixture(autouse=True)
def own_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv(VARIABLE, raising=False)
    return tmp_path / "cache" / "surefoot" / "trunks.json"


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    return save_policy(tmp_path / "policy")


def fit(policy: Path, folder: Path, **settings: Any) -> Path:
    rows = [(f"the {WORDS[i % 4]} ", f"cat {WORDS[i % 7]}", f"dog {WORDS[(i + 3) % 9]}") for i in range(40)]
    data = Dataset.from_dict({key: [row[i] for row in rows] for i, key in enumerate(("prompt", "chosen", "rejected"))})
    given = {"model_name_or_path": str(policy), "output_dir": str(folder), "dataset_name": "pairs"} | settings
    run_reward(reward_arguments(**given), {**given}, pairs=(data.select(range(30)), data.select(range(30, 40))))
    return folder / "source"


def weights_in(source: Path) -> list[Path]:
    return [path for path in source.rglob("*.safetensors") if "trunk" in path.parts]


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "linear"},
        {"kind": "heads", "members": 3, "epochs": 2},
        {"kind": "lora", "members": 2, "epochs": 1, "variance": "smoothed", "max_length": 16},
    ],
    ids=["linear", "heads", "smoothed"],
)
def test_a_reference_scores_as_a_copy_does(policy: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    copy, referring = (
        fit(policy, tmp_path / str(own), self_contained=own, pooling="last", **settings) for own in (True, False)
    )
    assert len(weights_in(copy)) == 1
    assert weights_in(referring) == []
    assert (referring / "trunk" / "tokenizer.json").exists()
    told = load_source(referring, "cpu").score(PROMPTS, COMPLETIONS)
    assert torch.equal(told, load_source(copy, "cpu").score(PROMPTS, COMPLETIONS))
    assert len(told.unique()) > 2


def test_an_interrupted_run_still_refers(policy: Path, tmp_path: Path) -> None:
    source = fit(policy, tmp_path / "run", kind="linear", self_contained=False)
    for name in ("record.json", f"source/trunk/{REFERENCE}"):
        (tmp_path / "run" / name).unlink()
    (model,) = policy.glob("*.safetensors")
    shutil.copy(model, source / "trunk")
    fit(policy, tmp_path / "run", kind="linear", self_contained=False)
    assert weights_in(source) == []
    load_source(source, "cpu")


def test_saved_again_it_is_self_contained(policy: Path, tmp_path: Path, own_table: Path) -> None:
    source = load_source(fit(policy, tmp_path / "run", kind="linear", self_contained=False), "cpu")
    source.save(tmp_path / "whole")
    own_table.unlink()
    shutil.rmtree(policy)
    again = load_source(tmp_path / "whole", "cpu")
    assert torch.equal(again.score(PROMPTS, COMPLETIONS), source.score(PROMPTS, COMPLETIONS))


def test_where_the_weights_are_is_said_by_the_user(
    policy: Path, tmp_path: Path, own_table: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = fit(policy, tmp_path / "run", kind="linear", self_contained=False)
    before = load_source(source, "cpu").score(PROMPTS, COMPLETIONS)
    moved = policy.rename(tmp_path / "moved")
    with pytest.raises(ModelError, match=rf"should be at '.*policy'.*trunk=MODEL.*{VARIABLE}"):
        load_source(source, "cpu")
    assert torch.equal(load_source(source, "cpu", trunk=moved).score(PROMPTS, COMPLETIONS), before)
    own_table.unlink()
    with pytest.raises(ModelError, match=rf"'policy'.*isn't known.*trunk=MODEL.*{VARIABLE}"):
        load_source(source, "cpu")
    monkeypatch.setenv(VARIABLE, str(moved))
    assert torch.equal(load_source(source, "cpu").score(PROMPTS, COMPLETIONS), before)


def test_a_cache_that_cant_be_written_loses_nothing(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match=f"isn't remembered where the trunk is: say it by {VARIABLE}="):
        source = fit(policy, tmp_path / "run", kind="linear", self_contained=False)
    assert weights_in(source) == []
    load_source(source, "cpu", trunk=policy)


def test_other_weights_are_refused(policy: Path, tmp_path: Path) -> None:
    source = fit(policy, tmp_path / "run", kind="linear", self_contained=False)
    (file,) = policy.glob("*.safetensors")
    tensors = load_file(file)
    name = next(iter(tensors))
    save_file(tensors | {name: tensors[name] + 1e-3}, file, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"those of .* are others"):
        load_source(source, "cpu")
    with pytest.raises(ModelError, match=r"those of .* are others"):
        load_source(source, "cpu", trunk=policy)


def test_a_source_names_no_place(policy: Path, tmp_path: Path, own_table: Path) -> None:
    source = fit(policy, tmp_path / "run", kind="linear", self_contained=False)
    held = json.loads((source / "trunk" / REFERENCE).read_text())
    assert held.keys() == {"sha256", "name"}
    assert str(tmp_path) not in (source / "trunk" / REFERENCE).read_text()
    own_table.unlink()
    for name in (str(policy), "../../../policy"):
        (source / "trunk" / REFERENCE).write_text(json.dumps(held | {"name": name, "place": str(policy)}))
        with pytest.raises(ModelError, match="isn't known"):
            load_source(source, "cpu")
    (source / "trunk" / REFERENCE).write_text("[]")
    with pytest.raises(ModelError, match="must hold the sha256"):
        load_source(source, "cpu")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"kind": "lora"}, "which kind: lora hasn't"),
        ({"kind": "heads", "trunk_epochs": 1}, "with trunk_epochs it is the source's own"),
    ],
)
def test_only_a_frozen_trunk_is_referred_to(settings: dict[str, Any], words: str) -> None:
    args = reward_arguments(model_name_or_path="m", output_dir="o", dataset_name="d", self_contained=False, **settings)
    with pytest.raises(ConfigError, match=words):
        args.check()
