"""Round trips of answers through every format and file, for texts and chats, and foreign exports as documented."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli.main import main
from surefoot.data.preferences import load_preferences
from surefoot.errors import ConfigError, DataError
from surefoot.feedback.answers import Answer, open_answers, read_answers
from surefoot.feedback.exchange import export_answers, import_answers
from surefoot.feedback.formats import from_argilla, from_label_studio, to_argilla, to_label_studio, to_trl
from surefoot.feedback.pairs import Pair, pair_id


def made(chat: bool) -> list[Pair]:
    def said(role: str, text: str) -> Any:
        return [{"role": role, "content": text}] if chat else text

    texts = [
        (said("user", f"Ünï {i} <b>\n"), said("assistant", f"a{i}"), said("assistant", f"b{i}")) for i in range(5)
    ]
    return [Pair(pair_id(*text), *text) for text in texts]


def given(pairs: list[Pair]) -> list[Answer]:
    time = "2026-01-02T03:04:05+00:00"
    return [
        Answer(pairs[0].id, "ann", "a", "b", 1, 2.5, time),
        Answer(pairs[0].id, "Bób", "b", "b", 2, 7.25, time),
        Answer(pairs[1].id, "ann", "tie", "a", 0, 1.0, time),
        Answer(pairs[2].id, "ann", "skip", "a", 0, 0.5, time),
        Answer(pairs[3].id, "Bób", "b", "a", 1, 3.0, time),
    ]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize(
    ("format", "name"),
    [("plain", "x.jsonl"), ("plain", "x.parquet"), ("trl", "x.jsonl"), ("trl", "x.parquet"),
     ("label_studio", "x.json"), ("argilla", "x.json")],
)  # fmt: skip
def test_answers_come_back(format: str, name: str, chat: bool, tmp_path: Path) -> None:
    pairs = made(chat)
    answers = given(pairs)
    export_answers(tmp_path / name, pairs, answers, format)
    back = import_answers(tmp_path / name, pairs, format)
    expected = answers
    if format == "trl":  # ties and skips have no place in it
        expected = [answer for answer in answers if answer.choice in ("a", "b")]
    if format == "argilla":  # no sides and no times
        expected = [replace(answer, left=None, seconds=None, time=None) for answer in answers]
    assert back == expected


@pytest.mark.parametrize("chat", [False, True])
def test_the_trl_file_is_preferences_that_every_command_reads(chat: bool, tmp_path: Path) -> None:
    pairs = made(chat)
    export_answers(tmp_path / "x.jsonl", pairs, given(pairs), "trl", strong_margin=1.5)
    table = load_preferences(tmp_path / "x.jsonl")
    assert list(table["chosen"]) == [pairs[0].a, pairs[0].b, pairs[3].b]
    assert list(table["rejected"]) == [pairs[0].b, pairs[0].a, pairs[3].a]
    assert list(table["prompt"]) == [pairs[0].prompt, pairs[0].prompt, pairs[3].prompt]
    assert (list(table["margin"]), list(table["annotator"])) == ([0.0, 1.5, 0.0], ["ann", "Bób", "Bób"])
    assert [row["chosen_side"] for row in to_trl(pairs, given(pairs))] == ["right", "left", "right"]


def test_pairs_without_answers_are_tasks_to_be_done() -> None:
    pairs = made(False)
    tasks, records = to_label_studio(pairs, []), to_argilla(pairs, [])
    assert [task["data"]["completion_b"] for task in tasks] == [pair.b for pair in pairs]
    assert all(task["annotations"] == [] for task in tasks)
    assert [record["fields"]["prompt"] for record in records] == [pair.prompt for pair in pairs]
    assert all(record["responses"] == {} for record in records)


def test_label_studios_own_export_is_read() -> None:
    """Fields as in Label Studio's documentation of its JSON format, made by that tool's users."""
    pairs = made(False)
    annotation = {
        "id": 1001, "completed_by": {"id": 1, "email": "ann@example.org"},
        "was_cancelled": False, "ground_truth": False,
        "created_at": "2021-03-09T22:16:08.728353Z", "lead_time": 4.288, "result_count": 1, "task": 1,
        "result": [{"id": "Dx_aB91ISN", "from_name": "pw", "to_name": "completion_a,completion_b", "type": "pairwise",
                    "origin": "manual", "value": {"selected": "right"}}],
    }  # fmt: skip
    tied = {**annotation, "completed_by": 7, "result": [{"id": "y", "from_name": "other", "to_name": "prompt",
            "type": "choices", "value": {"choices": ["tie"]}}]}  # fmt: skip
    skipped = {**annotation, "was_cancelled": True, "result": []}
    task = {"id": 1, "project": 83, "predictions": [], "drafts": [], "annotations": [annotation, tied, skipped],
            "data": {"pair": pairs[0].id, "prompt": "p"}}  # fmt: skip
    time = "2021-03-09T22:16:08.728353Z"
    assert from_label_studio([task], pairs) == [
        Answer(pairs[0].id, "ann@example.org", "b", None, 1, 4.288, time),
        Answer(pairs[0].id, "7", "tie", None, 0, 4.288, time),
        Answer(pairs[0].id, "ann@example.org", "skip", None, 0, 4.288, time),
    ]
    with pytest.raises(DataError, match="row 0: an annotation has neither"):
        from_label_studio([{**task, "annotations": [{**annotation, "result": []}]}], pairs)


def test_argillas_own_export_is_read() -> None:
    pairs = made(False)
    user = "2b9f4a4e-0f7c-4a8e-9a55-6b1f7c0e8a11"
    record = {"id": pairs[1].id, "fields": {"prompt": "p"}, "metadata": {}, "suggestions": {}, "vectors": {},
              "responses": {"preference": [{"value": "a", "user_id": user}],
                            "strength": [{"value": 2, "user_id": user}]},
              "_server_id": "5f0e9d55-0f7c-4a8e-9a55-6b1f7c0e8a11"}  # fmt: skip
    assert from_argilla([record], pairs) == [Answer(pairs[1].id, user, "a", None, 2)]


def test_what_isn_t_of_these_pairs_or_this_format_is_refused(tmp_path: Path) -> None:
    pairs = made(False)
    for format, name in (("plain", "x.jsonl"), ("trl", "x.jsonl"), ("label_studio", "x.json"), ("argilla", "x.json")):
        export_answers(tmp_path / name, pairs, given(pairs), format)
        with pytest.raises(DataError, match="is not among the 2 pairs"):
            import_answers(tmp_path / name, pairs[3:], format)
    with pytest.raises(ConfigError, match=r"ends in \.json, got x\.jsonl"):
        export_answers(tmp_path / "x.jsonl", pairs, [], "argilla")
    with pytest.raises(ConfigError, match="format must be one of"):
        export_answers(tmp_path / "x.jsonl", pairs, [], "csv")
    with pytest.raises(DataError, match="label some pairs first"):
        export_answers(tmp_path / "x.jsonl", pairs, [], "trl")


def test_the_command_converts_both_ways(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pairs, file = made(False), tmp_path / "pairs.jsonl"
    rows = [{"prompt": pair.prompt, "completion_a": pair.a, "completion_b": pair.b} for pair in pairs]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    with open_answers(tmp_path / "first.jsonl", pairs) as held:
        for answer in given(pairs):
            held.add(answer)

    def label(output: str, *words: str) -> int:
        return main(["label", f"--dataset_name={file}", f"--output={tmp_path / output}", *words])

    assert label("first.jsonl", f"--export_to={tmp_path / 'x.json'}", "--format=label_studio") == 0
    assert "Krippendorff's α" in capsys.readouterr().out
    assert label("second.jsonl", f"--import_from={tmp_path / 'x.json'}", "--format=label_studio") == 0
    assert read_answers(tmp_path / "second.jsonl") == given(pairs)
    assert label("second.jsonl", f"--import_from={tmp_path / 'x.json'}", "--format=label_studio") == 0
    assert "0 of 5 answers were new" in capsys.readouterr().out
    assert label("second.csv") == 1
    assert "output must end in .jsonl" in capsys.readouterr().err
