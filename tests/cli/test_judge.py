"""`surefoot judge try`: what is printed and written, for a config and a saved judge, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

import surefoot
from surefoot.cli.main import main
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.mixed import MixedSources
from tests.rewards.kinds.judge.servers import Act, JudgeServer, Request, rated, reply

Shown = Callable[[], tuple[str, str]]


@pytest.fixture
def shown(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Shown:
    """What was printed since the last call: (output, errors). The user's cache lies in the test's folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "100")

    def read() -> tuple[str, str]:
        captured = capsys.readouterr()
        return captured.out, captured.err

    return read


def config(folder: Path, server: JudgeServer | str, *lines: str) -> str:
    """A config of `surefoot reward`, with settings that a trial has no use for."""
    endpoint = server if isinstance(server, str) else server.endpoint
    common = ["kind: judge", "model_name_or_path: m", f"endpoint: {endpoint}", "rubric: overall", "wordings: 2"]
    common += ["samples: 2", "retries: 1", "backoff_s: 0.01", "dataset_name: nowhere.parquet", "output_dir: runs/x"]
    common += ["dataset_test_split: test", "bad_rows: drop", "seed: 3"]
    path = folder / "judge.yaml"
    path.write_text("\n".join([*common, *lines]) + "\n")
    return str(path)


def by_length(request: Request) -> Act:
    """1 for a short answer and 8 for a long one; the second sample one more."""
    return rated((8 if len(request.texts["ANSWER"]) > 70 else 1) + request.sample % 2)


def test_everything_is_shown(tmp_path: Path, shown: Shown) -> None:
    with JudgeServer(by_length) as server:
        assert main(["judge", "try", "--config", config(tmp_path, server)]) == 0
        sent = server.requests[0].body["messages"]
    out, err = shown()
    assert err == ""
    assert out.startswith(f"'m on overall' at {server.endpoint}; completions: 10, calls: 40\n")
    assert "replies in the judge's cache are not read" in out
    assert "system:\n" + "\n".join(f"  | {line}" for line in sent[0]["content"].split("\n")) in out
    assert "user:\n" + "\n".join(f"  | {line}" for line in sent[1]["content"].split("\n")) in out
    assert "sample 1: read as 8 (" in out
    assert '  | {"rating": 8}\n' in out
    assert "===== completion 8 of 10: an empty answer =====" in out
    assert "system: the same as in completion 1, wording 1\n" in out
    assert "reward: 8.50, variance of one reply: " in out
    assert "characters; --full shows them" in out
    assert "tokens: 4,000 of prompts, 200 of replies; cost unknown (price_input, price_output aren't set)" in out
    assert " s for 40 calls; a call " in out
    assert "- 40 of 40 replies could be read (100%)." in out
    assert "- Good answers have 8.5 on average, poor ones " in out
    assert "messages': " not in out  # no repr
    assert not (tmp_path / "home").exists()


def test_full_shortens_nothing(tmp_path: Path, shown: Shown) -> None:
    with JudgeServer(by_length) as server:
        assert main(["judge", "try", "--config", config(tmp_path, server), "--full"]) == 0
    out, _ = shown()
    assert "the same as in" not in out
    assert "--full shows" not in out
    assert out.count("system:\n") == out.count("user:\n") == 20


def test_json_has_all_and_costs(tmp_path: Path, shown: Shown) -> None:
    prices = ("price_input: 1", "price_output: 4")
    with JudgeServer(by_length) as server:
        words = ["--config", config(tmp_path, server, *prices), "--n", "3", "--json", str(tmp_path / "o" / "t.json")]
        assert main(["judge", "try", *words]) == 0
    out, _ = shown()
    assert "cost 0.00144" in out  # 12 calls of 100 and 5 tokens
    assert f"everything: {tmp_path / 'o' / 't.json'}" in out
    told = json.loads((tmp_path / "o" / "t.json").read_text())
    assert [item["role"] for item in told["completions"]] == ["good", "poor", "attack"]
    assert told["completions"][0]["calls"][0]["messages"][1]["role"] == "user"
    assert told["totals"]["money"] == pytest.approx(0.00144, rel=1e-9)
    assert (told["read"], told["error"], told["endpoint"]) == (12, None, server.endpoint)


def test_a_dataset_and_the_command_line_win(tmp_path: Path, shown: Shown) -> None:
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "chosen": "yes [bold]x[/bold] :smile:", "rejected": "no"}\n')
    with JudgeServer(by_length) as server:
        words = ["--config", config(tmp_path, server), "--dataset_name", str(tmp_path / "d.jsonl"), "--samples", "1"]
        assert main(["judge", "try", *words]) == 0
        assert len(server.requests) == 4
    out, _ = shown()
    assert "completion 2 of 2: row 0, rejected" in out
    assert "  | yes [bold]x[/bold] :smile:\n" in out
    assert "Good answers" not in out


