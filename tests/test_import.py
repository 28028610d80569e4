"""Importing surefoot is light, and the command answers at once."""

import subprocess
import sys

import pytest

import surefoot


def loaded_after(statement: str) -> set[str]:
    code = f"import sys; {statement}; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_import_surefoot_loads_nothing_heavy() -> None:
    assert not {"torch", "transformers", "trl", "datasets", "numpy"} & loaded_after("import surefoot")


def test_the_maths_knows_no_framework() -> None:
    heavy = {"transformers", "trl", "datasets", "ray", "fastapi", "peft"}
    loaded = loaded_after("import surefoot.maths.ensemble, surefoot.maths.objectives")
    assert "torch" in loaded
    assert not heavy & loaded


def test_help_loads_nothing_heavy() -> None:
    statement = "from surefoot.cli.main import _parser; _parser().format_help()"
    assert not {"torch", "transformers", "trl", "datasets", "numpy", "rich"} & loaded_after(statement)


@pytest.mark.parametrize("name", surefoot.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(surefoot, name).__module__.startswith("surefoot.")


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = surefoot.nothing
