"""`surefoot score`: what is added, what is kept, what an interruption costs, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from datasets import Dataset

from surefoot.cli.main import main
from surefoot.errors import ConfigError, DataError, RowError, RunError
from surefoot.rewards.anchored import calibrate_anchored, estimate_anchored
from surefoot.rewards.anchors import AnchorStore, group_anchors
from surefoot.rewards.kinds.function import FunctionMembers, FunctionReward
from surefoot.rewards.registry import load_source
from surefoot.rewards.score_dataset import score_dataset
from surefoot.types import Anchors


def lengths(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
    """Two members that differ by the completion's length."""
    return [[float(len(str(c))), 3.0 * len(str(c))] for c in completions]


def table(rows: int = 10, group: int = 2) -> Dataset:
    return Dataset.from_dict({
        "prompt": [f"p{i // group}" for i in range(rows)],
        "completion": ["x" * (1 + i % 5) for i in range(rows)],
        "id": list(range(rows)),
    })  # fmt: skip


@pytest.mark.parametrize("suffix", ["parquet", "jsonl"])
@pytest.mark.parametrize("chunk", [3, 100])
def test_columns_are_added_and_prompts_are_not_split(tmp_path: Path, suffix: str, chunk: int) -> None:
    source, data = FunctionMembers(lengths, 2), table()
    scores = source.score(data["prompt"], data["completion"])
    anchors = group_anchors(scores, torch.arange(10) // 2, "dataset")
    source.calibrate(scores, anchors)
    path = score_dataset(source, data, tmp_path / f"out.{suffix}", chunk_rows=chunk)
    rows = (
        pq.read_table(path).to_pylist()
        if suffix == "parquet"
        else [json.loads(x) for x in path.read_text().splitlines()]
    )
    expected = source.estimate(scores, anchors)
    assert [row["anchor"] for row in rows] == ["dataset"] * 10
    assert [row["id"] for row in rows] == list(range(10))
    assert [row["reward_mean"] for row in rows] == pytest.approx(expected.mean.tolist())
    assert [row["reward_variance"] for row in rows] == pytest.approx(expected.variance.tolist())
    assert not list(tmp_path.glob("*.parts"))


def test_pairs_get_margins(tmp_path: Path) -> None:
    source = FunctionMembers(lengths, 2)
    data = Dataset.from_dict({"prompt": ["a", "b"], "chosen": ["xx", "x"], "rejected": ["x", "xxxx"]})
    (first, second) = pq.read_table(score_dataset(source, data, tmp_path / "out.parquet")).to_pylist()
    assert first["margin_mean"] == 2.0
    assert first["margin_variance"] == 2.0  # margins 1 and 3
    assert second["margin_mean"] == -6.0
    assert (first["anchor"], second["anchor"]) == ("dataset", "dataset")


def test_an_interruption_costs_one_chunk(tmp_path: Path) -> None:
    calls: list[int] = []

    def counting(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        calls.append(len(prompts))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return lengths(prompts, completions)

    data = table(12)
    with pytest.raises(KeyboardInterrupt):
        score_dataset(FunctionMembers(counting, 2), data, tmp_path / "out.parquet", chunk_rows=4)
    assert not (tmp_path / "out.parquet").exists()
    score_dataset(FunctionMembers(counting, 2), data, tmp_path / "out.parquet", chunk_rows=4)
    assert calls == [4, 4, 4, 4]  # the third was lost; the first two were not repeated
    assert pq.read_table(tmp_path / "out.parquet").num_rows == 12


def test_one_member_leaves_the_variance_empty(tmp_path: Path) -> None:
    source = FunctionMembers(lambda p, c: [[float(len(x))] for x in c], 1)
    rows = pq.read_table(score_dataset(source, table(4), tmp_path / "out.parquet")).to_pylist()
    assert [row["reward_variance"] for row in rows] == [None] * 4
    assert [row["anchor"] for row in rows] == [None] * 4
    assert [row["reward_mean"] for row in rows] == [1.0, 2.0, 3.0, 4.0]


def test_an_unscored_row_is_null_and_never_zero(tmp_path: Path) -> None:
    def some(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        return [[float("nan")] * 2 if c == "xx" else [1.0, len(c)] for c in completions]

    rows = pq.read_table(score_dataset(FunctionMembers(some, 2), table(6, 6), tmp_path / "o.parquet")).to_pylist()
    assert rows[1]["reward_mean"] is None
    assert rows[1]["reward_variance"] is None
    assert [row["anchor"] for row in rows[:3]] == ["dataset", None, "dataset"]
    assert rows[2]["reward_mean"] is not None


def test_what_is_refused(tmp_path: Path) -> None:
    source = FunctionMembers(lengths, 2)
    with pytest.raises(DataError, match="there is nothing to score"):
        score_dataset(source, table(0), tmp_path / "o.parquet")
    with pytest.raises(DataError, match="no completion among"):
        score_dataset(source, Dataset.from_dict({"prompt": ["a"], "text": ["b"]}), tmp_path / "o.parquet")
    hole = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["x", None]})
    with pytest.raises(DataError, match="the dataset: row 1: completion is None; mend or drop the row"):
        score_dataset(source, hole, tmp_path / "o.parquet")
    with pytest.raises(DataError, match="already has reward_mean"):
        score_dataset(source, table(2).add_column("reward_mean", [0.0, 0.0]), tmp_path / "o.parquet")
    with pytest.raises(ConfigError, match=r"must end in \.parquet or \.jsonl"):
        score_dataset(source, table(2), tmp_path / "o.csv")
    (tmp_path / "there.parquet").write_text("")
    with pytest.raises(RunError, match="exists"):
        score_dataset(source, table(2), tmp_path / "there.parquet")


def test_the_command(policy_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["the red cat", "a dog"]
    pairs = {"prompt": ["the "] * 40, "chosen": ["cat runs"] * 40, "rejected": ["dog and", "dog"] * 20}
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    settings = ["--held_out=0.4", "--epochs=2", "--max_length=16", f"--dataset_name={tmp_path / 'pairs.parquet'}"]
    pairs["prompt"] = [f"{w} " for w in ["the", "a", "red", "green"] * 10]
    Dataset.from_dict(pairs).to_parquet(tmp_path / "pairs.parquet")
    assert (
        main(
            [
                "reward",
                "--kind=heads",
                *settings,
                f"--model_name_or_path={policy_path}",
                f"--output_dir={tmp_path / 'run'}",
            ]
        )
        == 0
    )
    Dataset.from_dict({"prompt": words, "completion": ["sleeps", "runs"]}).to_json(tmp_path / "in.jsonl")
    command = ["score", f"--reward_source={tmp_path / 'run' / 'source'}", f"--dataset_name={tmp_path / 'in.jsonl'}"]
    assert main([*command, f"--output={tmp_path / 'out.jsonl'}"]) == 0
    (first, _) = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    source = load_source(tmp_path / "run" / "source")
    assert first["reward_mean"] == pytest.approx(float(source.score(words[:1], ["sleeps"]).mean()), rel=1e-4)
    assert main([*command, f"--output={tmp_path / 'out.jsonl'}"]) == 1
    assert "exists" in capsys.readouterr().err


def test_conversational_rows(tmp_path: Path) -> None:
    """Messages are scored as they are, kept as they are, and grouped by their prompt."""
    source = FunctionMembers(lengths, 2)

    def chat(role: str, *texts: str) -> list[list[dict[str, str]]]:
        return [[{"role": role, "content": text}] for text in texts]

    data = Dataset.from_dict({
        "prompt": chat("user", "a", "a", "b", "b"),
        "completion": chat("assistant", "x", "xxx", "xx", "xxxxx"),
    })  # fmt: skip
    scores = source.score(data["prompt"], data["completion"])
    anchors = group_anchors(scores, torch.tensor([0, 0, 1, 1]), "dataset")
    source.calibrate(scores, anchors)
    rows = pq.read_table(score_dataset(source, data, tmp_path / "out.parquet")).to_pylist()
    expected = source.estimate(scores, anchors)
    assert [row["prompt"][0]["content"] for row in rows] == ["a", "a", "b", "b"]
    assert [row["reward_mean"] for row in rows] == pytest.approx(expected.mean.tolist())
    assert [row["reward_variance"] for row in rows] == pytest.approx(expected.variance.tolist())


def raw(function: Any = lengths, members: int = 2) -> FunctionMembers:
    """A source whose variance is the plain sample variance, so that it can be worked out by hand."""
    source = FunctionMembers(function, members)
    source.variance_kind = "raw"
    source.calibrate(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))  # the calibration's anchor is (1, 2)
    return source


def stored(rows: dict[str, list[float]], completions: int = 4) -> AnchorStore:
    store = AnchorStore("functions", completions)
    for prompt, row in rows.items():
        store.add([prompt], torch.tensor([row] * completions))
    return store


def by_id(path: Path) -> list[dict[str, Any]]:
    return sorted(pq.read_table(path).to_pylist(), key=lambda row: row["id"])


def test_each_row_has_the_best_anchor_that_it_can_and_says_which(tmp_path: Path) -> None:
    """Members L and 3L. Reference anchor (1, 1) of p, own anchor (4, 12) of q, the calibration's (1, 2) of r."""
    data = Dataset.from_dict({
        "prompt": ["p", "q", "r", "q"], "completion": ["xx", "xxx", "xx", "xxxxx"], "id": [0, 1, 2, 3],
    })  # fmt: skip
    found = by_id(score_dataset(raw(), data, tmp_path / "o.parquet", anchors=stored({"p": [1.0, 1.0]})))
    assert [row["anchor"] for row in found] == ["reference", "dataset", "calibration", "dataset"]
    # centred members (1, 5); (-1, -3) and (1, 3); (1, 4): half the squared difference
    assert [row["reward_variance"] for row in found] == [8.0, 2.0, 4.5, 2.0]
    # the anchor's mean over members is given back, so that rewards read like the members' own
    assert [row["reward_mean"] for row in found] == [4.0, 6.0, 4.0, 10.0]


def test_siblings_change_nothing_under_an_anchor_file(tmp_path: Path) -> None:
    store, texts = stored({"p": [1.0, 2.5], "q": [0.5, 4.0]}), ["x", "xxxx", "xx", "xxxxxxx", "xxx"]
    data = Dataset.from_dict({"prompt": ["p", "q", "p", "p", "q"], "completion": texts, "id": list(range(5))})
    whole = by_id(score_dataset(raw(), data, tmp_path / "a.parquet", anchors=store))
    alone = by_id(score_dataset(raw(), data.select([0, 1]), tmp_path / "b.parquet", anchors=store))
    for one, other in zip(alone, whole, strict=False):
        assert one == other
    own = by_id(score_dataset(raw(), data, tmp_path / "c.parquet"))
    assert own[0]["reward_variance"] != whole[0]["reward_variance"]


def test_a_prompts_completions_may_stand_anywhere(tmp_path: Path) -> None:
    """The order of the rows changes nothing about them, and is kept in the file; also over an interruption."""
    calls: list[int] = []

    def counting(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        calls.append(len(prompts))
        if len(calls) == 4:
            raise KeyboardInterrupt
        return lengths(prompts, completions)

    data = table(12, 3)
    order = [7, 0, 11, 4, 2, 9, 1, 3, 10, 5, 8, 6]
    straight = by_id(score_dataset(raw(), data, tmp_path / "a.parquet", chunk_rows=4))
    with pytest.raises(KeyboardInterrupt):
        score_dataset(raw(counting), data.select(order), tmp_path / "b.parquet", chunk_rows=2)
    path = score_dataset(raw(counting), data.select(order), tmp_path / "b.parquet", chunk_rows=2)
    assert calls == [3, 3, 3, 3, 3]
    assert pq.read_table(path).column("id").to_pylist() == order
    assert by_id(path) == straight


def test_pairs_without_a_prompt_are_centred_alone_and_others_with_all_their_pairs(tmp_path: Path) -> None:
    def score(name: str, prompts: list[str], **rest: Any) -> list[dict[str, Any]]:
        data = Dataset.from_dict({"prompt": prompts, "chosen": ["xx", "x"], "rejected": ["x", "xxxx"]})
        return pq.read_table(score_dataset(raw(), data, tmp_path / f"{name}.parquet", **rest)).to_pylist()

    # members differ by 2L: centred by the pair's mean length 1.5 and 2.5, or by the prompt's, 2
    none, same = score("a", ["", ""]), score("b", ["p", "p"])
    assert [(row["chosen_variance"], row["rejected_variance"]) for row in none] == [(0.5, 0.5), (4.5, 4.5)]
    assert [(row["chosen_variance"], row["rejected_variance"]) for row in same] == [(0.0, 2.0), (2.0, 8.0)]
    mixed = score("c", ["p", "q"], anchors=stored({"q": [0.0, 0.0]}))
    assert [row["anchor"] for row in mixed] == ["dataset", "reference"]
    assert (mixed[1]["chosen_variance"], mixed[1]["rejected_variance"]) == (2.0, 32.0)


def test_what_binds_a_run_and_a_variance_that_takes_no_anchor(tmp_path: Path) -> None:
    data, store = table(4), stored({"p0": [0.0, 0.0]})

    calls: list[int] = []

    def broken(prompts: Any, completions: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return lengths(prompts, completions)

    with pytest.raises(KeyboardInterrupt):
        score_dataset(raw(broken), data, tmp_path / "o.parquet", anchors=store, chunk_rows=2)
    with pytest.raises(RunError, match="anchors: "):
        score_dataset(raw(), data, tmp_path / "o.parquet", chunk_rows=2)
    given = FunctionReward(lambda p, c: ([1.0] * len(p), [2.0] * len(p)))
    rows = pq.read_table(score_dataset(given, data, tmp_path / "g.parquet", anchors=store)).to_pylist()
    assert [(row["reward_variance"], row["anchor"]) for row in rows] == [(2.0, None)] * 4


def test_the_first_known_anchor_of_several_is_taken_row_by_row() -> None:
    """As one estimate for each kind alone; without a calibration, with one prior of all rows."""
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(9, 4, generator=generator, dtype=torch.float64)
    first = Anchors(torch.randn(9, 4, generator=generator, dtype=torch.float64), "reference", torch.full((9,), 4.0))
    first.rows[3:] = torch.nan
    own = group_anchors(scores, torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 3]), "dataset")
    source = FunctionMembers(lengths, 4)
    with pytest.raises(DataError, match="isn't calibrated"):
        estimate_anchored(source, scores, [first, own])  # row 8 has no anchor
    calibrate_anchored(source, scores, [first, own])
    found = estimate_anchored(source, scores, [first, own])
    assert found.anchor_kinds == ["reference"] * 3 + ["dataset"] * 5 + ["calibration"]
    for kind, rows in ((first, slice(0, 3)), (own, slice(3, 9))):
        alone = source.estimate(scores, kind)
        torch.testing.assert_close(found.variance[rows], alone.variance[rows], rtol=1e-12, atol=0)
        torch.testing.assert_close(found.mean[rows], alone.mean[rows], rtol=1e-12, atol=0)
    fresh = FunctionMembers(lengths, 4)
    fitted = FunctionMembers(lengths, 4)
    calibrate_anchored(fitted, scores[:8], [part(first), part(own)])
    torch.testing.assert_close(
        estimate_anchored(fresh, scores[:8], [part(first), part(own)]).variance,
        estimate_anchored(fitted, scores[:8], [part(first), part(own)]).variance,
    )
    assert fresh.calibration is None


def part(anchors: Anchors) -> Anchors:
    return Anchors(anchors.rows[:8], anchors.kind, anchors.count[:8], anchors.holds_own)


def test_pairs_in_any_layout_are_scored_alike(tmp_path: Path) -> None:
    """The same pairs as whole dialogues, with a prompt as text beside conversations, and with replies as text."""
    source = FunctionMembers(lengths, 2)

    def said(role: str, text: str) -> dict[str, str]:
        return {"role": role, "content": text}

    def scores(name: str, rows: list[dict[str, Any]]) -> list[float]:
        path = score_dataset(source, Dataset.from_list(rows), tmp_path / f"{name}.parquet")
        return [row["margin_variance"] for row in pq.read_table(path).to_pylist()]

    replies = [("yes, of course", "no"), ("no", "yes, sir")]
    chats = [[[said("user", "Q?"), said("assistant", text)] for text in pair] for pair in replies]
    explicit = [{"prompt": a[:1], "chosen": a[1:], "rejected": b[1:]} for a, b in chats]
    right = scores("a", explicit)
    assert scores("b", [{"chosen": a, "rejected": b} for a, b in chats]) == right
    assert scores("c", [{"prompt": "Q?", "chosen": a, "rejected": b} for a, b in chats]) == right
    texts = [{"prompt": [said("user", "Q?")], "chosen": a, "rejected": b} for a, b in replies]
    assert scores("d", texts) == right


def test_what_a_source_or_a_reader_refuses_names_file_and_row(tmp_path: Path) -> None:
    def picky(prompts: Sequence[Any], completions: Sequence[Any]) -> list[list[float]]:
        if "p1" in prompts:
            raise RowError(prompts.index("p1"), "no system role")
        return lengths(prompts, completions)

    data = table(8)
    with pytest.raises(DataError, match=r"my.jsonl: row 2: no system role"):
        score_dataset(FunctionMembers(picky, 2), data, tmp_path / "a.parquet", name="my.jsonl", chunk_rows=2)
    said = [{"role": "assistant", "content": "a"}]
    mixed = Dataset.from_list([{"prompt": "p", "completion": "a"}, {"prompt": "p", "completion": said}],
                              on_mixed_types="use_json")  # fmt: skip
    with pytest.raises(DataError, match=r"my.jsonl: row 1 holds messages, but the rows before it hold text"):
        score_dataset(FunctionMembers(lengths, 2), mixed, tmp_path / "b.parquet", name="my.jsonl")
