"""Bad input through the command line: one line that says what, exit code 1, no traceback, nothing half-written."""

from __future__ import annotations

import errno
import os
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml
from datasets import Dataset

import surefoot.files
from surefoot.cli.main import main
from surefoot.cli.study import StudyArguments, configure
from surefoot.errors import ConfigError
from surefoot.studies.config import StudyConfig
from surefoot.studies.reward_sources import check_source
from tests.models import WORDS

NAN, INF, HUGE = float("nan"), float("inf"), 2**70
ROW = '{"prompt": "the", "chosen": "cat", "rejected": "dog"}\n'
CALLS = b'{"prompt": "a", "chosen": [{"role": "assistant", "tool_calls": %s}], "rejected": "c"}\n'
SAVED = Path(__file__).parents[1] / "saved_before"
"""A tiny policy and sources."""


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rows = [(f"the {WORDS[i % 10]}", f" cat {WORDS[i % 7]}", f" dog {WORDS[(i + 3) % 7]}") for i in range(30)]
    path = tmp_path_factory.mktemp("data") / "pairs.parquet"
    Dataset.from_list([dict(zip(("prompt", "chosen", "rejected"), row, strict=True)) for row in rows]).to_parquet(path)
    return path


@pytest.fixture
def reward(pairs: Path, policy_path: Path, tmp_path: Path) -> dict[str, Any]:
    """Settings that train in a second."""
    return {
        "model_name_or_path": str(policy_path), "dataset_name": str(pairs), "output_dir": str(tmp_path / "out"),
        "kind": "heads", "max_length": 16, "held_out": 0.3,
    }  # fmt: skip


def run(command: str, settings: Any, folder: Path, *words: str) -> int:
    """The exit code of a command with these settings as its config file, text as it stands."""
    path = folder / "settings.yaml"
    held = settings if isinstance(settings, bytes) else yaml.safe_dump(settings).encode()
    path.write_bytes(held)
    return main([command, "--config", str(path), *words])


PROGRESS = re.compile(r"note: .*|[\w -]+: (\d+%|\d+ of \d+)")


def one_line(capsys: pytest.CaptureFixture[str]) -> str:
    """All that is on stderr but notes and progress."""
    lines = [line for line in capsys.readouterr().err.splitlines() if not PROGRESS.fullmatch(line)]
    assert len(lines) == 1, lines
    return lines[0]


REWARD: list[tuple[dict[str, Any], str]] = [
    *[({"members": value}, "'members' in") for value in (True, [1, 2], 2.7)],
    ({"members": "two"}, "a setting is not usable: argument --members"),
    ({"members": 0}, "members must be at least 1, got 0"),
    ({"members": HUGE}, "members must be at most 2147483647"),
    ({"max_length": None}, "'max_length' in"),
    ({"max_length": -5}, "max_length must be at least 1, got -5"),
    *[({"learning_rate": value}, "learning_rate must be a finite number") for value in (NAN, INF, -INF)],
    ({"learning_rate": -1e-3}, "learning_rate must be at least 0"),
    ({"learning_rate": [1e-3]}, "'learning_rate' in"),
    ({"weight_decay": NAN}, "weight_decay must be a finite number"),
    ({"weight_decay": -1}, "weight_decay must be at least 0"),
    ({"epochs": NAN}, "'epochs' in"),
    ({"epochs": -1}, "epochs must be positive"),
    ({"epochs": 0}, "epochs must be positive"),
    ({"seed": HUGE}, "seed must be between 0 and 2147483647"),
    ({"seed": -1}, "seed must be between 0 and 2147483647"),
    ({"layer": 99}, "layer 99 isn't there: the model has 3 hidden states"),
    ({"layer": -4}, "layer -4 isn't there"),
    ({"layer": 0.5}, "'layer' in"),
    ({"pooling": "best"}, "pooling must be one of last, mean, cls, got 'best'"),
    ({"head": "tree"}, "head must be one of linear, mlp"),
    ({"kind": ["heads"]}, "'kind' in"),
    ({"kind": 3}, "'kind' in"),
    ({"scale_members": 3}, "'scale_members' in"),
    ({"held_out": NAN}, "held_out must be a finite number"),
    ({"output_dir": "/dev/null/x"}, "Not a directory"),
    ({"output_dir": "/dev/null"}, "File exists"),
    ({"output_dir": "x" * 5000}, "File name too long"),
    ({"output_dir": "a\0b"}, "output_dir holds a NUL character"),
    ({"model_name_or_path": "/dev/null"}, "is not a model directory"),
    ({"model_name_or_path": "x" * 5000}, "File name too long"),
    ({"model_name_or_path": "package:os.path/model"}, "must be package:NAME/FOLDER"),
    ({"model_name_or_path": "no-such-model"}, "can't load model 'no-such-model'"),
    ({"dataset_name": "x" * 5000}, "File name too long"),
    ({"dataset_name": "/dev/null"}, "is neither a file nor a directory"),
    ({"dataset_name": None}, "'dataset_name' in"),
]


