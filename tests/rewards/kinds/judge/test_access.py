"""A saved judge doesn't decide where prompts and keys go, or which file is written; whoever loads it does."""

import json
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from surefoot.cli.main import main
from surefoot.cli.parsing import parse
from surefoot.errors import ConfigError
from surefoot.files import read_json, write_json
from surefoot.rewards.hub import write_card
from surefoot.rewards.kinds.judge.access import VARIABLES, JudgeAccess
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.kinds.mixed import MixedSources
from surefoot.rewards.registry import load_source
from surefoot.rewards.saved import SOURCE
from surefoot.studies.reward_sources import check_source, load_sources, source_key
from tests.rewards.kinds.judge.servers import JudgeServer, number_in, rated

Make = Callable[..., JudgeSource]
CALLERS = ("endpoint", "key_variable", "cache", "references")


def good(request: Any) -> Any:
    return rated(number_in(request))


@pytest.fixture(autouse=True)
def _nothing_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for variable in VARIABLES.values():
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


@pytest.fixture
def saved(judge: Make, tmp_path: Path) -> Path:
    """A judge's directory, as `save` writes it."""
    judge("http://127.0.0.1:9/v1", rubric="overall", key_variable="MINE", temperature=0.5).save(tmp_path / "source")
    return tmp_path / "source"


def test_what_a_saved_judge_keeps(saved: Path, tmp_path: Path) -> None:
    values = read_json(saved / SOURCE)
    assert not set(values["config"]) & {*CALLERS, "rubric"}
    assert (values["model"], values["rubric"]["name"], values["config"]["temperature"]) == ("m", "overall", 0.5)
    text = (saved / SOURCE).read_text()
    assert "127.0.0.1" not in text
    assert "MINE" not in text
    assert str(tmp_path) not in text