def test_a_judge_that_compares_needs_a_dataset(tmp_path: Path, shown: Shown) -> None:
    (tmp_path / "r.jsonl").write_text('{"prompt": "p", "reference": "fair"}\n')
    (tmp_path / "d.jsonl").write_text('{"prompt": "p", "completion": "good"}\n')
    with JudgeServer(lambda r: rated(2 if r.texts["FIRST ANSWER"] == "good" else 6)) as server:
        words = ["judge", "try", "--config", config(tmp_path, server, f"references: {tmp_path / 'r.jsonl'}")]
        assert main(words) == 1
        assert server.requests == []
        assert "compares with reference answers: give completions of their prompts, --dataset_name" in shown()[1]
        assert main([*words, "--dataset_name", str(tmp_path / "d.jsonl")]) == 0
    out, _ = shown()
    assert out.count("BEGIN FIRST ANSWER") == 2  # both positions, of the first wording
    assert "sample 2: read as 6" in out
    assert "rated from 1 to 7" in out
    assert "reward: 2.00" in out


def test_a_saved_judge(tmp_path: Path, shown: Shown) -> None:
    JudgeSource("m", JudgeConfig(wordings=1, samples=2)).save(tmp_path / "source")
    words = ["judge", "try", "--reward_source", str(tmp_path / "source"), "--n", "2"]
    assert main(words) == 1
    assert "--judge_endpoint URL" in shown()[1]
    with JudgeServer(by_length) as server:
        assert main([*words, "--judge_endpoint", server.endpoint]) == 0
        assert len(server.requests) == 4
        assert main([*words, "--judge_endpoint", server.endpoint, "--samples", "3"]) == 1
    assert "samples: a saved judge has its own settings" in shown()[1]


def test_replies_that_hold_control_characters_or_a_thought(tmp_path: Path, shown: Shown) -> None:
    """The terminal gets no escape sequence, and an unreadable reply is as visible as the others."""
    said = ['\x1b[2J\x9bgone\u202e\r{"rating": 7}', "<think>\n3?\n</think>\nperhaps"]
    with JudgeServer(lambda r: Act(reply(said[r.sample]))) as server:
        words = ["--config", config(tmp_path, server, "min_valid: 1"), "--n", "1", "--wordings", "1"]
        assert main(["judge", "try", *words]) == 0
    out, _ = shown()
    assert '  | \\x1b[2J\\x9bgone\\u202e\\r{"rating": 7}\n' in out
    assert "sample 2: not read: no rating in the reply (" in out
    assert "  | <think>\n  | 3?\n  | </think>\n  | perhaps\n" in out


def test_nothing_read_is_a_failure(tmp_path: Path, shown: Shown) -> None:
    with JudgeServer(lambda r: Act(reply("I would rather not say"))) as server:
        words = ["judge", "try", "--config", config(tmp_path, server), "--n"]
        assert main([*words, "2"]) == 1  # 8 replies
        out, err = shown()
        assert "- 0 of 8 replies could be read (0%)." in out
        assert "none of 8 calls gave a rating; what to do is said above" in err
        assert main([*words, "10"]) == 1  # stopped after 20, as a training would be
    out, err = shown()
    assert "  | I would rather not say\n" in out
    assert "surefoot judge: none of the first 2" in err
    assert "What to do: ask for JSON" in err


def test_a_key_that_is_wrong_or_missing(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "s3cret-key-of-mine")
    refused = Act(status=401, body=b'{"error": {"message": "no such key: s3cret-key-of-mine"}}')
    with JudgeServer(lambda r: refused) as server:
        words = ["judge", "try", "--config", config(tmp_path, server, "key_variable: MINE")]
        assert main(words) == 1
        assert len(server.requests) == 1
        out, err = shown()
        assert "it refuses the key" in err
        assert "key from MINE" in err
        assert "s3cret" not in out + err
        monkeypatch.delenv("MINE")
        assert main(words) == 1
        assert "the environment variable MINE holds no key" in shown()[1]


def test_no_server(tmp_path: Path, shown: Shown) -> None:
    assert main(["judge", "try", "--config", config(tmp_path, "http://127.0.0.1:9/v1")]) == 1
    assert "surefoot judge: no connection to http://127.0.0.1:9/v1: start the server" in shown()[1]


