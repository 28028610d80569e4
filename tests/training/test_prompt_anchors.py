"""Anchors of the trainers: those of the reference whatever the policy has become, made once, and nobody notices."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator

from surefoot.errors import ConfigError, DataError
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.kinds.function import FunctionMembers
from surefoot.training.prompt_anchors import PromptAnchors


class Writer:
    """Writes completions "word word …", as many words as the call's number, and remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[list[Any]] = []
        self.seeds: list[int] = []

    def __call__(self, prompts: Any, seed: int) -> list[str]:
        self.asked.append(list(prompts))
        self.seeds.append(seed)
        return [f"{len(self.asked)} {i}" for i in range(len(prompts))]


def numbers(prompts: Any, completions: Any) -> list[list[float]]:
    """Two members: the completion's two numbers; -1 is unscored."""
    rows = [[float(number) for number in text.split()] for text in completions]
    return [[math.nan if number < 0 else number for number in row] for row in rows]


def alone(kind: Any = "reference", completions: int = 2, **changes: Any) -> tuple[PromptAnchors, Writer]:
    source, writer = FunctionMembers(numbers, 2), Writer()
    store = AnchorStore(source.name, completions)
    return PromptAnchors(source, store, Accelerator(cpu=True), writer, 0, kind, **changes), writer


def rows_of(*prompts: Any) -> list[dict[str, Any]]:
    return [{"prompt": prompt} for prompt in prompts]


def test_a_new_prompt_is_drawn_once() -> None:
    anchors, writer = alone()
    first = anchors.of(rows_of("a", "a", "b"))
    assert writer.asked == [["a", "a", "b", "b"]]
    # Completions "1 0", "1 1" of a and "1 2", "1 3" of b.
    assert first.rows.tolist() == [[1.0, 0.5], [1.0, 0.5], [1.0, 2.5]]
    assert (first.kind, first.count.tolist(), first.holds_own) == ("reference", [2.0] * 3, False)
    second = anchors.of(rows_of("b", "c"))
    assert writer.asked[1:] == [["c", "c"]]
    assert second.rows.tolist() == [[1.0, 2.5], [2.0, 0.5]]
    anchors.of(rows_of("c", "b", "a"))
    assert len(writer.asked) == 2


def test_seeds_are_of_the_prompts_that_are_drawn_together_and_of_the_run() -> None:
    def seeds(seed: int, *batches: tuple[str, ...]) -> list[int]:
        anchors, writer = alone()
        anchors._seed = seed
        for batch in batches:
            anchors.of(rows_of(*batch))
        return writer.seeds

    first = seeds(0, ("a", "b"), ("c",))
    assert seeds(0, ("c",), ("b", "a"), ("a", "b", "c")) != first
    assert seeds(0, ("c",), ("a", "b")) == first[::-1]  # whatever was drawn before
    assert seeds(1, ("a", "b"), ("c",)) != first
    assert len({*first, *seeds(1, ("a", "b"), ("c",))}) == 4


def test_messages_are_known_by_their_content() -> None:
    anchors, writer = alone()
    chat = [{"role": "user", "content": "a"}]
    anchors.of(rows_of(chat))
    anchors.of(rows_of([{"content": "a", "role": "user"}], "a"))
    assert writer.asked == [[chat, chat], ["a", "a"]]


def test_what_is_prepared_is_not_drawn(tmp_path: Path) -> None:
    prepared = AnchorStore("function", 3)
    prepared.add(["a"], torch.tensor([[7.0, 1.0], [7.0, 2.0], [7.0, 6.0]]))
    anchors, writer = alone(prepared=AnchorStore.load(prepared.save(tmp_path / "file"), FunctionMembers(numbers, 2)))
    found = anchors.of(rows_of("a", "b"))
    assert writer.asked == [["b", "b"]]
    assert found.rows.tolist() == [[7.0, 3.0], [1.0, 0.5]]
    assert found.count.tolist() == [3.0, 2.0]
    assert len(anchors.store) == 1  # the checkpoint holds what this run made, not a copy of the file


def test_unscored_reference_completions_do_not_count() -> None:
    anchors, _ = alone()
    replies = iter([["3 -1", "5 4"], ["-1 -1", "-1 -1"]])
    anchors._sample = lambda prompts, seed: next(replies)
    found = torch.cat([anchors.of(rows_of(prompt)).rows for prompt in "ab"])
    assert found[0].tolist() == [4.0, 4.0]
    assert bool(found[1].isnan().all())


def test_the_data_s_own_completions() -> None:
    anchors, writer = alone("dataset", 1)
    rows = [
        {"prompt": "a", "chosen": "1 2", "rejected": "3 8"},
        {"prompt": "b", "completion": "9 9", "chosen": None},
        {"prompt": "c", "chosen": "4 -1", "rejected": "6 1"},
    ]
    found = anchors.of(rows)
    assert writer.asked == []
    assert found.rows.tolist() == [[2.0, 5.0], [9.0, 9.0], [5.0, 1.0]]
    assert (found.kind, found.count.tolist()) == ("dataset", [2.0, 1.0, 2.0])
    again = anchors.of([rows[0] | {"chosen": "0 0"}])  # they are fixed by the prompt's first row
    assert again.rows.tolist() == [[2.0, 5.0]]
    with pytest.raises(DataError, match=r"needs a completion, or chosen and rejected.*has answer, prompt"):
        anchors.of([{"prompt": "d", "answer": "1 1"}])


@pytest.mark.parametrize("row", [{"image": "a cat"}, {"images": ["a cat"]}])
def test_images_are_refused(row: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="by the prompt's text"):
        alone()[0].of([{"prompt": "a"} | row])
    assert len(alone()[0].of([{"prompt": "a", "image": None, "images": []}])) == 1


@pytest.mark.parametrize(("rows", "processes"), [(8, 2), (8, 3), (1, 4), (5, 4), (7, 1)])
def test_processes_share_the_rows_in_order(rows: int, processes: int) -> None:
    anchors, _ = alone()

    class Process:
        num_processes, process_index = processes, 0

    shares = []
    for index in range(processes):
        process = Process()
        process.process_index = index
        anchors.accelerator = process  # type: ignore[assignment]
        shares.append(anchors._share(rows))
    assert len({len(share) for share in shares}) == 1  # or the shorter one's gather waits for ever
    together = [i for share in shares for i in share]
    assert together[:rows] == list(range(rows))
    assert len(together) - rows < processes