@pytest.mark.parametrize(("changes", "said"), REWARD)
def test_settings_of_reward(
    reward: dict[str, Any], changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("reward", reward | changes, tmp_path) == 1
    assert said in one_line(capsys)
    left = {path.name for path in (tmp_path / "out").rglob("*")} if (tmp_path / "out").exists() else set()
    assert left <= {"run.json"}


def test_a_run_that_failed_at_once_is_in_nobodys_way(reward: dict[str, Any], tmp_path: Path) -> None:
    """The same directory takes the mended settings."""
    assert run("reward", reward | {"layer": 99}, tmp_path) == 1
    assert run("reward", reward | {"layer": 0}, tmp_path) == 0
    assert run("reward", reward | {"layer": 1}, tmp_path) == 1


@pytest.mark.parametrize(
    ("name", "held", "said"),
    [
        ("a.jsonl", ROW.encode("utf-16"), "is not text in UTF-8"),
        ("a.jsonl", ROW.encode("utf-16-le"), "holds a NUL"),
        ("a.jsonl", ROW.replace("cat", "caf\xe9").encode("latin-1"), "is not text in UTF-8"),
        ("a.jsonl", ROW.encode() + b"\xff", "is not text in UTF-8"),
        ("a.csv", "prompt,chosen,rejected\na,caf\xe9,c\n".encode("latin-1"), "is not text in UTF-8"),
        ("a.csv", b"prompt,chosen,rejected\na,1,c\n", "column 'chosen' holds int64, where text or messages belong"),
        ("a.csv", b"prompt,chosen,rejected\na,b,c,d,e\n", "rows have more fields than its first line names"),
        ("a.jsonl", b'{"prompt": "a", "chosen": true, "rejected": false}\n', "column 'chosen' holds bool"),
        ("a.jsonl", b'{"prompt": "a", "chosen": NaN, "rejected": "c"}\n', "column 'chosen' holds float64"),
        ("a.jsonl", b'{"prompt": "a", "chosen": ' + b"[" * 20_000 + b"]" * 20_000 + b"}\n", "nested deeper than 60"),
        (
            "a.json",
            b'{"prompt": "a", "chosen": ' + b'{"a":\n' * 20_000 + b"1" + b"}" * 20_001,
            "nested deeper than 60",
        ),
        ("a.jsonl", ROW.encode() + b'{"prompt": "a", "cho', "can't read"),
        ("a.parquet", b"PAR1", "can't read"),
        ("a.jsonl", b"", "is empty"),
        ("a.jsonl", ROW.replace("}", ', "margin": true}').encode(), "row 0: margin is True"),
        ("a.json", b" null\n", "has a line that is null"),
        ("a.jsonl", b"\xef\xbb\xbfnull\n", "has a line that is null"),
        ("a.jsonl", ROW.encode() + b"null\n", "has a line that is null"),
        *[
            ("a.jsonl", CALLS % calls, "tool_calls is not a list of calls")
            for calls in (b"3", b'["x"]', b'{"a": 1}', b'[{"function": 3}]')
        ],
    ],
)
def test_data_that_cannot_be_read(
    reward: dict[str, Any], name: str, held: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / name).write_bytes(held)
    assert run("reward", reward | {"dataset_name": str(tmp_path / name)}, tmp_path) == 1
    assert said in one_line(capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("data[1].jsonl", "data1.jsonl"),
        ("a*.jsonl", "ab.jsonl"),
        ("a?.jsonl", "ac.jsonl"),
        ("h[[]i.jsonl", "h[i.jsonl"),
    ],
)
def test_a_glob_character_is_a_character(name: str, other: str, tmp_path: Path) -> None:
    from surefoot.data.loading import open_dataset

    for file in (name, other):
        (tmp_path / file).write_text(ROW.replace("the", file))
    assert open_dataset(tmp_path / name)["prompt"][:] == [name]


