"""A mistyped path is told at once, with the nearest name beside it; what may be on the hub is asked for once."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from huggingface_hub.errors import HfHubHTTPError

from surefoot.data.loading import open_dataset
from surefoot.errors import DataError, ModelError
from surefoot.hub_names import check_name
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.loading import load_tokenizer


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "runs" / "policy").mkdir(parents=True)
    (tmp_path / "pairs.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_the_nearest_path_is_named(folder: Path) -> None:
    check_name("runs/policy", "model")
    with pytest.raises(ModelError, match=r"there is no such path here, .*; did you mean 'runs/policy'"):
        check_name("runs/polcy", "model")
    with pytest.raises(DataError, match=r"can't be a name on the hub; did you mean 'pairs.jsonl'"):
        open_dataset("pair.jsonl")
    with pytest.raises(ModelError, match="it can't be a name on the hub; did you mean"):
        load_source(f"{folder}/runs/polic")
    with pytest.raises(ModelError, match="can't load model 'runs/polcy'"):
        load_tokenizer("runs/polcy")


class Hub:
    """Instead of `HfApi`: says what it is told to, and counts how often it is asked."""

    answer: Any = True
    asked = 0

    def repo_exists(self, name: str, repo_type: str) -> bool:
        Hub.asked += 1
        if isinstance(Hub.answer, Exception):
            raise Hub.answer
        return bool(Hub.answer)


@pytest.mark.parametrize(
    ("answer", "said"),
    [(True, None), (False, "the hub has none of that name"), (OSError("no route"), "the hub can't be reached")],
)
def test_the_hub_is_asked_once(folder: Path, monkeypatch: pytest.MonkeyPatch, answer: Any, said: str | None) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "answer", answer)
    monkeypatch.setattr(Hub, "asked", 0)
    if said is None:
        check_name("org/model", "model")
    else:
        with pytest.raises(ModelError, match=said):
            check_name("org/model", "model")
    assert Hub.asked == 1


def test_what_is_in_the_cache_is_not_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    for name, what in (("models--org--model", "model"), ("datasets--org--model", "dataset")):
        with pytest.raises((ModelError, DataError), match="HF_HUB_OFFLINE"):
            check_name("org/model", what)  # type: ignore[arg-type]
        (folder / "cache" / name).mkdir(parents=True)
        check_name("org/model", what)  # type: ignore[arg-type]


def test_an_error_of_the_server_is_left_to_the_library(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    error = HfHubHTTPError.__new__(HfHubHTTPError)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "answer", error)
    check_name("org/model", "model")


def test_no_retries_where_nothing_answers(folder: Path) -> None:
    """The libraries alone take 23 s for a dataset and twice that for a model."""
    with socket.socket() as closed:  # a port that refuses connections
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
    code = "from surefoot.data.loading import open_dataset; open_dataset('runs/pairs')"
    environment = os.environ | {"HF_ENDPOINT": address, "HF_HUB_OFFLINE": "0", "HF_HUB_CACHE": str(folder / "cache")}
    start = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "the hub can't be reached" in done.stderr
    assert "Retry" not in done.stderr
    assert time.monotonic() - start < 60
