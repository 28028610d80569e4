"""A finished member is never trained again, an interrupted one leaves nothing, and K = 1 has no variance."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification

from surefoot.errors import DataError, ModelError, VarianceError
from surefoot.rewards.anchors import group_anchors
from surefoot.rewards.kinds.independent.config import IndependentConfig
from surefoot.rewards.kinds.independent.fit import _shares, train_independent
from surefoot.rewards.kinds.independent.source import IndependentMembers
from surefoot.rewards.registry import load_source

CONFIG = IndependentConfig(members=2, epochs=1, batch_size=8, learning_rate=1e-3, max_length=16)


def contents(folder: Path) -> dict[str, tuple[int, bytes]]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.parametrize("base", ["policy_path", "encoder_path"])
def test_members_differ_and_a_second_call_trains_nothing(
    base: str, pairs: Dataset, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    path = request.getfixturevalue(base)
    source = train_independent(pairs, path, tmp_path / "s", CONFIG, device="cpu")
    scores = source.score(pairs["prompt"], pairs["chosen"])
    assert scores.shape == (24, 2)
    assert float((scores[:, 0] - scores[:, 1]).abs().max()) > 1e-4
    before = contents(tmp_path / "s" / "members")
    again = train_independent(pairs, path, tmp_path / "s", CONFIG, device="cpu")
    assert contents(tmp_path / "s" / "members") == before
    torch.testing.assert_close(again.score(pairs["prompt"], pairs["chosen"]), scores)
    assert not [name for name in before if name.endswith((".bin", ".pt", ".pkl"))]


def test_an_interruption_keeps_finished_members_and_no_half_one(
    policy_path: Path, pairs: Dataset, tmp_path: Path
) -> None:
    def stop(member: int, step: int, steps: int) -> None:
        if member == 1 and step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_independent(pairs, policy_path, tmp_path / "s", CONFIG, device="cpu", on_step=stop)
    assert [path.name for path in (tmp_path / "s" / "members").iterdir()] == ["0"]
    first = contents(tmp_path / "s" / "members" / "0")
    resumed = train_independent(pairs, policy_path, tmp_path / "s", CONFIG, device="cpu")
    assert contents(tmp_path / "s" / "members" / "0") == first
    whole = train_independent(pairs, policy_path, tmp_path / "w", CONFIG, device="cpu")
    score = [source.score(pairs["prompt"], pairs["chosen"]) for source in (resumed, whole)]
    torch.testing.assert_close(score[0], score[1], rtol=0, atol=0)


def test_other_settings_train_anew(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    train_independent(pairs, policy_path, tmp_path / "s", CONFIG, device="cpu")
    before = contents(tmp_path / "s" / "members" / "0")
    train_independent(pairs, policy_path, tmp_path / "s", replace(CONFIG, seed=5), device="cpu")
    assert contents(tmp_path / "s" / "members" / "0") != before


def test_one_member_scores_but_has_no_variance(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    train_independent(pairs, policy_path, tmp_path / "s", replace(CONFIG, members=1), device="cpu")
    source = load_source(tmp_path / "s", device="cpu")
    scores = source.score(pairs["prompt"], pairs["chosen"])
    estimate = source.estimate(scores, group_anchors(scores, torch.arange(24) % 5))
    assert bool(estimate.scored.all())
    with pytest.raises(VarianceError, match="at least two members"):
        _ = estimate.variance


def test_members_with_their_own_tokenizers(
    policy_path: Path, encoder_path: Path, pairs: Dataset, tmp_path: Path
) -> None:
    """Two existing reward models whose vocabularies differ, in one source."""
    names = []
    for k, base in enumerate((policy_path, encoder_path)):
        folder = tmp_path / str(k)
        train_independent(pairs, base, folder, replace(CONFIG, members=1), device="cpu")
        names.append(folder / "members" / "0")
    source = IndependentMembers.from_models(names, max_length=16, device="cpu")
    scores = source.score(pairs["prompt"], pairs["chosen"])
    for k, name in enumerate(names):
        alone = IndependentMembers.from_models([name], max_length=16, device="cpu")
        torch.testing.assert_close(scores[:, [k]], alone.score(pairs["prompt"], pairs["chosen"]))


def test_models_that_are_not_reward_models(policy_path: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match="is not a model directory"):
        IndependentMembers.from_models([tmp_path / "empty"])
    (tmp_path / "empty" / "config.json").write_text((policy_path / "config.json").read_text())
    with pytest.raises(ModelError, match=r"holds no \*\.safetensors weights"):
        IndependentMembers.from_models([tmp_path / "empty"])
    AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=3).save_pretrained(tmp_path / "three")
    with pytest.raises(ModelError, match="has 3 outputs; a reward model has one"):
        IndependentMembers.from_models([tmp_path / "three"])
    with pytest.raises(ModelError, match="needs the package no_such_package; install it"):
        IndependentMembers.from_models(["package:no_such_package/model"])
    with pytest.raises(ModelError, match="at least one model"):
        IndependentMembers([])


def test_disjoint_members_share_no_prompt(policy_path: Path, pairs: Dataset) -> None:
    """Each prompt is one member's alone, all are used, and members of another seed get others."""
    settings = replace(CONFIG, bootstrap="disjoint")
    shares = [set(share["prompt"]) for share in _shares(pairs, settings)]
    assert shares[0] & shares[1] == set()
    assert shares[0] | shares[1] == set(pairs["prompt"])
    assert [set(share["prompt"]) for share in _shares(pairs, replace(settings, seed=1))] != shares


