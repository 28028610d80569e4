"""`surefoot report`: make a study's report from its records, without running anything."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import NoReturn

from surefoot.errors import ConfigError


def run(arguments: list[str]) -> None:
    """Print the table and write the report; imports no torch."""
    parser = argparse.ArgumentParser(prog="surefoot report", allow_abbrev=False)
    parser.error = _refuse  # type: ignore[method-assign]
    add_options(parser)
    options = parser.parse_args(arguments)
    from rich.console import Console

    from surefoot.reports.study import FILES, FORMATS, write_report

    formats = options.format or FORMATS
    if unknown := [name for name in formats if name not in FORMATS]:
        raise ConfigError(f"unknown format '{unknown[0]}' (known: {', '.join(FORMATS)})")
    console = Console()
    console.print(write_report(options.directory, formats))
    for name in (name for kind in FORMATS if kind in formats for name in FILES[kind]):
        path = (options.directory / name).resolve()
        console.print(f"report: {path.as_uri()}" if path.suffix == ".html" else f"figures: {path}", soft_wrap=True)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("directory", type=Path, help="the output directory of `surefoot study` or `surefoot demo`")
    parser.add_argument("--format", nargs="+", metavar="NAME", help="any of html, json, csv; all of them if not given")


def _refuse(message: str) -> NoReturn:
    raise ConfigError(f"{message}; see `surefoot report --help`")
