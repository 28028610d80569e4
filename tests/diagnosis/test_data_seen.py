"""Training pairs are recognised by their texts, the held-out ones are chosen exactly, and unknown is not none."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from datasets import Dataset
from safetensors.numpy import save_file

from surefoot.data.comparisons import Comparisons
from surefoot.data.training_pairs import TrainingPairs, pair_keys
from surefoot.diagnosis import keep_held_out
from surefoot.diagnosis.card import compare_with_card
from surefoot.diagnosis.data_seen import look_up
from surefoot.errors import DataError, ModelError
from surefoot.types import Calibration, VariancePrior


def table(rows: range) -> Dataset:
    return Dataset.from_dict({name: [f"{name} {row}" for row in rows] for name in ("prompt", "chosen", "rejected")})


def comparisons(*rows: int) -> Comparisons:
    return Comparisons(
        name="pairs",
        format="pairs",
        prompts=[f"prompt {row}" for row in rows for _ in range(2)],
        completions=[f"{side} {row}" for row in rows for side in ("chosen", "rejected")],
        items=np.repeat(np.arange(len(rows)), 2),
        correct=np.tile([True, False], len(rows)),
        subsets=[f"s{row}" for row in rows],
        ids=[str(row) for row in rows],
    )


TRAINED = TrainingPairs.of(table(range(6)), table(range(6, 9)))


def test_a_pair_is_recognised_in_another_layout() -> None:
    user, said = ({"role": role, "content": "a  b\n"} for role in ("user", "assistant"))
    other = [{"role": "assistant", "content": "Caf\u00e9"}]
    same = pair_keys(["a b", [user], "a b"], ["a b", [said], "Cafe\u0301"], ["Cafe\u0301", other, "a b"])
    assert len(set(same.tolist())) == 1
    different = pair_keys(["a b", "a", "a b", "A b"], ["c", "b c", "c d", "c"], ["d", "d", "", "d"])
    assert len(set(different.tolist())) == 4


def test_what_is_saved_is_read_back_and_absence_is_unknown(tmp_path: Path) -> None:
    assert TrainingPairs.load(tmp_path) is None
    TRAINED.save(tmp_path)
    read = TrainingPairs.load(tmp_path)
    assert read is not None
    assert read.train.tolist() == TRAINED.train.tolist()
    assert read.held_out.tolist() == TRAINED.held_out.tolist()
    assert (tmp_path / "pairs.safetensors").stat().st_size < 400  # eight bytes for each pair
    save_file({"train": np.zeros(3, dtype=np.float32)}, tmp_path / "pairs.safetensors")
    with pytest.raises(ModelError, match="must hold the keys of the pairs"):
        TrainingPairs.load(tmp_path)


def test_the_held_out_pairs_are_taken_from_the_data_it_was_trained_from() -> None:
    """All of them and no other, also beside pairs that nobody has seen."""
    kept, left_out = keep_held_out(comparisons(0, 7, 1, 6, 20, 8, 5), TRAINED)
    assert (kept.ids, kept.subsets, left_out) == (["7", "6", "8"], ["s7", "s6", "s8"], 4)
    assert kept.prompts[::2] == ["prompt 7", "prompt 6", "prompt 8"]
    assert kept.items.tolist() == [0, 0, 1, 1, 2, 2]


@pytest.mark.parametrize("rows", [(0, 1, 6, 7), (6, 7, 8, 20), (20, 21)])
def test_other_data_are_taken_whole(rows: tuple[int, ...]) -> None:
    """Some of the held-out pairs are missing, or no training pair is among them."""
    data = comparisons(*rows)
    assert keep_held_out(data, TRAINED) == (data, 0)
    assert keep_held_out(data, None) == (data, 0)


def test_held_out_pairs_that_are_required_are_taken_as_far_as_they_are_there() -> None:
    kept, left_out = keep_held_out(comparisons(0, 1, 6, 7), TRAINED, required=True)
    assert (kept.ids, left_out) == (["6", "7"], 2)
    with pytest.raises(DataError, match="none of the 3 pairs that the source held out"):
        keep_held_out(comparisons(0, 20), TRAINED, required=True)


def test_training_pairs_are_counted_and_said_loudly() -> None:
    found = look_up(comparisons(0, 1, 6, 20), TRAINED).to_dict()
    assert (found["training"], found["held_out"], found["same_as_card"]) == (2, 1, False)
    assert found["warning"].startswith("The source was trained on 2 of these 4 pairs (50%).")
    assert not any("None of" in line for line in found["lines"])


def test_new_pairs_are_said_to_be_new_within_limits() -> None:
    found = look_up(comparisons(20, 21), TRAINED).to_dict()
    assert found["warning"] is None
    assert found["lines"][0].startswith("None of the 2 pairs is among the 6 that the source was given to train on.")
    assert "can't be recognised" in found["lines"][0]
    held_out = look_up(comparisons(6, 7, 8), TRAINED, left_out=6).to_dict()
    assert held_out["same_as_card"] is True
    assert held_out["lines"][1].startswith("These are the 3 held-out pairs")
    assert held_out["lines"][2].startswith("6 other pairs of the dataset are left out")
    assert "2 of the pairs are among the 3 held-out" in look_up(comparisons(6, 7), TRAINED).to_dict()["lines"][1]


def test_a_source_without_a_record_is_unknown() -> None:
    found = look_up(comparisons(0, 1), None).to_dict()
    assert (found["training"], found["held_out"], found["same_as_card"], found["warning"]) == (None,) * 4
    assert "is unknown" in found["lines"][0]


CARD = Calibration(
    (0.0,), (1.0,), VariancePrior(4.0, 1.0), 1.0, rows=6, notes={"weight_cv": 0.5, "reliability": 0.8},
    variance_factor=2.0,
)  # fmt: skip


def diagnosis(data: Any, **heterogeneity: Any) -> dict[str, Any]:
    usual = {"completions": 6, "anchors": {"dataset": 1.0}, "reliability": 0.6, "variation": 0.3,
             "prior_freedom": 4.0, "at_floor": 0.0, "at_ceiling": 0.0}  # fmt: skip
    return {"data": data.to_dict(), "heterogeneity": usual | heterogeneity, "calibration": {"factor": 1.0}}


def reasons(found: dict[str, Any], **keywords: Any) -> dict[str, str]:
    return {row["figure"]: "; ".join(row["why"]) for row in compare_with_card(CARD, found, **keywords)}


def test_a_figure_that_differs_from_the_cards_is_explained_by_what_is_true() -> None:
    same, other = look_up(comparisons(6, 7, 8), TRAINED), look_up(comparisons(7, 20), TRAINED)
    reliability = "reliability of the variance"
    assert reasons(diagnosis(same))[reliability] == ""  # no known difference
    assert "3 held-out pairs, here are 2, 1 of them the same" in reasons(diagnosis(other))[reliability]
    assert "another centring" in reasons(diagnosis(same, anchors={"calibration": 1.0}))[reliability]
    assert "another centring" not in reasons(diagnosis(other))[reliability]
    assert reasons(diagnosis(other, reliability=0.802))[reliability] == ""  # the same figure
    assert "clipped" in reasons(diagnosis(same, at_floor=0.1))["coefficient of variation"]
    assert "completions of a policy" in reasons(diagnosis(same), sampled=True)[reliability]
    unknown = look_up(comparisons(7, 20), None)
    assert reasons(diagnosis(unknown))[reliability] == ""  # as many completions: perhaps the same pairs
    assert "6 in the card, 4 here" in reasons(diagnosis(unknown, completions=4))[reliability]


def test_what_one_of_the_two_does_not_have_is_left_out() -> None:
    same = look_up(comparisons(6, 7, 8), TRAINED)
    assert list(reasons(diagnosis(same, reliability=None, prior_freedom=None))) == [
        "coefficient of variation", "variance factor"
    ]  # fmt: skip
    assert compare_with_card(None, diagnosis(same)) == []
    infinite = replace(CARD, prior=VariancePrior(float("inf"), 1.0))
    assert len(compare_with_card(infinite, diagnosis(same))) == 3
