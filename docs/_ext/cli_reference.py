"""Write the reference of the command line into docs/cli/: what `surefoot <command> --help` prints."""

import contextlib
import io
import os
from pathlib import Path
from typing import Any

from surefoot.cli.main import COMMANDS, main

_WIDTH = "100"


def write(app: Any) -> None:
    """One page for each command, and their list; pages whose text is unchanged aren't touched."""
    folder = Path(app.srcdir) / "cli"
    folder.mkdir(exist_ok=True)
    pages = {f"{name}.md": page(name, what) for name, what in COMMANDS.items()}
    pages["index.md"] = index()
    for old in folder.glob("*.md"):
        if old.name not in pages:
            old.unlink()
    for name, text in pages.items():
        path = folder / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def index() -> str:
    rows = "\n".join(f"| [`surefoot {name}`]({name}.md) | {what} |" for name, what in COMMANDS.items())
    names = "\n".join(COMMANDS)
    return (
        "# Command line\n\nEvery command reads `--config file.yaml` and `--key value`, which wins over the file. "
        f"These pages are what `surefoot <command> --help` prints.\n\n| command | |\n|---|---|\n{rows}\n\n"
        f"```{{toctree}}\n:hidden:\n\n{names}\n```\n"
    )


def page(name: str, what: str) -> str:
    return f"# surefoot {name}\n\n{what[0].upper()}{what[1:]}.\n\n```text\n{help_of(name)}\n```\n"


def help_of(name: str) -> str:
    """The command's help at a width of its own, whatever the terminal's is."""
    said = io.StringIO()
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = _WIDTH
    try:
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            main([name, "--help"])
    finally:
        if before is None:
            del os.environ["COLUMNS"]
        else:
            os.environ["COLUMNS"] = before
    return said.getvalue().strip().replace("```", "'''")


def setup(app: Any) -> dict[str, bool]:
    app.connect("builder-inited", write)
    return {"parallel_read_safe": True}
