"""docs/first_hour.md works as written, and the README's commands are among its."""

import shlex
from pathlib import Path

import pytest

from surefoot.cli.main import main
from tests.docs.first_hour import PAGE, ROOT, steps

LEFT = ("runs/diagnosis/diagnose.html", "runs/forecast/forecast.html", "runs/forecast/rloo.yaml",
        "runs/forecast/policy/model.safetensors", "scored.parquet", "runs/select/pairs.jsonl")  # fmt: skip
"""Files that the page promises."""


@pytest.mark.slow
@pytest.mark.usefixtures("trained_already")
@pytest.mark.filterwarnings("ignore:'pin_memory' argument")  # torch's, of a machine without an accelerator
def test_the_first_hour_works_as_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every command in one process, so that libraries load once; the world's model is trained already."""
    monkeypatch.chdir(tmp_path)
    for language, text in steps(PAGE.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
            continue
        program, *words = shlex.split(text)
        assert program == "surefoot"
        if words == ["--version"]:
            with pytest.raises(SystemExit, match="0"):
                main(words)
        else:
            assert main(words) == 0, (text, capsys.readouterr().err)
    assert [name for name in LEFT if not (tmp_path / name).exists()] == []


def test_the_readmes_five_commands_are_those_of_the_first_hour() -> None:
    written = dict.fromkeys(text for language, text in steps(PAGE.read_text(encoding="utf-8")) if language == "sh")
    commands = [
        text
        for language, text in steps((ROOT / "README.md").read_text(encoding="utf-8"))
        if language == "sh" and text.startswith("surefoot")
    ]
    assert len(commands) == 5
    assert [text for text in commands if text not in written] == []