def test_ctrl_c_prints_what_was_done(tmp_path: Path, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    """The interrupt is raised after the second completion; that a signal does so is tested with the library."""
    score = JudgeSource.score

    def interrupted(self: JudgeSource, prompts: list[str], completions: list[str]) -> None:
        score(self, prompts[:2], completions[:2])
        raise KeyboardInterrupt

    with JudgeServer(by_length) as server:
        monkeypatch.setattr(JudgeSource, "score", interrupted)
        words = ["--config", config(tmp_path, server), "--json", str(tmp_path / "t.json")]
        assert main(["judge", "try", *words]) == 130
    out, err = shown()
    assert "reward: 8.50" in out
    assert "sample 1: no reply: not made before the end (0.00 s)" in out
    assert "- 8 of 8 replies could be read (100%)." in out
    assert err == "\nsurefoot judge: interrupted; the same command asks from the beginning\n"
    assert json.loads((tmp_path / "t.json").read_text())["interrupted"] is True


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "say first what to do with the judge: `surefoot judge try --config FILE`; see `surefoot judge --help`"),
        (["--config", "x.yaml"], "say first what to do with the judge"),
        (["tyr"], "there is no action 'tyr'; did you mean 'try'?: `surefoot judge try"),
        (["nonsense"], "there is no action 'nonsense': `surefoot judge try"),
        (["try"], "give a judge's config (with model_name_or_path and endpoint), or reward_source, not both"),
        (["try", "--model_name_or_path", "m", "--reward_source", "s"], "or reward_source, not both"),
        (["try", "--model_name_or_path", "m", "--n", "0"], "n must be at least 1, got 0"),
        (["try", "--model_name_or_path", "m", "--sampels", "2"], "did you mean 'samples'?"),
        (
            ["try", "--model_name_or_path", "m", "--output_dir", "x"],
            "unknown setting 'output_dir' in the command line",
        ),
        (
            ["try", "--model_name_or_path", "m", "--kind", "linear"],
            "kind must be one of judge, criteria, got 'linear'",
        ),
        (["try", "--model_name_or_path", "m", "--endpoint", "here"], "endpoint must be an http or https address"),
    ],
)
def test_what_is_refused(words: list[str], said: str, shown: Shown) -> None:
    assert main(["judge", *words]) == 1
    out, err = shown()
    assert said in err
    assert out == ""


def test_a_config_with_an_unknown_setting_and_a_source_that_is_no_judge(tmp_path: Path, shown: Shown) -> None:
    (tmp_path / "judge.yaml").write_text("model_name_or_path: m\nsamples: 2\nsample: 3\n")
    assert main(["judge", "try", "--config", str(tmp_path / "judge.yaml")]) == 1
    assert "unknown setting 'sample' in" in shown()[1]
    MixedSources([JudgeSource("m"), JudgeSource("n")]).save(tmp_path / "mixed")
    words = ["--reward_source", str(tmp_path / "mixed"), "--judge_endpoint", "http://127.0.0.1:9/v1"]
    assert main(["judge", "try", *words]) == 1
    assert "mixed is of kind mixed, not a judge" in shown()[1]


@pytest.mark.parametrize("words", [["judge", "--help"], ["judge", "try", "--help"]])
def test_help(words: list[str], shown: Shown) -> None:
    assert main(words) == 0
    out, _ = shown()
    assert out.startswith("usage: surefoot judge {try} [--config FILE] [options]")
    assert "--samples N" in out
    assert "surefoot judge try --config examples/judge.yaml" in out


@pytest.mark.parametrize("name", ["judge", "judge_api"])
def test_the_examples_are_taken(name: str, shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPSEEK_API_KEY", "s3cret")
    path = Path(surefoot.__file__).parents[2] / "examples" / f"{name}.yaml"
    with JudgeServer(by_length) as server:
        words = ["--config", str(path), "--endpoint", server.endpoint, "--n", "1", "--requests_per_minute", "60000"]
        assert main(["judge", "try", *words]) == 0
    assert " replies could be read (100%)." in shown()[0]


@pytest.mark.parametrize(("name", "why"), [("there", "it is a directory"), ("file/trial.json", "File exists: ")])
def test_a_file_that_can_t_be_written_is_told_before_anything_is_asked(
    name: str, why: str, tmp_path: Path, shown: Shown
) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "file").write_text("")
    with JudgeServer(by_length) as server:
        words = ["judge", "try", "--config", config(tmp_path, server), "--json", str(tmp_path / name)]
        assert main(words) == 1
        assert server.requests == []
    assert f"can't write {tmp_path / name}: {why}" in shown()[1]
