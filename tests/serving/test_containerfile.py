"""The container file names files that are enough to build the package, and a command that `surefoot serve` reads."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from surefoot.cli.parsing import parse
from surefoot.cli.serve import option_types
from surefoot.errors import ConfigError

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "src" / "surefoot" / "serving" / "Containerfile").read_text(encoding="utf-8").splitlines()


def words(instruction: str) -> list[list[str]]:
    return [line.split()[1:] for line in LINES if line.startswith(f"{instruction} ")]


def test_what_is_copied_builds_the_package(tmp_path: Path) -> None:
    for *sources, target in words("COPY"):
        for source in sources:
            if (ROOT / source).is_dir():
                shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(ROOT / source, tmp_path / target)
    code = "import hatchling.build as b; print(b.build_wheel('.'))"
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    with zipfile.ZipFile(tmp_path / run.stdout.split()[-1]) as wheel:
        names = wheel.namelist()
        described = wheel.read(next(name for name in names if name.endswith("/METADATA"))).decode()
    installed = next(re.findall(r"\.\[(\w+)\]", line) for line in LINES if "pip install" in line)
    assert installed
    assert all(f"Provides-Extra: {extra}\n" in described for extra in installed)
    assert "surefoot/cli/serve.py" in names


def test_the_command_is_one_that_serve_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [json.loads(line.split(maxsplit=1)[1]) for line in LINES if line.startswith(("ENTRYPOINT", "CMD"))]
    program, name, *options = [word for part in command for word in part]
    scripts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["scripts"]
    assert (program in scripts, name) == (True, "serve")
    (args,) = parse(option_types(), options, "serve")
    assert args.reward_source == "/source"
    assert [str(args.port)] in words("EXPOSE")
    monkeypatch.delenv(args.key_variable, raising=False)
    with pytest.raises(ConfigError, match="holds no key"):
        args.check()
    monkeypatch.setenv(args.key_variable, "secret")
    args.check()
