"""`--help` of every command: fast, complete, ours before TRL's, and true to the dataclasses."""

import json
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from surefoot.cli import help as help_module
from surefoot.cli.examples import EXAMPLES
from surefoot.cli.help import DESCRIPTION, OTHERS, help_text
from surefoot.cli.main import COMMANDS, main

OF_TRL = ["--output_dir"]  # stands among ours, in the words of transformers
HEAVY = {"torch", "transformers", "trl", "datasets", "numpy", "yaml"}


def shown(command: str, *words: str) -> str:
    return help_text(command, COMMANDS[command], [*words])


@pytest.mark.parametrize("command", COMMANDS)
def test_help_loads_nothing_that_takes_seconds(command: str) -> None:
    code = f"import sys; from surefoot.cli.main import main; main([{command!r}, '--help']); "
    code += "print(*{m.partition('.')[0] for m in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.splitlines()[-1].split())
    assert f"usage: surefoot {command}" in done.stdout


def test_the_description_is_that_of_the_dataclasses() -> None:
    from surefoot.cli.describe import describe_all

    held, now = json.loads(DESCRIPTION.read_text(encoding="utf-8")), describe_all()
    if held["versions"] != now["versions"]:  # another TRL has other options of its own; ours are the same
        for commands in (held["commands"], now["commands"]):
            for name in ("rloo", "grpo", "dpo"):
                commands[name] = {title: said for title, said in commands[name].items() if "TRL" not in title}
                commands[name]["output"] = [each for each in commands[name]["output"] if each["flags"] != OF_TRL]
    assert held["commands"] == now["commands"], "run python -m surefoot.cli.describe"


@pytest.mark.parametrize("command", ["rloo", "grpo", "dpo"])
def test_our_options_come_before_those_of_trl(command: str) -> None:
    text = shown(command)
    titles = ["reward and variance:", "data:", "model:", "output:", "model (TRL):", "training (TRL):"]
    places = [text.index(f"\n{title}\n") for title in titles]
    assert places == sorted(places)
    assert text.index("--per_device_train_batch_size") > text.index("training (TRL):")
    assert text.index("--reward_source") < text.index("data:")


def test_choices_defaults_and_required_options_are_shown() -> None:
    text = " ".join(shown("select").split())
    assert "--rule {margin_variance,expected_information,d_optimal," in text
    assert "file or hub. (required)" in text
    assert "(default: 100000)" in text
    assert shown("score").startswith("usage: surefoot score [--config FILE] --dataset_name … --output … [options]")


def test_one_kind_or_all_kinds_of_a_reward() -> None:
    every, linear = shown("reward"), shown("reward", "--kind", "linear")
    assert "[linear]" in every
    assert "--prior_scale" in every
    assert "kind: linear:" in linear
    assert "--penalty_by {evidence,held_out}" in linear
    assert "--prior_scale" not in linear


def test_help_of_an_unknown_kind_is_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reward", "--kind", "linaer", "--help"]) == 1
    assert "kind must be one of adaptive_judge, borrowed_variance, criteria, distilled" in capsys.readouterr().err


def test_other_versions_of_trl_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    described = help_module.DESCRIPTION.read_text(encoding="utf-8")
    monkeypatch.setattr(metadata, "version", json.loads(described)["versions"].__getitem__)
    assert "those of your versions" not in shown("rloo")
    monkeypatch.setattr(metadata, "version", lambda name: "1.99")
    assert "those of your versions are accepted" in shown("rloo")
    assert "those of your versions" not in shown("world")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_examples_with_known_options(command: str) -> None:
    known = set(shown(command).split())
    for example in (line for line in EXAMPLES[command] if line.startswith(f"surefoot {command} ")):
        assert {word for word in example.split() if word.startswith("--")} <= known, example
    assert EXAMPLES[command][0] in shown(command)


def test_every_command_is_described_and_there() -> None:
    assert {*OTHERS, "report", "doctor", "verl", "openrlhf"} == set(COMMANDS)
    folder = Path(help_module.__file__).parent
    assert all((folder / f"{name}.py").exists() for name in COMMANDS)
