"""Sources that a stranger made: no code of theirs runs, nothing outside of their folder is read, an error says why."""

from __future__ import annotations

import json
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from surefoot import load_source
from surefoot.errors import ModelError, SurefootError
from surefoot.rewards.kinds.heads.source import Heads, HeadShape, SharedTrunkHeads
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.kinds.lora.source import AdapterShape, LoraMembers, LoraNetwork
from surefoot.rewards.kinds.mixed import MixedSources
from surefoot.rewards.trunk.loading import load_base, load_tokenizer, load_trunk
from surefoot.rewards.trunk.model_names import resolve_model
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.types import Calibration

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sources(policy_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of saved sources: heads, independent, lora, mixed."""
    folder = tmp_path_factory.mktemp("sources")
    encoder = TextEncoder(load_tokenizer(policy_path), 16)
    heads = SharedTrunkHeads(load_trunk(policy_path, CPU), encoder, Heads(HeadShape(3, 32), seed=1), "mean")
    heads.calibration = Calibration((0.0,) * 3, (1.0,) * 3, None, 1.0, 4)
    heads.save(folder / "heads")
    for k in range(2):
        torch.manual_seed(k)
        AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1).save_pretrained(folder / f"m{k}")
        AutoTokenizer.from_pretrained(policy_path).save_pretrained(folder / f"m{k}")
    IndependentMembers.from_models([folder / "m0", folder / "m1"], device=CPU).save(folder / "independent")
    network = LoraNetwork(load_base(policy_path, CPU)[0], AdapterShape(2, rank=2))
    network.start(seed=0)
    LoraMembers(network, encoder, str(policy_path)).save(folder / "lora")
    MixedSources([heads, heads]).save(folder / "mixed")
    return folder


@pytest.fixture
def stolen(sources: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Copies of the sources to tamper with, and a package beside them that leaves a mark when it is imported."""
    shutil.copytree(sources, tmp_path / "sources")
    package = tmp_path / "evil_package"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (package / "sub.py").write_text("")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "sources"
    assert not (tmp_path / "ran").exists(), "code of the source was run"
    assert "evil_package" not in sys.modules


def tamper(folder: Path, **changes: Any) -> None:
    path = folder / "source.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize("kind", ["heads", "independent", "lora", "mixed"])
def test_what_we_saved_loads(sources: Path, kind: str) -> None:
    assert load_source(sources / kind, CPU).name == json.loads((sources / kind / "source.json").read_text())["name"]


ATTACKS: list[tuple[str, dict[str, Any], str]] = [
    ("lora", {"base": "package:evil_package.sub/model"}, "base must be a hub name or a folder in"),
    ("lora", {"base": "package:evil_package/model"}, "base must be a hub name or a folder in"),
    ("lora", {"base": "/etc"}, "base must name folders below"),
    ("lora", {"base": "/no/such"}, "base must be a hub name or a folder in"),
    ("lora", {"base": "../heads/trunk"}, "base must name folders below"),
    ("lora", {"base": "sources/m0"}, "base must be a hub name"),
    ("lora", {"base": "."}, "base must name folders below"),
    ("lora", {"base": ""}, "base must name folders below"),
    ("lora", {"base": None}, "base must be text, got None"),
    ("lora", {"members": ["../../sources/lora/members/0"]}, "members must name folders below"),
    ("independent", {"members": ["/etc"]}, "members must name folders below"),
    ("independent", {"members": ["../m0"]}, "members must name folders below"),
    ("independent", {"members": ["members/../../m0"]}, "members must name folders below"),
    ("independent", {"members": ["members\\0"]}, "members must name folders below"),
    ("independent", {"members": ["a\0b"]}, "members must name folders below"),
    ("independent", {"members": ["members/0"] * 100_000}, "names 'members/0' twice"),
    ("independent", {"members": []}, "members must be a list of folder names"),
    ("independent", {"members": None}, "members must be a list of folder names, got None"),
    ("independent", {"members": True}, "members must be a list of folder names"),
    ("independent", {"members": [1, 2]}, "members must be a list of folder names"),
    (
        "independent",
        {"members": ["package:evil_package.sub"]},
        "is not a model directory|no config.json|there is no such path here",
    ),
    ("independent", {"max_length": -5}, "max_length must be a positive whole number, got -5"),
    ("independent", {"max_length": 2.7}, "max_length must be a positive whole number, got 2.7"),
    ("independent", {"name": ["a"]}, "name must be text"),
    ("mixed", {"sources": ["."]}, "sources must name folders below"),
    ("mixed", {"sources": ["../mixed"]}, "sources must name folders below"),
    ("mixed", {"sources": ["source-0/trunk"]}, "is not a reward source"),
    ("heads", {"pooling": "best"}, "pooling must be one of last, mean, cls"),
    ("heads", {"pooling": ["mean"]}, "pooling must be one of last, mean, cls"),
    ("heads", {"dtype": "float16"}, "dtype must be one of auto, float32, bfloat16"),
    ("heads", {"dtype": ["float32"]}, "dtype must be one of auto, float32, bfloat16"),
    ("independent", {"dtype": None}, "dtype must be one of auto, float32, bfloat16"),
    ("heads", {"layer": "last"}, "layer must be a whole number"),
    ("heads", {"shape": {"members": 10**12, "features": 32}}, "says 1000000000000 members and holds 3 heads"),
    ("heads", {"shape": {"members": 3, "features": 31}}, "can't be loaded as kind: heads"),
    ("heads", {"shape": {"members": 3}}, "can't be loaded as kind: heads"),
    ("heads", {"shape": [3]}, "shape must be an object"),
    ("heads", {"kind": ["heads"]}, "kind must be text"),
    ("heads", {"kind": "os.system"}, "is of kind 'os.system'"),
    ("heads", {"kind": "independent"}, "it lacks 'members'"),
]


@pytest.mark.parametrize(("kind", "changes", "said"), ATTACKS)
def test_fields_of_a_strangers_source(stolen: Path, kind: str, changes: dict[str, Any], said: str) -> None:
    tamper(stolen / kind, **changes)
    with pytest.raises(SurefootError, match=said):
        load_source(stolen / kind, CPU)


@pytest.mark.parametrize("held", ["[]", "3", "null", "{", '{"kind": NaN}', "[" * 20_000, '{"a":' * 20_000, "\0"])
def test_a_source_json_that_is_no_object(stolen: Path, held: str) -> None:
    (stolen / "heads" / "source.json").write_text(held)
    with pytest.raises(SurefootError, match=r"source\.json"):
        load_source(stolen / "heads", CPU)


@pytest.mark.parametrize(
    ("kind", "name", "target"),
    [
        ("independent", "members/0", "../../m0"),
        ("independent", "members/0/model.safetensors", "../../../m0/model.safetensors"),
        ("mixed", "source-0", "."),
        ("heads", "heads.safetensors", "/dev/zero"),
        ("heads", "more", "/etc"),
    ],
)
def test_links_are_refused(stolen: Path, kind: str, name: str, target: str) -> None:
    """Of a file, of a folder, to the source itself, and where the source doesn't name them."""
    path = stolen / kind / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    path.symlink_to(target)
    with pytest.raises(ModelError, match="is a link, which a reward source can't hold"):
        load_source(stolen / kind, CPU)


def test_a_pipe_in_a_source_is_not_waited_for(stolen: Path) -> None:
    os.mkfifo(stolen / "heads" / "calibration.json.fifo")
    with pytest.raises(ModelError, match="neither a file nor a folder"):
        load_source(stolen / "heads", CPU)


def test_links_of_the_hubs_cache_are_files_of_their_own(sources: Path, tmp_path: Path) -> None:
    """A snapshot holds links to blobs, those of nested sources included."""
    snapshot, blobs = tmp_path / "models--a--b" / "snapshots" / "abc", tmp_path / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    shutil.copytree(sources / "mixed", snapshot)
    for number, path in enumerate(path for path in snapshot.rglob("*") if path.is_file()):
        path.rename(blobs / str(number))
        path.symlink_to(os.path.relpath(blobs / str(number), path.parent))
    assert load_source(snapshot, CPU).name == load_source(sources / "mixed", CPU).name


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("heads", "heads.safetensors"),
        ("heads", "trunk/model.safetensors"),
        ("independent", "members/1/model.safetensors"),
        ("lora", "members/1/adapter_model.safetensors"),
    ],
)
@pytest.mark.parametrize("number", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers(stolen: Path, kind: str, file: str, number: float) -> None:
    tensors = load_file(stolen / kind / file)
    name = next(reversed(tensors))
    tensors[name].view(-1)[0] = number
    save_file(tensors, stolen / kind / file, {"format": "pt"})
    with pytest.raises(ModelError, match="NaN or infinite numbers"):
        load_source(stolen / kind, CPU)


@pytest.mark.parametrize(
    "file", ["heads.safetensors", "pairs.safetensors", "trunk/model.safetensors", "trunk/tokenizer.json"]
)
@pytest.mark.parametrize("held", [b"", b"\xff" * 64, b"[" * 20_000])
def test_broken_parts(stolen: Path, file: str, held: bytes) -> None:
    (stolen / "heads" / file).write_bytes(held)
    with pytest.raises(SurefootError):
        load_source(stolen / "heads", CPU)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"scales": [float("nan")] * 3}, "NaN"),
        ({"variance_factor": 10**30}, "beyond 64 bits"),
        ({"offsets": [0.0]}, "1 offsets but 3 scales"),
        ({"scales": [-1.0] * 3}, "scales must be positive"),
        ({"variance_factor": "2"}, "can't be loaded"),
        ({"prior": [1]}, "can't be loaded"),
    ],
)
def test_calibrations_that_cannot_be(stolen: Path, held: dict[str, Any], said: str) -> None:
    path = stolen / "heads" / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | held))
    with pytest.raises(SurefootError, match=said):
        load_source(stolen / "heads", CPU)