def test_disjoint_data_train_and_resume(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    settings = replace(CONFIG, bootstrap="disjoint")
    source = train_independent(pairs, policy_path, tmp_path / "s", settings, device="cpu")
    before = contents(tmp_path / "s" / "members")
    train_independent(pairs, policy_path, tmp_path / "s", settings, device="cpu")
    assert contents(tmp_path / "s" / "members") == before
    assert source.num_members == 2
    few = pairs.select([0])
    with pytest.raises(DataError, match="1 distinct prompts can't be shared out among 2 members"):
        train_independent(few, policy_path, tmp_path / "t", settings, device="cpu")


def test_members_of_different_bases_keep_their_tokenizers(
    policy_path: Path, encoder_path: Path, pairs: Dataset, tmp_path: Path
) -> None:
    settings = replace(CONFIG, members=3)
    train_independent(pairs, [policy_path, encoder_path], tmp_path / "s", settings, device="cpu")
    source = load_source(tmp_path / "s", "cpu")
    assert isinstance(source, IndependentMembers)
    kinds = [type(member.model).__name__ for member in source.members]
    assert kinds == ["LlamaForSequenceClassification", "BertForSequenceClassification", *kinds[:1]]
    ids = [member.encoder(["the "], ["cat"])[0] for member in source.members]
    assert ids[0] == ids[2] != ids[1]
    assert bool(source.score(pairs["prompt"], pairs["chosen"]).isfinite().all())


def test_adapters_are_merged_into_the_member(policy_path: Path, pairs: Dataset, tmp_path: Path) -> None:
    """Only the adapted layers and the head differ from the base, by a product of the given rank."""
    settings = replace(CONFIG, members=1, rank=2, targets=("q_proj",))
    train_independent(pairs, policy_path, tmp_path / "s", settings, device="cpu")
    trained = AutoModelForSequenceClassification.from_pretrained(tmp_path / "s" / "members" / "0").state_dict()
    base = AutoModelForSequenceClassification.from_pretrained(policy_path, num_labels=1).state_dict()
    changed = {name for name in base if not torch.allclose(base[name], trained[name], atol=1e-7)}
    assert {name for name in changed if "q_proj" not in name} == {"score.weight"}
    assert len(changed) == 3
    for name in changed - {"score.weight"}:
        assert int(torch.linalg.matrix_rank(trained[name] - base[name], rtol=1e-3)) <= 2
