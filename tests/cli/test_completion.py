"""Tab in a real bash: sub-commands, options and choices."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete", reason="needs the extra `completion`")
PRESSED = """
eval "$(python -m argcomplete.scripts.register_python_argcomplete surefoot)"
COMP_LINE="$1"; COMP_POINT=${#COMP_LINE}; COMP_TYPE=9
read -ra COMP_WORDS <<< "$COMP_LINE"
[[ $COMP_LINE == *" " ]] && COMP_WORDS+=("")
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_python_argcomplete surefoot "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


def offered(line: str, folder: Path) -> set[str]:
    """What bash offers when Tab is pressed at the end of the line."""
    for name, words in (("surefoot", "-m surefoot.cli.main"), ("python", "")):
        script = folder / name
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" {words} "$@"\n')
        script.chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-c", PRESSED, "bash", line], env=environment, capture_output=True, text=True, check=True
    )
    return {word.strip() for word in done.stdout.splitlines()}


@pytest.mark.parametrize(
    ("line", "there", "elsewhere"),
    [
        ("surefoot d", {"demo", "diagnose", "doctor", "dpo"}, "rloo"),
        ("surefoot rloo --reward_", {"--reward_source", "--reward_models", "--reward_config"}, "--preset"),
        ("surefoot rloo --preset variance_aware_", {"variance_aware_lcb", "variance_aware_one"}, "vanilla"),
        ("surefoot score --", {"--dataset_name", "--reward_source", "--config"}, "--source"),
        ("surefoot reward --kind l", {"linear", "lora", "laplace"}, "heads"),
        ("surefoot doctor --", {"--json"}, "--config"),
        ("surefoot judge t", {"try"}, "--n"),
    ],
)
def test_tab(line: str, there: set[str], elsewhere: str, tmp_path: Path) -> None:
    found = offered(line, tmp_path)
    assert there <= found
    assert elsewhere not in found
