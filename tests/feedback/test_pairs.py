"""Candidate pairs: each once, of one prompt, never a text with itself; sampled uniformly where there are too many."""

import itertools
import json
from pathlib import Path

import pytest
import torch

from surefoot.errors import DataError
from surefoot.feedback.pairs import candidate_pairs, distinct, pair_id, prompt_numbers, read_pairs


def test_all_pairs_of_each_prompt_once_and_no_text_with_itself() -> None:
    texts = ["a", "b", "a", "c", "d", "e", "alone", "x", "x"]
    prompts = torch.tensor([0, 0, 0, 0, 1, 1, 2, 3, 3])
    pairs, total = candidate_pairs(prompts, texts, most=100, seed=0)
    assert total == len(pairs) == 4
    assert {frozenset(pair) for pair in pairs.tolist()} == {frozenset(p) for p in [(0, 1), (0, 3), (1, 3), (4, 5)]}


@pytest.mark.parametrize("sizes", [(2,), (5, 1, 7), (3, 3, 3, 20)])
def test_pairs_are_those_of_itertools(sizes: tuple[int, ...]) -> None:
    prompts = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    pairs, total = candidate_pairs(prompts, [str(i) for i in range(len(prompts))], most=10_000, seed=0)
    expected = {(i, j) for i, j in itertools.combinations(range(len(prompts)), 2) if prompts[i] == prompts[j]}
    assert {tuple(sorted(pair)) for pair in pairs.tolist()} == expected
    assert total == len(pairs) == len(expected)


def test_too_many_pairs_are_sampled_uniformly() -> None:
    prompts = torch.tensor([0] * 4 + [1] * 3)  # 6 + 3 pairs
    counts: dict[tuple[int, ...], int] = {}
    for seed in range(900):
        pairs, total = candidate_pairs(prompts, list("abcdefg"), most=3, seed=seed)
        assert (total, len({tuple(pair) for pair in pairs.tolist()})) == (9, 3)
        for pair in pairs.tolist():
            counts[tuple(pair)] = counts.get(tuple(pair), 0) + 1
    # A share of 1/3 of 900 draws has a standard error of 14.
    assert all(abs(count - 300) < 57 for count in counts.values())
    assert len(counts) == 9


def test_ids_don_t_depend_on_which_completion_comes_first() -> None:
    assert pair_id("p", "a", "b") == pair_id("p", "b", "a")
    assert len({pair_id("p", "a", "b"), pair_id("q", "a", "b"), pair_id("p", "a", "c")}) == 3


def test_prompts_are_numbered_by_content() -> None:
    said = [{"role": "user", "content": "hi"}]
    assert prompt_numbers([said, [{"role": "user", "content": "hi"}], []]).tolist() == [0, 0, 1]


def test_pairs_are_read_from_selections_and_preferences(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    rows = [{"prompt": "p", "completion_a": "x", "completion_b": "y"},
            {"prompt": "p", "completion_a": "v", "completion_b": "w"},
            {"prompt": "p", "completion_a": "y", "completion_b": "x"}]  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert [(pair.a, pair.b) for pair in distinct(read_pairs(file))] == [("x", "y"), ("v", "w")]
    said = [{"role": "user", "content": "q"}]
    file.write_text(json.dumps({
        "chosen": [*said, {"role": "assistant", "content": "x"}],
        "rejected": [*said, {"role": "assistant", "content": "y"}],
    }) + "\n")  # fmt: skip
    (pair,) = read_pairs(file)
    assert (pair.prompt, pair.a) == (said, [{"role": "assistant", "content": "x"}])


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"prompt": "p", "completion_a": "x", "completion_b": "x"}, "row 0: both completions are the same"),
        ({"prompt": "p", "completion_a": "x", "completion_b": ""}, "row 0: rejected is empty"),
        ({"prompt": "p", "completion": "x"}, "neither completion_a"),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, row: dict[str, str], words: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=words):
        read_pairs(file)


def test_no_pairs_at_all_is_an_error() -> None:
    with pytest.raises(DataError, match="two different completions"):
        candidate_pairs(torch.tensor([0, 0, 1]), ["a", "a", "b"], 10, 0)


def test_empty_completions_are_in_no_pair() -> None:
    """A policy may end at once; the pair would have a side that nobody can read, and that `label` refuses."""
    pairs, total = candidate_pairs(torch.tensor([0, 0, 0, 0]), ["x", "", "y", " "], 10, 0)
    assert (pairs.tolist(), total) == ([[0, 2]], 1)
