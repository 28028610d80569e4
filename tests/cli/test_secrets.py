"""The hub's token reaches the hub and nothing else: no file of a run, in no form."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.trainer
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.errors import ConfigError
from surefoot.redaction import REDACTED
from surefoot.studies.config import StudyConfig
from surefoot.training.dpo_config import VarianceAwareDPOConfig
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.rloo_config import VarianceAwareRLOOConfig

TOKEN, INNER = "plainlooking0token", "another0secret"


class Hub:
    """Stands for the hub: keeps the token of each call, and what lay in the folder when it was uploaded."""

    def __init__(self) -> None:
        self.tokens: list[str] = []
        self.uploaded: dict[str, bytes] = {}

    def create_repo(self, name: str, *, token: str, **_: Any) -> Any:
        self.tokens.append(token)
        self.repo_id = name
        return self

    def upload_folder(self, *, folder_path: str, token: str, **_: Any) -> Future[None]:
        self.tokens.append(token)
        self.uploaded |= {str(p): p.read_bytes() for p in Path(folder_path).rglob("*") if p.is_file()}
        done: Future[None] = Future()
        done.set_result(None)
        return done


def test_a_pushed_run_holds_no_token(policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints, training_args.bin, run.json, record.json and the card: all that is pushed, at every save."""
    hub = Hub()
    monkeypatch.setattr(transformers.trainer, "hf_api", lambda: hub, raising=False)
    for call in ("create_repo", "upload_folder"):  # what transformers calls before it has hf_api
        monkeypatch.setattr(transformers.trainer, call, getattr(hub, call), raising=False)
    rows = {"prompt": ["the"] * 4, "chosen": [" cat"] * 4, "rejected": [" dog"] * 4}
    Dataset.from_dict(rows).to_parquet(tmp_path / "pairs.parquet")
    config = tmp_path / "dpo.yaml"
    config.write_text(f"hub_token: {TOKEN}\nmodel_init_kwargs: {{token: {INNER}}}\n")
    settings = {
        "config": config, "model_name_or_path": policy_path, "dataset_name": tmp_path / "pairs.parquet",
        "output_dir": tmp_path / "out", "weights": "none", "max_steps": 2, "save_steps": 1, "report_to": "none",
        "push_to_hub": "true", "hub_model_id": "me/it", "hub_strategy": "all_checkpoints", "use_cpu": "true",
        "gradient_checkpointing": "false", "per_device_train_batch_size": 4,
    }  # fmt: skip
    assert main(["dpo", *(word for name, value in settings.items() for word in (f"--{name}", str(value)))]) == 0
    assert set(hub.tokens) == {TOKEN}
    assert len(hub.tokens) > 3
    names = {Path(name).name for name in hub.uploaded}
    assert {"training_args.bin", "run.json", "record.json", "README.md"} <= names
    held = dict(hub.uploaded)
    held |= {str(p): p.read_bytes() for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert [name for name, data in held.items() if TOKEN.encode() in data or INNER.encode() in data] == []
    written = torch.load(tmp_path / "out" / "training_args.bin", weights_only=False)
    assert (written.hub_token, written.model_init_kwargs["token"], written.max_steps) == (REDACTED, REDACTED, 2)


@pytest.mark.parametrize("kind", [VarianceAwareDPOConfig, VarianceAwareGRPOConfig, VarianceAwareRLOOConfig])
def test_settings_keep_their_token_and_do_not_tell_it(kind: Any, tmp_path: Path) -> None:
    args = kind(str(tmp_path), hub_token=TOKEN, model_init_kwargs={"token": INNER}, use_cpu=True)
    for written in (pickle.dumps(args), args.to_json_string().encode(), str(args.to_dict()).encode()):
        assert TOKEN.encode() not in written
        assert INNER.encode() not in written
    for twin in (copy.copy(args), copy.deepcopy(args)):
        assert (twin.hub_token, twin.model_init_kwargs) == (TOKEN, {"token": INNER})
        assert type(twin) is kind


@pytest.mark.parametrize(
    "changes",
    [
        {"policy": {"hub_token": TOKEN}},
        {"policy": {"model_init_kwargs": {"token": TOKEN}}},
        {"settings": {"s": {"model": "https://me:pass@host/x"}}},
        {"sources": {"j": {"kind": "judge", "parameters": {"api_key": TOKEN}}}},
    ],
)
def test_a_study_takes_no_secret(changes: dict[str, Any]) -> None:
    """Its records hold every setting."""
    grid: dict[str, Any] = {
        "settings": {"w": {"world": "even"}}, "sources": {"h": {}}, "methods": {"mean": {"preset": "mean"}},
        "kl_budgets": (None,), "seeds": (0,),
    }  # fmt: skip
    with pytest.raises(ConfigError, match="must hold no token, key or password"):
        StudyConfig(**grid | changes)