def test_a_foreign_source_gets_no_request_no_key_and_no_file(
    saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its `source.json` names a host, a variable, a cache and a file of references; nobody else said anything."""
    monkeypatch.setenv("HF_TOKEN", "hf-secret")
    (tmp_path / "private.jsonl").write_text(json.dumps({"prompt": "p", "reference": "secret"}) + "\n")
    with JudgeServer(good) as theirs, JudgeServer(good) as ours:
        values = read_json(saved / SOURCE)
        named = (theirs.endpoint, "HF_TOKEN", str(tmp_path / "theirs.sqlite"), str(tmp_path / "private.jsonl"))
        values["config"] |= dict(zip(CALLERS, named, strict=True))
        write_json(saved / SOURCE, values)
        with pytest.raises(
            ConfigError, match=r"source is a judge, 'm'.*--judge_endpoint URL.*SUREFOOT_JUDGE_ENDPOINT"
        ):
            load_source(saved)
        access = JudgeAccess(ours.endpoint, cache=str(tmp_path / "ours.sqlite"))
        source = load_source(saved, judge=access)
        assert isinstance(source, JudgeSource)
        assert source.references is None
        assert source.score(["p"], ["7"])[0, 0] == 7
        assert theirs.requests == []
        assert "hf-secret" not in str(ours.requests[0].headers)
        assert not (tmp_path / "theirs.sqlite").exists()
        assert (tmp_path / "ours.sqlite").exists()


@pytest.mark.parametrize("name", ["api_base", "base_url", "extra_body"])
def test_a_source_can_t_have_a_gateway_send_it_elsewhere(name: str, saved: Path) -> None:
    values = read_json(saved / SOURCE)
    values["config"]["parameters"] = {name: "https://elsewhere.example/v1"}
    write_json(saved / SOURCE, values)
    with pytest.raises(ConfigError, match=f"parameters must not hold {name}"):
        load_source(saved, judge=JudgeAccess("http://127.0.0.1:9/v1"))


def test_the_environment_says(saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUREFOOT_JUDGE_ENDPOINT", "http://127.0.0.1:9/v1")
    monkeypatch.setenv("SUREFOOT_JUDGE_KEY_VARIABLE", "MINE")
    found = load_source(saved)
    assert isinstance(found, JudgeSource)
    assert (found.config.endpoint, found.config.key_variable) == ("http://127.0.0.1:9/v1", "MINE")
    assert found.config.cache is None
    (tmp_path / "judges.yaml").write_text("m: {endpoint: 'http://127.0.0.1:8/v1'}\nn: {endpoint: 'http://h/v1'}\n")
    monkeypatch.setenv("SUREFOOT_JUDGES", str(tmp_path / "judges.yaml"))
    found = load_source(saved)
    assert isinstance(found, JudgeSource)
    assert (found.config.endpoint, found.config.key_variable) == ("http://127.0.0.1:8/v1", None)
    (tmp_path / "judges.yaml").write_text("m: http://127.0.0.1:8/v1\n")
    with pytest.raises(ConfigError, match=r"judges.yaml must hold `model: \{endpoint"):
        load_source(saved)


def test_two_judges_inside_another_source(judge: Make, tmp_path: Path) -> None:
    """Each is asked at its own endpoint; what is given counts for parts of a source too."""
    with JudgeServer(good) as one, JudgeServer(good) as two:
        parts = [judge(server, samples=1) for server in (one, two)]
        parts[1].model = "n"
        MixedSources(parts).save(tmp_path / "mixed")
        names = {"m": JudgeAccess(one.endpoint), "n": JudgeAccess(two.endpoint)}
        source = load_source(tmp_path / "mixed", judge=names)
        torch.testing.assert_close(source.score(["p"], ["7"]), torch.tensor([[7.0, 7.0]]))
        assert [request.body["model"] for request in (*one.requests, *two.requests)] == ["m", "n"]
        with pytest.raises(ConfigError, match="is a judge, 'n'"):
            load_source(tmp_path / "mixed", judge={"m": JudgeAccess(one.endpoint)})


def test_commands_say_where_for_themselves_and_their_workers(
    saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"prompt": "p", "completion": str(n)}) + "\n" for n in (2, 7)))
    words = [
        "score",
        "--reward_source",
        str(saved),
        "--dataset_name",
        str(rows),
        "--output",
        str(tmp_path / "out.jsonl"),
    ]
    assert main(words) == 1
    assert "--judge_endpoint URL" in capsys.readouterr().err
    with JudgeServer(good) as server:
        config = tmp_path / "score.yaml"
        config.write_text(f"judge_endpoint: {server.endpoint}\njudge_cache: {tmp_path / 'own.sqlite'}\n")
        monkeypatch.setenv("SUREFOOT_JUDGE_KEY_VARIABLE", "")
        assert main([*words, "--config", str(config)]) == 0
        assert len(server.requests) == 6
    found = [json.loads(line)["reward_mean"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert found == [2, 7]
    assert main(words) == 1  # the first command's settings are not the next one's


@pytest.mark.parametrize(
    "command", ["score", "diagnose", "bon", "rloo", "grpo", "dpo", "anchors", "study", "reward", "forecast", "judge"]
)
def test_every_command_that_loads_sources_takes_them(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    for name in VARIABLES:
        assert f"--{name}" in shown


def test_a_study_takes_it_from_its_own_settings(judge: Make, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A saved source needs the study's `judge_endpoint`; one that the study makes has it in its own settings."""
    with pytest.raises(ConfigError, match="is a judge, 'm'"):
        check_source("mine", {"path": str(saved)}, "policy")
    monkeypatch.setenv("SUREFOOT_JUDGE_ENDPOINT", "http://127.0.0.1:9/v1")
    check_source("mine", {"path": str(saved)}, "policy")
    monkeypatch.delenv("SUREFOOT_JUDGE_ENDPOINT")
    spec = {"kind": "judge", "endpoint": "http://h/v1", "key_variable": "K", "samples": 2}
    access = JudgeAccess.of_settings(spec)
    assert access == JudgeAccess("http://h/v1", "K")
    assert load_source(saved, judge=access).config.endpoint == "http://h/v1"  # type: ignore[attr-defined]
    assert JudgeAccess.of_settings({"kind": "heads", "endpoint": "http://h/v1"}) is None


def test_a_study_s_workers_load_its_own_judge(saved: Path, tmp_path: Path) -> None:
    """The judge that `prepare_source` made and saved is asked where the study's settings of it say."""
    spec = {"kind": "judge", "endpoint": "http://127.0.0.1:7/v1", "cache": str(tmp_path / "c.sqlite")}
    work = {"sources": {"reward": spec}, "setting": {}, "files": {}, "seed": 0}
    write_json(tmp_path / "sources" / source_key(work, "reward") / "prepared.json", {"path": str(saved)})
    found = load_sources(work, tmp_path)
    assert isinstance(found, JudgeSource)
    assert (found.config.endpoint, found.config.cache) == (spec["endpoint"], spec["cache"])


def test_the_card_says_how_to_load_it(saved: Path) -> None:
    write_card(saved, JudgeSource("m", JudgeConfig()))
    assert "judge=JudgeAccess(endpoint=" in (saved / "README.md").read_text()


def test_nobody_else_reads_the_cache(judge: Make, tmp_path: Path) -> None:
    with JudgeServer(good) as server:
        judge(server).score(["p"], ["7"])
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("replies.sqlite*")}
    assert modes
    assert set(modes.values()) == {0o600}, modes


def test_commands_without_sources_know_no_judges() -> None:
    from surefoot.cli.score import ScoreConfig

    words = ["--dataset_name", "d", "--output", "o", "--judge_endpoint", "http://h/v1"]
    with pytest.raises(ConfigError, match="unknown setting 'judge_endpoint'"):
        parse((ScoreConfig,), words, "score")
