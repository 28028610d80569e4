"""`surefoot online` as a user runs it: simulated labels, people, a judge; again, interrupted, and refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from surefoot.cli.main import main
from surefoot.errors import RunError
from surefoot.feedback.answers import Answer, open_answers
from surefoot.feedback.online import run_online
from surefoot.feedback.online_settings import OnlineArguments
from surefoot.feedback.pairs import read_pairs
from surefoot.files import read_json
from surefoot.rewards.registry import load_source
from tests.models import WORDS, save_policy

SOURCES = Path(__file__).parents[1] / "saved_before" / "sources"
GOLD = "def worth(prompts, completions):\n    return [2.0 * c.count('red') - c.count('cat') for c in completions]\n"


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Settings of a run, with the files that they name."""
    place = tmp_path_factory.mktemp("online")
    texts = [f"{WORDS[i % 10]} {WORDS[(3 * i + 1) % 10]} and" for i in range(7)]
    rows = [{"prompt": f"the {word} ", "completion": text} for word in WORDS[:6] for text in texts]
    pairs = [{"prompt": f"a {WORDS[i % 10]} ", "chosen": "red and", "rejected": f"{WORDS[i % 7 + 3]} and"}
             for i in range(30)]  # fmt: skip
    for name, held in (("completions", rows), ("eval", pairs)):
        (place / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in held))
    (place / "gold.py").write_text(GOLD)
    return {
        "completions": str(place / "completions.jsonl"),
        "eval_dataset": str(place / "eval.jsonl"),
        "reward": {"kind": "linear", "model_name_or_path": str(save_policy(place / "policy")), "layer": 0},
        "labels": "gold",
        "gold": f"{place / 'gold.py'}:worth",
        "rule": "expected_information",
        "count": 20,
        "rounds": 3,
    }


def run(settings: dict[str, Any], output: Path, **changes: Any) -> int:
    """The command, with its settings in a file."""
    held = {name: value for name, value in (settings | changes).items() if value is not None}
    output.parent.mkdir(parents=True, exist_ok=True)
    config = output.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(held | {"output_dir": str(output)}))
    return main(["online", "--config", str(config)])


