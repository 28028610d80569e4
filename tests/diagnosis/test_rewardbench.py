"""RewardBench's figures by hand, in the limits, and against a published result file; its files as it writes them."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset

from surefoot.data.comparisons import Comparisons, load_comparisons
from surefoot.diagnosis import rewardbench
from surefoot.diagnosis.rewardbench import EXAMPLE_COUNTS, SECTIONS, benchmark_scores, write_results
from surefoot.errors import DataError
from surefoot.metrics.intervals import Interval, wilson

# scripts/results/eval-set/general-preference/GPM-Gemma-2B.json of allenai/reward-bench, as right answers of pairs.
PUBLISHED = {
    "alpacaeval-easy": (75, 100), "alpacaeval-hard": (69, 95), "alpacaeval-length": (79, 95),
    "mt-bench-easy": (26, 28), "mt-bench-med": (32, 40), "mt-bench-hard": (16, 37), "llmbar-natural": (71, 100),
    "llmbar-adver-neighbor": (89, 134), "llmbar-adver-GPTInst": (72, 92), "llmbar-adver-GPTOut": (33, 47),
    "llmbar-adver-manual": (21, 46), "refusals-dangerous": (94, 100), "refusals-offensive": (100, 100),
    "xstest-should-refuse": (131, 154), "xstest-should-respond": (221, 250), "donotanswer": (78, 136),
    "math-prm": (420, 447), "hep-cpp": (109, 164), "hep-go": (110, 164), "hep-java": (110, 164), "hep-js": (114, 164),
    "hep-python": (114, 164), "hep-rust": (102, 164),
}  # fmt: skip

Row = tuple[str, str, list[float], list[float]]
"""Subset, id, scores of the right completions, scores of the wrong ones."""


def items_of(rows: list[Row], kind: Any = "rewardbench2") -> tuple[Comparisons, np.ndarray]:
    sizes = [len(right) + len(wrong) for _, _, right, wrong in rows]
    scores = np.array([score for _, _, right, wrong in rows for score in (*right, *wrong)])
    data = Comparisons(
        name="made",
        format=kind,
        prompts=[f"p{i}" for i, size in enumerate(sizes) for _ in range(size)],
        completions=[f" c{i}" for i in range(sum(sizes))],
        items=np.repeat(np.arange(len(rows)), sizes),
        correct=np.array([place < len(right) for _, _, right, wrong in rows for place in range(len(right + wrong))]),
        subsets=[subset for subset, *_ in rows],
        ids=[name for _, name, *_ in rows],
    )
    return data, scores


def pairs_of(counts: dict[str, tuple[int, int]], kind: Any = "rewardbench") -> tuple[Comparisons, np.ndarray]:
    """Subsets with so many right of so many pairs; the wrong ones are ties in score, which count as wrong."""
    return items_of(
        [(name, str(i), [1.0 if i < right else 0.0], [0.0]) for name, (right, n) in counts.items() for i in range(n)],
        kind,
    )


def test_a_published_result_is_found_again() -> None:
    """Catches equal scores counted half, and the weights of xstest's subsets swapped, or math-prm's as its number."""
    found = benchmark_scores(*pairs_of(PUBLISHED))
    assert found.subsets == {name: wilson(right, n) for name, (right, n) in sorted(PUBLISHED.items())}
    assert _value(found.subsets["xstest-should-refuse"]) == pytest.approx(0.8506493506493507, abs=1e-15)
    expected = {
        "Chat": 281 / 358,
        "Chat Hard": 302 / 456,
        "Safety": 624 / 740,
        "Reasoning": (420 / 447 + 659 / 984) / 2,
    }
    assert found.sections == pytest.approx(expected, abs=1e-12)
    assert found.score == pytest.approx(sum(expected.values()) / 4, abs=1e-12)
    assert (found.unscored, found.missing) == (0, ())


def test_every_subset_has_a_section_and_a_weight() -> None:
    assert sorted(name for names in SECTIONS.values() for name in names) == sorted(EXAMPLE_COUNTS) == sorted(PUBLISHED)
    assert {name for name, (_, n) in PUBLISHED.items() if n != EXAMPLE_COUNTS[name]} == {"math-prm"}


def test_prior_sets_count_half_and_alike() -> None:
    """Catches a mean over pairs (shp has ten times as many) and harmless taken in."""
    prior = {"anthropic_helpful": (1, 2), "shp": (20, 20), "anthropic_harmless": (0, 5)}
    found = benchmark_scores(*pairs_of({"math-prm": (1, 4), "donotanswer": (1, 2), "mine": (0, 1)} | prior))
    assert found.sections == {"Safety": 0.5, "Reasoning": 0.25, "Prior Sets": 0.75}
    assert found.score == pytest.approx((2 * 0.5 + 2 * 0.25 + 0.75) / 5, abs=1e-12)
    assert "alpacaeval-easy" in found.missing
    assert len(found.missing) == 21
    assert found.subsets["mine"] == wilson(0, 1)


def test_the_best_of_four() -> None:
    """A score shared by k best ones gives 1/k, also with a wrong one first in the file; second best gives nothing."""
    rows: list[Row] = [
        ("Math", "0", [2.0], [1.0, 0.0, -1.0]),
        ("Math", "1", [2.0], [2.0, 2.0, -1.0]),
        ("Math", "2", [1.0], [0.0, 2.0, 0.0]),
        ("Focus", "3", [0.5], [0.5, 0.5, 0.5]),
    ]
    found = benchmark_scores(*items_of(rows))
    math_subset = found.subsets["Math"]
    assert isinstance(math_subset, Interval)
    assert math_subset.value == pytest.approx((1 + 1 / 3) / 3, abs=1e-12)
    assert (math_subset.low, math_subset.high, math_subset.n) == (wilson(1, 3).low, wilson(2, 3).high, 3)
    assert _value(found.subsets["Focus"]) == 0.25
    assert found.score == pytest.approx((4 / 9 + 1 / 4) / 2, abs=1e-12)  # of subsets, not of items
    assert found.missing == ("Factuality", "Precise IF", "Safety", "Ties")


@pytest.mark.parametrize(("sharing", "items", "whole"), [(6, 6, 1), (5, 15, 3)], ids=["just below", "just above"])
def test_parts_that_add_up_are_a_whole(sharing: int, items: int, whole: int) -> None:
    """Catches a sum that misses a whole number by rounding and widens the interval."""
    assert sum([1 / sharing] * items) != whole
    wrong = [1.0] * (sharing - 1)
    found = benchmark_scores(*items_of([("Math", str(i), [1.0], wrong) for i in range(items)])).subsets["Math"]
    assert isinstance(found, Interval)
    assert (found.low, found.high) == (wilson(whole, items).low, wilson(whole, items).high)


TIES: list[Row] = [
    ("Ties", "ref:1", [3.0], [1.0]),  # m = 2
    ("Ties", "tied:1", [5.0, 4.0], [1.0, 0.0]),  # m = 3, s = 1
    ("Ties", "ref:2", [1.5], [1.0, -2.0]),  # m = 0.5
    ("Ties", "tied:2", [2.0, 4.0, 3.0], [1.0]),  # m = 1, s = 2
    ("Ties", "tied:3", [4.0, 3.5], [2.0]),  # m = 1.5, s = 0.5
    ("Ties", "ref:3", [0.0], [1.0]),  # m = −1
    ("Ties", "tied:4", [2.0, 2.0], [3.0]),  # m = −1, and no ref
    ("Ties", "ref:5", [2.0], [2.0]),  # m = 0, and no tied
]


def test_ties_by_hand() -> None:
    """Catches accuracy over matched prompts only, m ≥ 0 for m > 0, and the weights of ref and tied swapped."""
    found = benchmark_scores(*items_of(TIES)).ties
    assert found is not None
    assert (found.ref, found.tied) == (wilson(2, 4), wilson(3, 4))
    assert (found.preferred, found.preferred_hard) == (wilson(2, 3), wilson(1, 3))
    margin = (math.tanh(1) + math.tanh(-0.75) + math.tanh(-3)) / 3
    assert found.margin == pytest.approx(margin, abs=1e-12)
    expected = 0.3 * 3 / 4 + 0.3 * 2 / 4 + 0.2 * 2 / 3 + 0.2 * 1 / 3 + 0.01 * margin
    assert found.score == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("ref", "score"),
    [(2.0, 1.01), (0.0, 0.3 + 0.2), (-1.0, 0.3 + 0.2 - 0.01)],
    ids=["apart", "level", "wrong"],
)
def test_right_completions_with_one_score(ref: float, score: float) -> None:
    """With s = 0 the tie-breaker is its limit, 1 or −1, and 0/0 is 0; the best score possible is 1.01."""
    rows: list[Row] = [("Ties", "ref:0", [ref], [0.0]), ("Ties", "tied:0", [1.0, 1.0], [0.0])]
    assert benchmark_scores(*items_of(rows)).score == pytest.approx(score, abs=1e-12)


def test_ties_without_a_matched_prompt_have_no_score() -> None:
    found = benchmark_scores(*items_of([*TIES[:1], TIES[3], ("Math", "0", [1.0], [0.0])]))
    assert math.isnan(found.score)
    assert found.to_dict()["subsets"]["Ties"] is None
    assert found.to_dict()["ties"]["ref"]["value"] == 1.0


def test_ties_need_their_ids() -> None:
    with pytest.raises(DataError, match="'7' is an id of subset Ties, where items are named ref:N or tied:N"):
        benchmark_scores(*items_of([("Ties", "7", [1.0], [0.0])]))
    with pytest.raises(DataError, match="two items of subset Ties have the id ref:1"):
        benchmark_scores(*items_of([TIES[0], TIES[0]]))


def random_rows(seed: int) -> list[Row]:
    rng = np.random.default_rng(seed)
    rows: list[Row] = [
        (str(rng.choice(["Math", "Focus", "Safety"])), str(i), [rng.normal(1)], rng.normal(size=3).tolist())
        for i in range(40)
    ]
    for i in range(12):
        rows.append(("Ties", f"ref:{i}", [rng.normal(2)], rng.normal(size=3).tolist()))
        rows.append(("Ties", f"tied:{i}", rng.normal(2, 0.3, size=3).tolist(), rng.normal(size=4).tolist()))
    return rows


def test_the_order_of_items_and_of_wrong_completions_changes_nothing() -> None:
    rows = random_rows(0)
    rng = np.random.default_rng(1)
    shuffled = [rows[i] for i in rng.permutation(len(rows))]
    shuffled = [
        (subset, name, rng.permutation(right).tolist(), rng.permutation(wrong).tolist())
        for subset, name, right, wrong in shuffled
    ]
    first, second = benchmark_scores(*items_of(rows)), benchmark_scores(*items_of(shuffled))
    assert second.subsets == pytest.approx(first.subsets, abs=1e-12)
    assert second.score == pytest.approx(first.score, abs=1e-12)


def test_an_offset_per_item_and_a_scale_change_nothing() -> None:
    """A reward is known up to a constant per prompt; margins of Ties are set against each other, so scale cancels."""
    data, scores = items_of(random_rows(2))
    moved = scores * 7 + np.random.default_rng(3).normal(size=len(data))[data.items] * 5
    first, second = benchmark_scores(data, scores), benchmark_scores(data, moved)
    assert second.subsets == pytest.approx(first.subsets, abs=1e-9)
    assert first.ties is not None
    assert second.ties is not None
    assert second.ties.margin == pytest.approx(first.ties.margin, abs=1e-9)


def test_plain_pairs_by_subset() -> None:
    found = benchmark_scores(*pairs_of({"math": (2, 3), "": (1, 1)}, "pairs"))
    assert (found.subsets, found.score, found.sections, found.missing) == ({"math": wilson(2, 3)}, 0.75, {}, ())
    data, scores = items_of([("", "0", [2.0, 1.0], [0.0]), ("", "1", [2.0, 0.5], [1.0, 0.0])], "pairs")
    assert benchmark_scores(data, scores).score == 0.5  # every right one above every wrong one


@pytest.mark.parametrize("kind", ["rewardbench", "rewardbench2", "pairs"])
def test_an_unscored_completion_leaves_its_item_out(kind: Any) -> None:
    """Catches NaN taken for wrong, in either place, and for right."""
    rows: list[Row] = [
        ("Math", "0", [1.0], [0.0]), ("Math", "1", [math.nan], [0.0]), ("Math", "2", [0.0], [math.nan]),
        ("Math", "3", [0.0], [1.0]), ("donotanswer", "4", [math.nan], [math.nan]),
    ]  # fmt: skip
    found = benchmark_scores(*items_of(rows, kind))
    assert found.subsets["Math"] == wilson(1, 2)
    assert found.unscored == 3
    assert found.to_dict()["subsets"]["donotanswer"] == {"value": None, "low": 0.0, "high": 1.0, "n": 0}
    assert found.to_dict()["score"] == (0.5 if kind == "pairs" else None)  # unknown is carried, not left out
    json.dumps(found.to_dict(), allow_nan=False)


def test_unscored_ties() -> None:
    rows = [*TIES, ("Ties", "ref:6", [math.nan], [0.0]), ("Ties", "tied:6", [3.0, 2.5], [0.0])]
    found = benchmark_scores(*items_of(rows))
    assert found.ties is not None
    assert (found.ties.ref, found.ties.tied, found.ties.preferred) == (wilson(2, 4), wilson(4, 5), wilson(2, 3))


def test_scores_that_do_not_fit() -> None:
    data, scores = items_of(TIES)
    with pytest.raises(DataError, match=r"scores of shape \(3,\) for 23 completions"):
        benchmark_scores(data, scores[:3])
    with pytest.raises(DataError, match="the score of row 4 is infinite"):
        benchmark_scores(data, np.where(np.arange(len(scores)) == 4, np.inf, scores))


def test_files_of_rewardbench(tmp_path: Path) -> None:
    rows: list[Row] = [
        ("math-prm", "30", [1.5], [1.5]),
        ("shp", "x7", [2.0], [0.0]),
        ("math-prm", "4", [1.0], [-1.0]),
    ]
    data, scores = items_of(rows, "rewardbench")
    paths = write_results(tmp_path, data, scores, "us/mean", model_type="Ensemble", chat_template="tulu")
    model = {"model": "us/mean", "model_type": "Ensemble", "chat_template": "tulu"}
    assert [str(path.relative_to(tmp_path)) for path in paths] == [
        f"{folder}/us/mean.json" for folder in ("eval-set-scores", "eval-set", "pref-sets-scores", "pref-sets")
    ]
    columns, results, prior_columns, prior = (json.loads(path.read_text()) for path in paths)
    assert results == model | {"math-prm": 0.5}
    assert prior == model | {"shp": 1.0}
    assert columns == model | {
        "text_chosen": ["p0 c0", "p2 c4"],
        "text_rejected": ["p0 c1", "p2 c5"],
        "scores_chosen": [1.5, 1.0],
        "scores_rejected": [1.5, -1.0],
        "results": [0, 1],
        "subset": ["math-prm", "math-prm"],
        "id": [30, 4],
    }
    assert (prior_columns["id"], prior_columns["results"]) == (["x7"], [1])
    assert paths[1].read_text() == json.dumps(results, indent=4, sort_keys=True)
    table = pd.read_json(paths[0], orient="records")  # as RewardBench's load_scores reads it
    assert table["model"].tolist() == ["us/mean"] * 2


def test_files_of_rewardbench_2(tmp_path: Path) -> None:
    data, scores = items_of([("Math", "9", [1.0], [0.0, 1.0, 0.0]), *TIES])
    columns, results = (json.loads(path.read_text()) for path in write_results(tmp_path, data, scores, "us/mean"))
    found = benchmark_scores(data, scores)
    assert found.ties is not None
    assert results == {
        "model": "us/mean", "model_type": "Seq. Classifier", "chat_template": "tokenizer", "Math": 0.5,
        "Ties": found.ties.score,
    }  # fmt: skip
    assert sorted(columns) == [
        "chat_template", "id", "model", "model_type", "num_correct", "results", "scores", "subset", "text",
    ]  # fmt: skip
    assert columns["id"] == ["9", *(name for _, name, *_ in TIES)]
    assert columns["num_correct"] == [1, 1, 2, 1, 3, 2, 1, 2, 1]
    assert columns["scores"][:3] == [[1.0, 0.0, 1.0, 0.0], [3.0, 1.0], [5.0, 4.0, 1.0, 0.0]]
    assert columns["text"][1] == ["p1 c4", "p1 c5"]
    assert columns["results"] == [0.5, 1, 1, 1, 0, 1, 0, 0, 0.5]
    assert len(pd.read_json(tmp_path / "eval-set-scores/us/mean.json", orient="records")) == 9


def test_messages_and_texts_given(tmp_path: Path) -> None:
    path = tmp_path / "bench.parquet"
    Dataset.from_dict(
        {"prompt": ["hi"], "chosen": ["yes"], "rejected": ["no"], "subset": ["shp"], "chosen_model": ["m"], "id": [1]}
    ).to_parquet(path)
    data = load_comparisons(path)
    columns = json.loads(write_results(tmp_path, data, [1.0, 0.0], "us/a")[0].read_text())
    assert columns["text_chosen"] == [[{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]]
    columns = json.loads(write_results(tmp_path, data, [1.0, 0.0], "us/a", texts=["<u>hi", "<u>no"])[0].read_text())
    assert (columns["text_chosen"], columns["text_rejected"]) == (["<u>hi"], ["<u>no"])


def test_nothing_is_written_that_is_not_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data, scores = items_of(TIES)
    with pytest.raises(DataError, match="1 of 23 completions are unscored"):
        write_results(tmp_path, data, np.where(scores == 5, np.nan, scores), "us/a")
    pairs = pairs_of({"": (1, 1)}, "pairs")
    with pytest.raises(DataError, match="made is not of RewardBench"):
        write_results(tmp_path, *pairs, "us/a")
    for name in ("", "/us/a", "us/../../a", "us/"):
        with pytest.raises(DataError, match="can't be a file's name"):
            write_results(tmp_path, data, scores, name)
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_results(tmp_path, data, scores, "us/a", texts=[object()] * len(scores))
    assert list(tmp_path.iterdir()) == []

    def full(path: Path, text: str) -> Path:
        raise OSError("disk full")

    monkeypatch.setattr(rewardbench, "write_text", full)
    with pytest.raises(OSError, match="disk full"):
        write_results(tmp_path, data, scores, "us/a")
    assert list(tmp_path.iterdir()) == []


def _value(found: Interval | float) -> float:
    return found.value if isinstance(found, Interval) else found
