"""`surefoot doctor`: what is there, what is missing for what, and no secret."""

import json
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from surefoot.cli import doctor
from surefoot.cli.main import main


def test_versions_devices_and_extras(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"] == torch.__version__
    assert found["versions"]["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}.")
    assert found["devices"]["torch_threads"] == torch.get_num_threads()
    assert len(found["devices"]["cuda"]) == torch.cuda.device_count()
    assert found["devices"]["memory_bytes"] > 2**28
    assert found["devices"]["disk_free_bytes"] > 0
    assert set(found["extras"]) == set(doctor.EXTRAS)


def test_what_is_missing_is_told_with_the_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    extras = {
        "there": (("json",), "reading", "pip install there"),
        "gone": (("json", "no_such_module"), "flying", "pip install 'surefoot[gone]'"),
    }
    monkeypatch.setattr(doctor, "EXTRAS", extras)
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    assert "there          installed: reading" in shown
    assert "gone           missing no_such_module, for flying: pip install 'surefoot[gone]'" in shown


@pytest.mark.parametrize(
    ("able", "says"),
    [
        ({"architecture": "x86_64", "amx_bf16": True, "avx512_bf16": False}, "has instructions"),
        ({"architecture": "x86_64", "amx_bf16": False, "avx512_bf16": False}, "float32 is several times as fast"),
        ({"architecture": "aarch64"}, None),
    ],
)
def test_whether_bf16_is_slow_on_this_cpu(
    able: dict[str, object], says: str | None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: able, raising=False)
    assert main(["doctor"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "bf16 on a CPU" in line]
    assert (says is None) == (lines == [])
    assert all(str(says) in line for line in lines)


def test_secrets_are_never_shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_verysecret")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for words in (["doctor"], ["doctor", "--json"]):
        assert main(words) == 0
        assert "verysecret" not in capsys.readouterr().out
    assert doctor.examine()["keys"] == {"HF_TOKEN": True, "OPENAI_API_KEY": False, "SUREFOOT_SERVE_KEY": False}


def test_a_torch_that_cant_be_imported_is_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    assert main(["doctor"]) == 0
    assert "can't be imported" in capsys.readouterr().out


def test_the_extras_are_those_of_the_package() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    ours = {name for name, (_, _, command) in doctor.EXTRAS.items() if command == f"pip install 'surefoot[{name}]'"}
    assert ours == set(project["optional-dependencies"]) - {"test", "docs"}
