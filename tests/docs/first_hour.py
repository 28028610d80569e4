"""Run the commands of docs/first_hour.md as a newcomer's shell does, and print how long each takes.

    python -m tests.docs.first_hour

Works in a new temporary directory, and puts the times into the page and into the README's table of commands.
"""

from __future__ import annotations

import re
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
PAGE = ROOT / "docs" / "first_hour.md"
_BLOCK = re.compile(r"^```(sh|python)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def steps(page: str) -> list[tuple[str, str]]:
    """(language, text) of what is run, in order: each command of `sh` blocks, and `python` blocks as a whole."""
    found = []
    for language, text in _BLOCK.findall(page):
        parts = text.replace("\\\n", " ").splitlines() if language == "sh" else [text]
        found += [(language, part) for part in parts if part.strip()]
    return found


def main() -> None:
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for language, text in steps(PAGE.read_text(encoding="utf-8")):
            words = [sys.executable, "-c", text] if language == "python" else _words(text)
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(words, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            name = "the Python lines" if language == "python" else " ".join(text.split()[:2])
            rows.append(f"| `{name}` | {seconds:.0f} |" if language == "sh" else f"| {name} | {seconds:.0f} |")
            print(rows[-1], flush=True)
    table = "\n".join(["| command | CPU seconds |", "|---|---|", *rows])
    page = PAGE.read_text(encoding="utf-8")
    marked = re.sub(r"<!-- times -->.*<!-- /times -->", f"<!-- times -->\n{table}\n<!-- /times -->", page, flags=re.S)
    PAGE.write_text(marked, encoding="utf-8")
    README.write_text(with_seconds(README.read_text(encoding="utf-8"), rows), encoding="utf-8")


def with_seconds(readme: str, rows: list[str]) -> str:
    """The README with the times of its five commands from the page's rows, such as "| `surefoot world` | 43 |"."""
    for name, seconds in re.findall(r"`surefoot (\w+)` \| (\d+) \|", "\n".join(rows)):
        readme = re.sub(rf"^(\| `{name}` \|[^|\n]*\|) [^|\n]* \|$", rf"\1 {seconds} |", readme, flags=re.MULTILINE)
    return readme


def _words(command: str) -> list[str]:
    program, *words = command.split()
    if program != "surefoot":
        raise ValueError(f"not a command of surefoot: {command}")
    return [sys.executable, "-m", "surefoot.cli.main", *words]


if __name__ == "__main__":
    main()
