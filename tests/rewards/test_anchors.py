"""Stored anchors: by content, once, whole on disk, and of one source only."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from surefoot.errors import DataError, RunError
from surefoot.rewards.anchors import AnchorStore, group_anchors, prompt_digest
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.types import ANCHOR_KINDS, Anchors, RewardEstimate


def members(name: str = "mine") -> FunctionMembers:
    """Two members: the completion's length, and its length with the prompt's."""
    return FunctionMembers(
        lambda prompts, texts: [[len(t), len(p) + len(t)] for p, t in zip(prompts, texts, strict=True)], 2, name
    )


def rows(*values: float) -> torch.Tensor:
    return torch.tensor(values)[:, None] * torch.tensor([[1.0, 10.0]])


def store() -> AnchorStore:
    found = AnchorStore("mine", 2)
    found.add(["a", "b"], rows(1, 3, 5, 9))
    return found


def test_an_anchor_is_the_mean_over_the_prompts_completions() -> None:
    anchors = store().of(["b", "a", "b"])
    assert anchors.rows.tolist() == [[7.0, 70.0], [2.0, 20.0], [7.0, 70.0]]
    assert anchors.kind == "reference"
    assert anchors.count.tolist() == [2.0, 2.0, 2.0]
    assert not anchors.holds_own


def test_prompts_are_known_by_their_content() -> None:
    messages = [{"role": "user", "content": "hi"}]
    found = AnchorStore("mine", 1)
    found.add([messages, "hi"], rows(1, 2))
    assert len(found) == 2
    assert [dict(reversed(list(messages[0].items())))] in found  # the same message, its keys in another order
    assert "hi" in found
    assert "hi " not in found
    assert prompt_digest(messages) != prompt_digest("hi")


def test_what_is_missing_is_asked_once_and_in_order() -> None:
    assert store().missing(["c", "a", "d", "c", "b"]) == ["c", "d"]
    assert store().missing(["a", "b"]) == []


def test_an_unknown_prompt_is_named() -> None:
    with pytest.raises(DataError, match="prompt 1 has no anchor among the 2 known ones: 'z'"):
        store().of(["a", "z"])


def test_unscored_completions_do_not_count() -> None:
    found = AnchorStore("mine", 2)
    scores = rows(1, 3, 5, 9)
    scores[1], scores[2:, 1] = math.nan, math.nan
    found.add(["a", "b"], scores)
    known = found.of(["a", "b"]).rows
    assert known[0].tolist() == [1.0, 10.0]
    assert float(known[1, 0]) == 7.0
    assert math.isnan(float(known[1, 1]))


def test_every_prompt_needs_all_of_its_completions() -> None:
    with pytest.raises(DataError, match="2 prompts need 4 scored rows, got 3"):
        AnchorStore("mine", 2).add(["a", "b"], rows(1, 2, 3))
    with pytest.raises(DataError, match="the mean of at least 1 completion, got 0"):
        AnchorStore("mine", 0)


def test_saved_and_loaded(tmp_path: Path) -> None:
    path = store().save(tmp_path / "deep" / "anchors.safetensors")
    found = AnchorStore.load(path, members())
    assert (found.source, found.completions, len(found)) == ("mine", 2, 2)
    assert torch.equal(found.of(["a", "b"]).rows, store().of(["a", "b"]).rows)
    assert [file.name for file in path.parent.iterdir()] == ["anchors.safetensors"]  # nothing half-written beside it
    empty = AnchorStore.load(AnchorStore("mine", 3).save(tmp_path / "empty.safetensors"))
    assert (len(empty), empty.completions) == (0, 3)


def test_going_on_from_a_file_is_doing_it_at_once(tmp_path: Path) -> None:
    once = AnchorStore("mine", 2)
    once.add(["a", "b"], rows(1, 3, 5, 9))
    once.add(["c"], rows(2, 8))
    later = AnchorStore.load(store().save(tmp_path / "part.safetensors"))
    assert later.missing(["a", "b", "c"]) == ["c"]
    later.add(["c"], rows(2, 8))
    again = AnchorStore.load(later.save(tmp_path / "part.safetensors"))
    assert torch.equal(again.of(["a", "b", "c"]).rows, once.of(["a", "b", "c"]).rows)
    assert again.missing(["a", "b", "c"]) == []


def test_a_file_of_another_source_is_refused(tmp_path: Path) -> None:
    path = store().save(tmp_path / "anchors.safetensors")
    with pytest.raises(DataError, match=r"of the source 'mine', but the source is 'theirs'; .* `surefoot anchors`"):
        AnchorStore.load(path, members("theirs"))


def test_what_is_not_a_file_of_anchors(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="is not a file of anchors"):
        AnchorStore.load(tmp_path / "none.safetensors")
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(store().save(tmp_path / "whole.safetensors").read_bytes()[:-9])
    with pytest.raises(RunError, match=r"torn\.safetensors is not a file of anchors"):
        AnchorStore.load(torn)
    from safetensors.torch import save_file

    save_file({"rows": torch.zeros(1, 2)}, tmp_path / "other.safetensors")
    with pytest.raises(RunError, match="is not a file of anchors"):
        AnchorStore.load(tmp_path / "other.safetensors")


def test_a_stored_anchor_centres_like_a_given_one() -> None:
    source = members()
    source.variance_kind = "raw"
    found = store()
    scores = source.score(["a", "b"], ["xyz", "x"])
    estimate = source.estimate(scores, found.of(["a", "b"]))
    by_hand = torch.tensor([[3.0 - 2, 4.0 - 20], [1.0 - 7, 2.0 - 70]]).var(dim=1, correction=1)
    torch.testing.assert_close(estimate.variance.float(), by_hand)
    assert estimate.anchor_kinds == ["reference", "reference"]


# Groups and kinds


def test_a_group_is_its_own_anchor_and_holds_itself() -> None:
    found = group_anchors(rows(1, 3, 5), torch.tensor([4, 4, 9]), "dataset")
    assert found.rows[:2].tolist() == [[2.0, 20.0]] * 2
    assert bool(found.rows[2].isnan().all())
    assert found.count.tolist() == [2.0, 2.0, 1.0]
    assert found.kind == "dataset"
    assert found.holds_own


def test_columns_of_a_part() -> None:
    found = store().of(["a"]).columns(1)
    assert found.rows.tolist() == [[20.0]]
    assert (found.kind, found.count.tolist()) == ("reference", [2.0])


def test_anchors_and_codes_are_checked() -> None:
    with pytest.raises(DataError, match=r"unknown kind of anchor 'policy' \(known: reference, dataset"):
        Anchors(torch.zeros(1, 2), "policy", torch.ones(1))  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"one count each, got \(2, 2\) and \(1,\)"):
        Anchors(torch.zeros(2, 2), "group", torch.ones(1))
    estimate = RewardEstimate(torch.zeros(4), epistemic=torch.ones(4), anchor=torch.arange(4))
    assert estimate.anchor_kinds == list(ANCHOR_KINDS)
    assert RewardEstimate(torch.zeros(2)).anchor_kinds == [None, None]