def test_brackets_in_texts_are_not_nesting(tmp_path: Path) -> None:
    from surefoot.data.loading import open_dataset

    text = '[{"' * 500
    Dataset.from_list([{"prompt": f"\\{text}\\", "chosen": text, "rejected": "]"}]).to_json(tmp_path / "a.jsonl")
    assert open_dataset(tmp_path / "a.jsonl")["chosen"][:] == [text]


STUDY: dict[str, Any] = {
    "settings": {"w": {"world": "even"}}, "sources": {"l": {"kind": "linear", "layer": 0}}, "methods": ["mean"],
    "seeds": 1, "policy": {"max_steps": 1},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *[({"seeds": value}, "'seeds' in") for value in (True, 2.7, None, ["x"], [1.5], [True], {"a": 1})],
        ({"seeds": []}, "a study needs at least one of seeds"),
        ({"seeds": -1}, "a study needs at least one of seeds"),
        ({"seeds": [1, 1]}, "seeds names one twice"),
        ({"seeds": [-1]}, "seed must be between 0 and 2147483647"),
        ({"seeds": [HUGE]}, "seed must be between 0 and 2147483647"),
        ({"first_seed": HUGE}, "first_seed must be between"),
        ({"kl_budgets": [NAN]}, "kl_budgets must be positive and finite"),
        ({"kl_budgets": [-1]}, "kl_budgets must be positive and finite"),
        ({"kl_budgets": ["x"]}, ""),
        ({"methods": 3}, "'methods' in"),
        ({"policy": {"learning_rate": NAN}}, "policy.learning_rate must be a finite number"),
        ({"policy": {"beta": -1}}, "policy.beta must be at least 0"),
        ({"policy": {"hub_token": "t"}}, "must hold no token"),
        *[({axis: {"x": 3}}, "must be `") for axis in ("settings", "sources", "methods")],
        *[({axis: {1: {}}}, f"{axis} must be named by text, got 1") for axis in ("settings", "sources", "methods")],
        ({"methods": {"m": {"preset": "mean", "weight_ceiling": {"a": 1}}}}, "methods.m.weight_ceiling must be a num"),
        ({"methods": {"m": {"preset": "mean", "anchor_completions": None}}}, "methods.m.anchor_completions must be a"),
        ({"methods": {"m": {"preset": "mean", "anchor_completions": 0}}}, "methods.m.anchor_completions must be at"),
        ({"methods": {"m": {"preset": "mean", "anchor": "text"}}}, "anchor must be one of reference, dataset"),
        ({"methods": {"m": {"preset": None}}}, "methods.m.preset must be text"),
        *[({"sources": {"l": {"single": value}}}, "sources.l.single must be") for value in (3, None, [1])],
        *[({"sources": {"l": {"methods": value}}}, "sources.l.methods must be") for value in (3, None, [1])],
        *[({"sources": {"l": {"path": value}}}, "sources.l.path must be text") for value in (3, None, [1])],
        *[({"settings": {"w": {"gold": value}}}, "settings.w.gold must be") for value in (True, None, "text")],
        ({"settings": {"w": {"world": ["even"]}}}, "settings.w.world must be text"),
        ({"policy": {"use_cpu": "text"}}, "policy.use_cpu must be true or false"),
        ({"policy": {"report_to": {"a": 1}}}, "policy.report_to must be"),
        ({"policy": {"logging_steps": HUGE}}, "policy.logging_steps must be between"),
    ],
)
def test_settings_of_a_study(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("study", STUDY | {"output_dir": str(tmp_path / "out")} | changes, tmp_path) == 1
    assert said in one_line(capsys)


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"kind": "heads", "members": True}, "sources.l.members must be a whole number"),
        ({"kind": "heads", "epochs": -1}, "epochs must be positive"),
        ({"kind": "linear", "pooling": "best"}, "pooling must be one of"),
    ],
)
def test_sources_of_a_study(spec: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_source("l", spec, "policy")


@pytest.mark.parametrize(
    ("draw", "said"),
    [
        *[({"pairs": value}, "draw.pairs must be a whole number") for value in ("", None, {"a": 1}, 2.7, True)],
        ({"temperature": ""}, "draw.temperature must be a number"),
        ({"max_new_tokens": [3]}, "draw.max_new_tokens must be a whole number"),
        ({"max_new_tokens": 0}, "draw.max_new_tokens must be at least 1"),
        ({"zzz": 1}, "unknown key 'zzz' in draw"),
    ],
)
def test_preferences_that_a_study_draws(
    draw: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gold = {"function": f"{SAVED}/gold.py:cats"}
    own = {"model": str(SAVED / "policy"), "prompts": str(SAVED / "prompts.jsonl"), "gold": gold, "draw": draw}
    changes = {"settings": {"w": own}, "output_dir": str(tmp_path / "out")}
    assert run("study", STUDY | changes, tmp_path) == 1
    assert said in one_line(capsys)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("seeds", [(9300, 9301), (3, 7)])
def test_a_study_reads_the_seeds_that_it_writes(seeds: tuple[int, ...], tmp_path: Path) -> None:
    """A list, with or without `first_seed`, is the seeds themselves."""
    grid = configure(StudyArguments(str(tmp_path), **STUDY | {"seeds": list(seeds), "first_seed": seeds[0]}))
    assert grid.seeds == seeds
    again = StudyArguments(str(tmp_path), **grid.to_dict())
    assert configure(again) == grid
    assert isinstance(grid, StudyConfig)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        *[({name: NAN}, f"{name} must be a finite number") for name in ("learning_rate", "weight_decay", "beta")],
        *[({name: -1}, f"{name} must be at least 0") for name in ("learning_rate", "weight_decay", "beta")],
        ({"num_train_epochs": INF}, ""),
        ({"seed": HUGE}, "seed must be between 0 and 2147483647"),
        ({"beta": True}, "'beta' in"),
        ({"dtype": "float7"}, "dtype must be one of"),
        ({"log_level": "text"}, "log_level must be one of"),
        ({"lr_scheduler_type": "text"}, "must be one of linear, "),
        ({"save_total_limit": HUGE}, "save_total_limit must be between"),
        ({"report_to": "nowhere"}, "transformers refuses: nowhere is not supported"),
        ({"model_init_kwargs": "x"}, "model_init_kwargs must be"),
        ({"output_dir": "/dev/null/x"}, "Not a directory"),
    ],
)
def test_settings_of_dpo(
    pairs: Path,
    policy_path: Path,
    changes: dict[str, Any],
    said: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings = {
        "model_name_or_path": str(policy_path), "dataset_name": str(pairs), "output_dir": str(tmp_path / "out"),
        "weights": "none", "max_steps": 1, "report_to": "none", "use_cpu": True, "gradient_checkpointing": False,
    }  # fmt: skip
    assert run("dpo", settings | changes, tmp_path) == 1
    assert said in one_line(capsys)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        (b"[1, 2]", "must hold `key: value` lines"),
        (b"", "must hold `key: value` lines"),
        (b"1: 2", "must hold `key: value` lines"),
        (b"a: &a [*a]", "aliases unfold"),
        (b"seed: 1\nseed: 2", "stands there twice"),
        ("kind: caf\xe9".encode("latin-1"), "is not text in UTF-8"),
        ("seed: 1".encode("utf-16"), "is not text in UTF-8"),
        (b"[" * 20_000, "nested too deeply"),
    ],
)
def test_config_files(held: bytes, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("reward", held, tmp_path) == 1
    assert said in one_line(capsys)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "/etc"], "Is a directory"),
        (["--config", "x" * 5000], "File name too long"),
        (["--config", "/dev/null"], "must hold `key: value` lines"),
        (["--config", "a.yaml", "--config", "b.yaml"], "--config is given twice"),
        (["--config"], "--config needs the path"),
    ],
)
def test_config_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", *words]) == 1
    assert said in one_line(capsys)