def rows_of(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_rounds_of_simulated_labels(given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Three rounds ask sixty different pairs; each trains on all labels so far, the first pairs are random."""
    output = tmp_path / "out"
    assert run(given, output) == 0
    online, record = read_json(output / "online.json"), read_json(output / "record.json")
    folders = [output / row["trained"] for row in online["rounds"]]
    asked = [pair.id for folder in folders for pair in read_pairs(folder.parent / "selected" / "pairs.jsonl")]
    assert len(set(asked)) == len(asked) == 60
    assert [row["labels"] for row in online["rounds"]] == [20, 40, 60]
    assert [row["rule"] for row in online["rounds"]] == ["random", "expected_information", "expected_information"]
    assert [len(rows_of(folder / "preferences.jsonl")) for folder in folders] == [20, 40, 60]
    assert record["metrics"]["rounds"] == online["rounds"]
    last = online["rounds"][-1]
    assert last["accuracy"]["value"] > 0.8
    assert last["accuracy"]["n"] == 30
    assert last["log_likelihood"] > -0.65
    assert 0 < last["margin_variance"] < 100
    assert last["reliability"] == 1
    assert last["flip_rate"] is not None
    assert load_source(online["source"], "cpu").figures["flip_rate"] == last["flip_rate"]  # type: ignore[attr-defined]
    assert "3 of 3 rounds are finished" in capsys.readouterr().out
    page = (output / "online.html").read_text()
    assert "expected-information" in page
    assert "<script" not in page


def test_the_same_again_changes_nothing_and_another_is_refused(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    assert run(given, output, rounds=1) == 0
    before = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.suffix != ".html"}
    assert run(given, output, rounds=1) == 0
    after = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.is_file() and path.suffix != ".html"}
    assert after == before
    assert run(given, output, rounds=1, seed=1) == 1
    assert "holds another run" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["round 1: held-out pairs", "round 2: scores", "round 2: head", "rounds"])
def test_an_interrupted_run_ends_as_if_it_had_not_been(given: dict[str, Any], stage: str, tmp_path: Path) -> None:
    args = OnlineArguments(**given, output_dir=str(tmp_path / "cut"))
    whole = OnlineArguments(**given, output_dir=str(tmp_path / "whole"))

    class Cut(Exception):
        pass

    def stop(what: str, done: float, total: float) -> None:
        if what == stage and (what != "rounds" or done == 2):
            raise Cut

    with pytest.raises(Cut):
        run_online(args, given, stop)
    assert run_online(args, given)["rounds"] == run_online(whole, given)["rounds"]


def test_people_are_waited_for(given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Two annotators who agree, disagree, tie and skip; their shares are what the reward is trained on."""
    output, changes = tmp_path / "out", {"labels": "page", "gold": None, "count": 4, "rounds": 1, "annotators": 2}
    assert run(given, output, **changes) == 0
    waiting = read_json(output / "online.json")["waiting"]
    said = " ".join(capsys.readouterr().out.split())
    assert f"surefoot label --dataset_name {waiting['pairs']} --output {waiting['answers']}" in said
    assert (waiting["round"], waiting["missing"]) == (1, 8)
    assert not (output / "record.json").exists()
    pairs = read_pairs(waiting["pairs"])
    choices: list[tuple[Any, Any]] = [("a", "a"), ("a", "b"), ("tie", "b"), ("skip", "skip")]
    with open_answers(waiting["answers"], pairs) as file:
        for pair, (first, _) in zip(pairs, choices, strict=True):
            file.add(Answer(pair.id, "Ann", first, strength=1 if first in ("a", "b") else 0))
    assert run(given, output, **changes) == 0
    assert read_json(output / "online.json")["waiting"]["missing"] == 4
    with open_answers(waiting["answers"], pairs) as file:
        for pair, (_, second) in zip(pairs, choices, strict=True):
            file.add(Answer(pair.id, "Bo", second, strength=1 if second in ("a", "b") else 0))
    assert run(given, output, **changes) == 0
    (entry,) = read_json(output / "online.json")["rounds"]
    rows = rows_of(output / entry["trained"] / "preferences.jsonl")
    assert [(row["chosen_share"], row["answers"]) for row in rows] == [(1.0, 2), (0.5, 2), (0.75, 2)]
    assert rows[2]["chosen"] == pairs[2].b
    assert (entry["asked"], entry["labels"]) == (4, 3)
    assert entry["answers"]["pairs_with_two"] == 3


def test_more_answers_train_the_round_anew(
    given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A second annotator goes on after the reward was trained; answers to other pairs are refused."""
    output, changes = tmp_path / "out", {"labels": "page", "gold": None, "count": 3, "rounds": 2}
    assert run(given, output, **changes) == 0
    waiting = read_json(output / "online.json")["waiting"]
    pairs = read_pairs(waiting["pairs"])
    for annotator, choice, share in (("Ann", "a", 1.0), ("Bo", "b", 0.5)):
        with open_answers(waiting["answers"], pairs) as file:
            for pair in pairs:
                file.add(Answer(pair.id, annotator, choice, strength=1))  # type: ignore[arg-type]
        assert run(given, output, **changes) == 0
        online = read_json(output / "online.json")
        rows = rows_of(output / online["rounds"][0]["trained"] / "preferences.jsonl")
        assert [row["chosen_share"] for row in rows] == [share] * 3
        assert online["waiting"]["round"] == 2
    later = Path(online["waiting"]["answers"])
    later.write_bytes(Path(waiting["answers"]).read_bytes())
    assert run(given, output, **changes) == 1
    assert "holds answers on other pairs than the round's" in capsys.readouterr().err


def test_changed_completions_begin_the_round_anew(given: dict[str, Any], tmp_path: Path) -> None:
    """A round's address is of the content: answers to pairs of other texts are never taken for its own."""
    file = tmp_path / "completions.jsonl"
    file.write_text(Path(given["completions"]).read_text())
    changes = {"completions": str(file), "labels": "page", "gold": None}
    assert run(given, tmp_path / "out", **changes) == 0
    first = read_json(tmp_path / "out" / "online.json")["waiting"]["pairs"]
    assert run(given, tmp_path / "out", **changes) == 0
    assert read_json(tmp_path / "out" / "online.json")["waiting"]["pairs"] == first
    file.write_text(file.read_text() + json.dumps({"prompt": "the red ", "completion": "sleeps"}) + "\n")
    assert run(given, tmp_path / "out", **changes) == 0
    assert read_json(tmp_path / "out" / "online.json")["waiting"]["pairs"] != first


def test_a_judge_rates_and_start_labels_count(given: dict[str, Any], tmp_path: Path) -> None:
    """Ratings within the tie margin are ties; the reward of the labels to start from chooses the first pairs."""
    start = tmp_path / "start.jsonl"
    start.write_text(json.dumps({"prompt": "the red ", "chosen": "red cat and", "rejected": "dog dog and"}) + "\n")
    changes = {"labels": "judge", "gold": None, "judge": str(SOURCES / "linear"), "tie_margin": 1e9, "rounds": 1}
    assert run(given, tmp_path / "out", start_dataset=str(start), **changes) == 0
    (entry,) = read_json(tmp_path / "out" / "online.json")["rounds"]
    rows = rows_of(tmp_path / "out" / entry["trained"] / "preferences.jsonl")
    assert [row["chosen_share"] for row in rows] == [1.0] + [0.5] * 20
    assert (entry["rule"], entry["start_pairs"], entry["labels"]) == ("expected_information", 1, 20)
    assert entry["answers"]["choices"] == {"tie": 20}


def test_another_kind_is_trained_on_preferences_without_ties(given: dict[str, Any], tmp_path: Path) -> None:
    reward = {**given["reward"], "kind": "heads", "members": 6, "epochs": 2}
    assert run(given, tmp_path / "out", reward=reward, rounds=2, gold_temperature=0.0) == 0
    online = read_json(tmp_path / "out" / "online.json")
    entry = online["rounds"][-1]
    rows = rows_of(tmp_path / "out" / entry["trained"] / "preferences.jsonl")
    assert set(rows[0]) == {"prompt", "chosen", "rejected"}
    ties = sum(row["answers"]["choices"].get("tie", 0) for row in online["rounds"])
    assert ties > 0
    assert len(rows) == 40 - ties
    assert entry["flip_rate"] is None
    assert entry["reliability"] is not None


def test_heads_go_on_from_those_of_the_round_before(given: dict[str, Any], tmp_path: Path) -> None:
    """With hardly a step they stay the first round's, with the centre of its features, though there are more pairs."""
    reward = {**given["reward"], "kind": "heads", "members": 3, "epochs": 1, "learning_rate": 1e-12}
    assert run(given, tmp_path / "out", reward=reward, rounds=2) == 0
    rounds = read_json(tmp_path / "out" / "online.json")["rounds"]
    first, second = (
        load_file(tmp_path / "out" / entry["trained"] / "reward" / "source" / "heads.safetensors") for entry in rounds
    )
    assert rounds[1]["labels"] > rounds[0]["labels"]
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=0, atol=1e-8)


@pytest.mark.parametrize(("kind", "rows"), [("linear", 3), ("heads", 2)])
def test_an_earlier_runs_labels_start_another(given: dict[str, Any], kind: str, rows: int, tmp_path: Path) -> None:
    """Its shares and ties are kept for `linear`; other kinds have no use for a tie."""
    start = tmp_path / "start.jsonl"
    texts = {"prompt": "the red ", "chosen": "red cat and", "rejected": "dog dog and"}
    shares = [(1.0, 2), (0.5, 1), (0.75, 4)]
    held = [
        {**texts, "rejected": f"{WORDS[i]} dog", "chosen_share": s, "answers": n} for i, (s, n) in enumerate(shares)
    ]
    start.write_text("".join(json.dumps(row) + "\n" for row in held))
    reward = {**given["reward"], "kind": kind, **({} if kind == "linear" else {"members": 3, "epochs": 1})}
    changes = {"reward": reward, "rounds": 1, "rule": "random", "start_dataset": str(start), "gold_temperature": 1.0}
    assert run(given, tmp_path / "out", **changes) == 0
    (folder,) = (tmp_path / "out" / "start").iterdir()
    found = rows_of(folder / "preferences.jsonl")
    assert len(found) == rows
    if kind == "linear":
        assert [(row["chosen_share"], row["answers"]) for row in found] == shares


@pytest.mark.slow
def test_the_policy_is_aligned_between_rounds(given: dict[str, Any], tmp_path: Path) -> None:
    """The second round's completions are drawn from the policy that the first round's reward trained."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"the {word} "}) + "\n" for word in WORDS[:4]))
    align = {"dataset_name": str(prompts), "max_steps": 1, "per_device_train_batch_size": 8, "num_generations": 4,
             "max_completion_length": 4, "use_cpu": True, "bf16": False, "report_to": "none",
             "calibration_prompts": 4}  # fmt: skip
    (tmp_path / "rloo.yaml").write_text(yaml.safe_dump(align))
    changes = {"completions": None, "model_name_or_path": given["reward"]["model_name_or_path"], "n": 8,
               "dataset_name": str(prompts), "max_completion_length": 4, "count": 10, "rounds": 2,
               "align_config": str(tmp_path / "rloo.yaml")}  # fmt: skip
    assert run(given, tmp_path / "out", **changes) == 0
    first, second = read_json(tmp_path / "out" / "online.json")["rounds"]
    drawn = list((tmp_path / "out" / "completions").iterdir())
    assert len(drawn) == 2
    texts = [rows_of(folder / "candidates.jsonl") for folder in drawn]
    assert texts[0] != texts[1]
    for row in (first, second):
        assert (tmp_path / "out" / row["trained"] / "policy" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"labels": "gold", "gold": None}, "give gold with labels: gold"),
        ({"labels": "page"}, "give gold with labels: gold, and only then"),
        ({"labels": "pages"}, "did you mean 'page'?"),
        ({"rule": "d_optimall"}, "did you mean 'd_optimal'?"),
        ({"count": 0}, "count must be at least 1"),
        ({"gold_flips": 0.7}, "gold_flips must be between 0 and 0.5"),
        ({"completions": None}, "give either model_name_or_path and dataset_name"),
        ({"align_config": "rloo.yaml"}, "align_config changes the policy"),
        (
            {"align_config": "rloo.yaml", "completions": None, "model_name_or_path": "m", "dataset_name": "d"},
            "align_config rloo.yaml does not exist",
        ),
        ({"gold": "nowhere.py:worth"}, "can't load the gold function"),
        ({"labels": "judge", "gold": None, "judge": "tests"}, "is not a reward source"),
        ({"reward": {"kind": "linear"}}, "reward is missing"),
        ({"reward": {"model_name_or_path": "x", "output_dir": "y"}}, "reward can't have output_dir"),
        ({"reward": {"model_name_or_path": "x", "members": 5}}, "kind: linear has no members"),
        ({"count": 1000}, "between 1 and the 126 candidate pairs"),
    ],
)
def test_what_can_t_be_done_is_refused_in_one_line(
    changes: dict[str, Any], words: str, given: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(given, tmp_path / "out", **changes) == 1
    assert words in capsys.readouterr().err


def test_one_process_at_a_time(given: dict[str, Any], tmp_path: Path) -> None:
    args = OnlineArguments(**given, output_dir=str(tmp_path / "out"))

    def again(what: str, done: float, total: float) -> None:
        with pytest.raises(RunError, match="is in use by"):
            run_online(args, given)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_online(args, given, again)
