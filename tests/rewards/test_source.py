"""Loading by one call, and what a source refuses."""

import math
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from datasets import Dataset

from surefoot.errors import ConfigError, DataError, ModelError
from surefoot.files import write_json
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.rewards.kinds.heads.config import HeadsConfig
from surefoot.rewards.kinds.heads.fit import train_heads
from surefoot.rewards.kinds.heads.source import SharedTrunkHeads
from surefoot.rewards.registry import load_source
from surefoot.rewards.trunk.bootstrap import bootstrap_weights


def test_what_is_not_a_source(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"is not a reward source: it has no source\.json"):
        load_source(tmp_path)
    write_json(tmp_path / "source.json", {"kind": "oracle"})
    with pytest.raises(
        ModelError,
        match=(
            "is of kind 'oracle'; this version knows "
            "adaptive_judge, borrowed_variance, criteria, distilled, dropout, function, heads, independent"
        ),
    ):
        load_source(tmp_path)


def test_a_function_must_give_one_row_each() -> None:
    source = FunctionMembers(lambda prompts, completions: [[1.0, 2.0]], 2, name="mine")
    assert source.score(["p"], ["c"]).tolist() == [[1.0, 2.0]]
    with pytest.raises(DataError, match=r"'mine' gave scores of shape \(1, 2\) for 2 completions and 2 members"):
        source.score(["p"] * 2, ["c"] * 2)
    with pytest.raises(ModelError, match="can't be saved"):
        source.save("anywhere")


def test_scaled_members_keep_their_margins_in_step() -> None:
    """With scaling on, a member that counts in tens and one that counts in ones agree after calibration."""
    base = torch.randn(40, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scores = torch.cat([base, 10 * base], dim=1)
    source = FunctionMembers(lambda prompts, completions: [], 2)
    source.scale_members = True
    noisy = scores + 0.1 * torch.randn(40, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    source.calibrate(noisy, group_anchors(noisy, torch.arange(40) // 4))
    found = source.margins(noisy[:20].float(), noisy[20:].float())
    assert float(found.variance.mean()) < 0.05
    unscaled = FunctionMembers(lambda prompts, completions: [], 2).margins(noisy[:20], noisy[20:])
    assert float(unscaled.variance.mean()) > 10


@pytest.mark.parametrize(("kind", "variance"), [("poisson", 1.0), ("exponential", 1.0)])
def test_bootstrap_weights_have_mean_and_variance_one(kind: str, variance: float) -> None:
    weights = bootstrap_weights([[i] for i in range(4000)], 3, 0, kind)  # type: ignore[arg-type]
    assert float(weights.mean()) == pytest.approx(1.0, abs=4 / math.sqrt(12_000))
    assert float(weights.var(correction=1)) == pytest.approx(variance, abs=0.15)
    correlation = torch.corrcoef(weights.T)[0, 1]
    assert abs(float(correlation)) < 4 / math.sqrt(4000)


def test_bootstrap_weights_follow_the_pair_and_not_its_place() -> None:
    rows = [[1, 2], [3], [4, 5]]
    weights = bootstrap_weights(rows, 4, 0, "exponential")
    torch.testing.assert_close(bootstrap_weights(rows[::-1], 4, 0, "exponential"), weights.flip(0))
    assert not torch.equal(bootstrap_weights(rows, 4, 1, "exponential"), weights)
    assert bootstrap_weights(rows, 4, 0, "none").tolist() == [[1.0] * 4] * 3
    with pytest.raises(ConfigError, match="bootstrap must be"):
        bootstrap_weights(rows, 4, 0, "jackknife")  # type: ignore[arg-type]


class FakeHub:
    """Keeps what would be uploaded."""

    files: ClassVar[dict[str, bytes]] = {}

    def __init__(self, token: str | None = None) -> None:
        pass

    def create_repo(self, repository: str, *, private: bool | None, exist_ok: bool) -> None:
        assert exist_ok

    def upload_folder(self, *, repo_id: str, folder_path: Path) -> str:
        FakeHub.files = {path.name: path.read_bytes() for path in folder_path.rglob("*") if path.is_file()}
        return f"hub/{repo_id}"


def test_pushed_with_a_card(policy_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from surefoot.rewards.kinds.dropout import DropoutConfig, DropoutMembers

    monkeypatch.setattr("surefoot.rewards.hub.HfApi", FakeHub)
    source = DropoutMembers.from_model(_reward_model(policy_path, tmp_path), DropoutConfig(3), device="cpu")
    rows = source.score(["the "] * 3, ["cat", "dog", "red"])
    source.calibrate(rows, group_anchors(rows, torch.zeros(3, dtype=torch.long)))
    assert source.push_to_hub("me/mine") == "hub/me/mine"
    card = FakeHub.files["README.md"].decode()
    assert 'load_source("me/mine")' in card
    assert "kind `dropout`: 3 members" in card
    assert "completions seen in calibration | 3" in card
    assert not any(name.endswith((".bin", ".pt", ".pkl", ".py")) for name in FakeHub.files)


def test_a_source_that_the_hub_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: object, **__: object) -> None:
        raise OSError("no such repository")

    with pytest.raises(ModelError, match="can't load reward source 'nobody/nothing': there is no such path here"):
        load_source("nobody/nothing")
    monkeypatch.setattr("surefoot.rewards.hub.snapshot_download", missing)
    monkeypatch.setattr("surefoot.rewards.hub.check_name", lambda name, what: None)
    with pytest.raises(ModelError, match="there is no directory nobody/nothing, and the hub doesn't give it"):
        load_source("nobody/nothing")


def _reward_model(policy_path: Path, tmp_path: Path) -> Path:
    from transformers import AutoModelForSequenceClassification

    from surefoot.rewards.trunk.loading import load_tokenizer

    AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1).save_pretrained(tmp_path / "rm")
    load_tokenizer(policy_path).save_pretrained(tmp_path / "rm")
    return tmp_path / "rm"


def test_scaling_and_the_kind_of_variance_are_kept(policy_path: Path, tmp_path: Path) -> None:
    words = ["red", "green", "blue", "cat", "dog", "runs"]
    rows = [("the ", f"{words[i % 6]} cat", f"dog {words[(i + 2) % 6]}") for i in range(24)]
    pairs = Dataset.from_dict(
        {name: [row[i] for row in rows] for i, name in enumerate(("prompt", "chosen", "rejected"))}
    )
    source = train_heads(pairs, policy_path, HeadsConfig(3, layer=0, epochs=2, max_length=16), device="cpu")
    source.scale_members, source.variance_kind = True, "raw"
    scores = source.score(["the "] * 12, [f"{a} {b}" for a in words for b in words[:2]])
    calibration = source.calibrate(scores)
    assert len(set(calibration.scales)) == 3
    source.save(tmp_path)
    loaded = load_source(tmp_path, "cpu")
    assert isinstance(loaded, SharedTrunkHeads)
    assert loaded.scale_members
    assert loaded.variance_kind == "raw"
    torch.testing.assert_close(loaded.estimate(scores).variance, source.estimate(scores).variance)
    raw = ((scores.double() - scores.double().mean(dim=0)) / torch.tensor(calibration.scales)).var(dim=1, correction=1)
    torch.testing.assert_close(loaded.estimate(scores).variance, raw)
    assert calibration.reference_variance == pytest.approx(float(raw.mean()))
    assert loaded.calibrate(scores) == calibration
