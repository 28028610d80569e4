"""TRL's habit: a YAML file, the command line on top; a wrong key is refused with the nearest right one."""

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest

from surefoot.cli.parsing import given_settings, parse
from surefoot.errors import ConfigError


@dataclass
class Settings:
    output_dir: str = field(metadata={"help": "where"})
    learning_rate: float = 1e-3
    members: int = 5
    names: list[str] | None = None
    overwrite: bool = False


@pytest.fixture
def config(tmp_path: Path) -> str:
    path = tmp_path / "config.yaml"
    path.write_text("output_dir: here\nlearning_rate: 2.0e-4\nnames: [a, b]\n")
    return str(path)


def test_the_command_line_wins_over_the_file(config: str) -> None:
    (settings,) = parse((Settings,), ["--config", config, "--members", "3", "--learning_rate", "1e-5"], "x")
    assert settings == Settings("here", 1e-5, 3, ["a", "b"])


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e-3", 1e-3), ("2.5E+2", 250.0), ("-1e5", -1e5), (".5e1", 5.0), ("1.e2", 100.0), ("7", 7), ("e3", "e3"),
     ("1e", "1e"), ("'1e-3'", "1e-3"), ("12e3b4", "12e3b4")],
)  # fmt: skip
def test_numbers_with_an_exponent_are_numbers_however_deep(tmp_path: Path, written: str, value: Any) -> None:
    """YAML 1.1 reads 1e-3 as text; deep inside a study's settings nothing would turn it into a number later."""
    path = tmp_path / "config.yaml"
    path.write_text(f"output_dir: here\npolicy: {{learning_rate: {written}, list: [{written}]}}\n")
    policy = given_settings([f"--config={path}"])["policy"]
    assert policy == {"learning_rate": value, "list": [value]}
    assert type(policy["learning_rate"]) is type(value)
    assert given_settings(["--x", written]) == given_settings([f"--x={written}"]) == {"x": value}


def test_what_was_given_is_kept_as_plain_values(config: str) -> None:
    words = [f"--config={config}", "--members", "3", "--overwrite", "--names", "c", "d"]
    assert given_settings(words) == {
        "output_dir": "here",
        "learning_rate": 2e-4,
        "names": ["c", "d"],
        "members": 3,
        "overwrite": True,
    }


def test_unknown_key_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: x\nlerning_rate: 0.1\n")
    with pytest.raises(
        ConfigError, match=r"unknown setting 'lerning_rate' in .*c\.yaml; did you mean 'learning_rate'"
    ):
        parse((Settings,), ["--config", str(path)], "x")


def test_unknown_key_on_the_command_line(config: str) -> None:
    with pytest.raises(ConfigError, match="unknown setting 'member' in the command line; did you mean 'members'"):
        parse((Settings,), ["--config", config, "--member", "3"], "x")


def test_missing_required_key() -> None:
    with pytest.raises(ConfigError, match="'output_dir' is missing"):
        parse((Settings,), [], "x")


@pytest.mark.parametrize(("text", "message"), [("a: [", "not valid YAML"), ("- a", "must hold `key: value` lines")])
def test_unreadable_file(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message):
        parse((Settings,), ["--config", str(path)], "x")


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        parse((Settings,), ["--config", "/nowhere.yaml"], "x")


def test_a_value_of_the_wrong_type_names_its_key(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: x\nmembers: many\n")
    with pytest.raises(ConfigError, match="members"):
        parse((Settings,), ["--config", str(path)], "x")


def test_a_number_that_yaml_reads_as_text(tmp_path: Path) -> None:
    """YAML reads 1e-5 as a string; it must arrive as a number, not train with a string."""
    path = tmp_path / "c.yaml"
    path.write_text("output_dir: x\nlearning_rate: 1e-5\n")
    (settings,) = parse((Settings,), ["--config", str(path)], "x")
    assert settings.learning_rate == 1e-5


@pytest.mark.parametrize(
    "words", [["--source", "s", "--split=test"], ["--reward_source=s", "--dataset_split", "test"]]
)
def test_older_names_are_the_present_ones(words: list[str]) -> None:
    from surefoot.cli.score import ScoreConfig

    words = [*words, "--dataset_name", "d", "--output", "o"]
    assert parse((ScoreConfig,), words, "score") == (ScoreConfig("d", "o", reward_source="s", dataset_split="test"),)
    given = {"reward_source": "s", "dataset_split": "test", "dataset_name": "d", "output": "o"}
    assert given_settings(words, "score") == given  # so that a run goes on, whichever names it was begun with


def test_older_names_in_a_file(tmp_path: Path) -> None:
    from surefoot.cli.diagnose import DiagnoseConfig

    path = tmp_path / "c.yaml"
    path.write_text("dataset: d\nmodels: [a, b]\nsplit: test\n")
    wanted = DiagnoseConfig("d", reward_models=["a", "b"], dataset_split="test")
    assert parse((DiagnoseConfig,), ["--config", str(path)], "diagnose") == (wanted,)


def test_a_setting_under_both_of_its_names_is_refused(tmp_path: Path) -> None:
    from surefoot.cli.score import ScoreConfig

    with pytest.raises(ConfigError, match="the command line has 'reward_source' twice: 'source' is its older name"):
        parse((ScoreConfig,), ["--source", "a", "--reward_source", "b"], "score")
    path = tmp_path / "c.yaml"
    path.write_text("split: a\ndataset_split: b\n")
    with pytest.raises(ConfigError, match=r"c\.yaml has 'dataset_split' twice"):
        parse((ScoreConfig,), ["--config", str(path)], "score")


def test_every_older_name_has_a_present_one() -> None:
    """And no option has an older name of another: it would be renamed."""
    from importlib import import_module

    from surefoot.setting_names import OLDER_NAMES

    for command, names in OLDER_NAMES.items():
        types = import_module(f"surefoot.cli.{command}").option_types()
        options = {item.name for settings in types for item in fields(settings)}
        assert set(names.values()) <= options, command
        assert not set(names) & options, command


@dataclass
class Named:
    rule: str = field(default="mean", metadata={"help": "by what", "choices": ("mean", "vanilla")})


def test_a_wrong_choice_is_told_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("rule: vanila\n")
    for words in (["--rule", "vanila"], ["--config", str(path)]):
        with pytest.raises(
            ConfigError, match="rule must be one of mean, vanilla, got 'vanila'; did you mean 'vanilla'"
        ):
            parse((Named,), words, "x")