@pytest.mark.parametrize(
    "name",
    [
        *("package:evil_package.sub/model", "package:/model", "package:evil_package/../..", "package:a b/c"),
        *("package:__main__/x", "package:sys/x", "package:evil_package//etc"),
    ],
)
def test_package_names_that_a_user_gives(stolen: Path, name: str) -> None:
    """Top-level packages and folders inside them only; looking for one imports nothing."""
    with pytest.raises(ModelError, match=r"must be package:NAME/FOLDER|needs the package"):
        resolve_model(name)


def test_a_package_that_is_there_is_found_without_importing_it(stolen: Path) -> None:
    shutil.copytree(stolen / "m0", stolen.parent / "evil_package" / "model")
    assert resolve_model("package:evil_package/model") == str(stolen.parent / "evil_package" / "model")


def test_a_base_on_the_disk_is_saved_with_its_adapters(policy_path: Path, sources: Path, tmp_path: Path) -> None:
    """So it loads without the original, wherever it is moved to; its scores and a second save are the same."""
    held = json.loads((sources / "lora" / "source.json").read_text())
    assert held["base"] == "base"
    assert {path.name for path in (sources / "lora" / "base").iterdir()} >= {"config.json", "model.safetensors"}
    source = load_source(sources / "lora", CPU)
    assert isinstance(source, LoraMembers)
    texts = ["the cat", "a dog"], [" runs", " sleeps"]
    first = source.score(*texts)
    adapters = [sources / "lora" / name for name in held["members"]]
    given = LoraMembers.from_adapters(adapters, policy_path, max_length=16, device=CPU)
    torch.testing.assert_close(first, given.score(*texts))
    source.save(tmp_path / "again")
    torch.testing.assert_close(load_source(tmp_path / "again", CPU).score(*texts), first)