def test_a_full_disk(
    reward: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(surefoot.files.os, "fsync", full)
    assert run("reward", reward, tmp_path) == 1
    assert "No space left on device" in one_line(capsys)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@contextmanager
def small_files() -> Iterator[None]:
    """The system lets no file grow beyond 2,000 bytes. Not a fixture: pytest's own output may be a longer file."""
    held = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, held[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, held)


def test_weights_that_do_not_fit_on_the_disk(
    reward: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What safetensors can't write is told like what Python can't."""
    with small_files():
        assert run("reward", reward, tmp_path) == 1
    assert "File too large" in one_line(capsys)
    assert not (tmp_path / "out" / "source").exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"output_dir": "/dev/null"}, "Not a directory"),
        ({"output_dir": "/dev/null/x"}, "Not a directory"),
        ({"output_dir": "x" * 5000}, "File name too long"),
        ({"output_dir": None}, "'output_dir' in"),
        ({"variant": "unevn"}, "unknown world 'unevn'"),
        ({"seeds": 0}, "a study needs at least one of seeds"),
        ({"seeds": 2.7}, "'seeds' in"),
        ({"first_seed": -1}, "first_seed must be between"),
        ({"pairs": 0}, "pairs must be at least 1"),
        ({"pairs": True}, "'pairs' in"),
        ({"workers": -1}, "workers must be at least 0"),
        ({"config": "x"}, "unknown setting 'config'"),
        ({"help": True}, "unknown setting 'help'"),
    ],
)
def test_settings_of_the_demo(
    changes: dict[str, Any], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("demo", {"output_dir": str(tmp_path / "out")} | changes, tmp_path) == 1
    assert said in one_line(capsys)
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize(("command", "place"), [("theory", "out"), ("world", "output_dir"), ("demo", "output_dir")])
def test_places_that_are_no_directory(
    command: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "taken").write_text("mine")
    assert run(command, {place: str(tmp_path / "taken")}, tmp_path) == 1
    one_line(capsys)
    assert (tmp_path / "taken").read_text() == "mine"


def test_one_prompt_has_a_mean_without_an_interval(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "one.jsonl").write_text('{"prompt": "the red"}\n')
    settings = {
        "model_name_or_path": str(SAVED / "policy"), "dataset_name": str(tmp_path / "one.jsonl"), "n": 2,
        "reward_source": str(SAVED / "sources" / "linear"), "output_dir": str(tmp_path / "out"),
        "max_completion_length": 3,
    }  # fmt: skip
    assert run("bon", settings, tmp_path) == 0
    assert "(unknown)" in capsys.readouterr().out


@pytest.mark.parametrize("words", [["/nope"], ["/etc"], ["x" * 5000], ["/dev/null"]])
def test_reports_of_what_is_no_study(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", *words]) == 1
    one_line(capsys)
