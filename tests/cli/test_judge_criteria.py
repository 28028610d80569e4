"""`surefoot judge try` of criteria: what is printed, for a config and a saved source; whose completions are taken."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from surefoot.cli.main import main
from tests.cli.test_judge import Shown, shown
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, rated

__all__ = ["shown"]

CRITERIA = [
    {"text": "Names cold [bold]water[/bold].", "weight": 3},
    {"text": "The number is right.", "kind": "exact_match", "answer": "7", "extract": "last_number", "required": True},
]


def config(folder: Path, endpoint: str, criteria: list[dict[str, object]] = CRITERIA, *lines: str) -> str:
    """A config of `surefoot reward`, its criteria, and five pairs of which two are held out."""
    rows = [{"prompt": f"p{i}", "criteria": json.dumps(criteria)} for i in range(5)]
    (folder / "criteria.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [{"prompt": f"p{i}", "chosen": f"cold water {i}, 7", "rejected": f"hot {i}, 8"} for i in range(5)]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    common = ["kind: criteria", "model_name_or_path: m", f"endpoint: {endpoint}", "samples: 2", "held_out: 0.4"]
    common += [f"criteria: {folder / 'criteria.jsonl'}", f"dataset_name: {folder / 'pairs.jsonl'}"]
    common += ["structured: none", "retries: 1", "backoff_s: 0.01", f"output_dir: {folder / 'run'}"]
    (folder / "criteria.yaml").write_text("\n".join([*common, *lines]) + "\n")
    return str(folder / "criteria.yaml")


def honest(request: Request) -> Act:
    return rated(int("water" in request.texts["ANSWER"]))


def test_the_held_out_pairs_of_the_config(tmp_path: Path, shown: Shown) -> None:
    with JudgeServer(honest) as server:
        words = ["--config", config(tmp_path, server.endpoint), "--json", str(tmp_path / "t.json")]
        assert main(["judge", "try", *words]) == 0
        assert len(server.requests) == 4  # a required verifier decides about the rejected ones
        sent = server.requests[0].body["messages"]
    out, err = shown()
    assert err == ""
    assert "completions: 4, calls: up to 8\n" in out
    assert "===== completion 2 of 4: held-out pair 0, rejected =====" in out
    assert "--- completion 1, criterion 1 ---\nsystem:\n" in out
    assert "\n".join(f"  | {line}" for line in sent[0]["content"].split("\n")) in out
    assert "sample 1: read as 1 (" in out
    assert "criterion 1, weight 3, “Names cold [bold]water[/bold].”: 1 (of 1, 1)\n" in out
    assert "criterion 2, weight 1, required, “The number is right.”: exact_match: 1\n" in out
    assert "criterion 1, weight 3, “Names cold [bold]water[/bold].”: not asked, since a required verifier" in out
    assert "reward: 1.00, variance: 0.00" in out
    assert "weighted criteria, 1 at most" in out
    assert "tokens: 400 of prompts, 20 of replies" in out
    assert "variance: of one reply, raw\n" in out
    assert "- 4 of 4 replies could be read (100%)." in out
    assert "- 6 of 6 criteria have an answer." in out
    told = json.loads((tmp_path / "t.json").read_text())
    assert [item["mean"] for item in told["completions"]] == [1, 0, 1, 0]
    assert told["completions"][1]["decided"] is True
    assert told["completions"][0]["criteria"][1]["kind"] == "exact_match"
    assert told["completions"][0]["calls"][0]["question"] == "criterion 1"
    assert not (tmp_path / "home").exists()
    assert not (tmp_path / "run").exists()


def test_a_dataset_of_the_command_line(tmp_path: Path, shown: Shown) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "p4", "completion": "cold water, 7"}\n')
    with JudgeServer(honest) as server:
        words = ["judge", "try", "--config", config(tmp_path, server.endpoint), "--asking", "together"]
        assert main([*words, "--dataset_name", str(tmp_path / "d.jsonl"), "--max_tokens", "64"]) == 1
        out, _ = shown()
        assert "===== completion 1 of 1: row 0, completion =====\n--- completion 1, all criteria ---" in out
        assert "sample 1: not read: no rating in the reply" in out  # the server rates as if it were asked for one
        (tmp_path / "d.jsonl").write_text('{"prompt": "else", "completion": "x"}\n')
        assert main([*words, "--dataset_name", str(tmp_path / "d.jsonl")]) == 1
    assert "has no criteria for the prompt 'else'" in shown()[1]


def test_a_saved_source(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the pairs that it held out, and no settings; without a record beside it, completions must be given."""
    with JudgeServer(honest) as server:
        monkeypatch.delenv("SUREFOOT_JUDGE_ENDPOINT", raising=False)
        assert main(["reward", "--config", config(tmp_path, server.endpoint)]) == 0
        shown()
        words = ["judge", "try", "--reward_source", str(tmp_path / "run" / "source")]
        words += ["--judge_endpoint", server.endpoint]
        assert main([*words, "--n", "1"]) == 0
        out, _ = shown()
        assert "completions: 1, calls: up to 2\n" in out
        assert "held-out pair 0, chosen" in out
        assert main([*words, "--samples", "3"]) == 1
        assert "samples: a saved judge has its own settings" in shown()[1]
        (tmp_path / "run" / "record.json").unlink()
        assert main(words) == 1
    assert "criteria are those of a prompt: give completions of their prompts, --dataset_name" in shown()[1]


def test_verifiers_alone(tmp_path: Path, shown: Shown) -> None:
    assert main(["judge", "try", "--config", config(tmp_path, "http://127.0.0.1:9/v1", CRITERIA[1:])]) == 0
    out, err = shown()
    assert err == ""
    assert "completions: 4, and verifiers alone decide: no judge is asked" in out
    assert "  | p" in out
    assert ", 7\ncriterion 1, weight 1, required, “The number is right.”: exact_match: 1\n" in out
    assert "request, beside its messages" not in out
    assert "replies could be read" not in out


def test_settings_of_the_other_kind(tmp_path: Path, shown: Shown) -> None:
    assert main(["judge", "try", "--config", config(tmp_path, "http://127.0.0.1:9/v1"), "--rubric", "overall"]) == 1
    assert "kind: criteria has no rubric (kind: judge)" in shown()[1]
    assert main(["judge", "try", "--model_name_or_path", "m", "--asking", "each"]) == 1
    assert "kind: judge has no asking (kind: criteria)" in shown()[1]
