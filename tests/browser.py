"""Headless Chromium: driven by Playwright, and a page's size in a frame of a given width with what is drawn in it."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _program() -> str:
    """The system's Chromium; skips the test where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("needs Chromium on the PATH")
    return program


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, driven by Playwright's synchronous interface."""
    program = _program()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield opened
        opened.close()


def chromium(arguments: list[str], folder: Path) -> str:
    quiet = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
             "--disable-component-update", "--disable-sync", f"--user-data-dir={folder / 'profile'}"]  # fmt: skip
    done = subprocess.run(
        [_program(), "--headless", "--no-sandbox", *quiet, *arguments], capture_output=True, text=True, timeout=60
    )
    return done.stdout


def measure_in_frame(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """{"wide": widest content, "figures": heights of the figures, "focus": boxes that the keyboard reaches}.

    Args:
        folder: a scratch directory; the page is loaded from where it lies.
    """
    probe = folder / "probe.html"
    probe.write_text(
        f'<iframe id="f" src="{page.as_uri()}" style="width:{width}px;height:3000px;border:0"></iframe><script>'
        "f.onload=()=>{const d=f.contentDocument.documentElement;"
        "const s=[...f.contentDocument.querySelectorAll('svg')];"
        "document.title=JSON.stringify({wide:d.scrollWidth,figures:s.map(x=>Math.round(x.getBoundingClientRect().height)),"
        "focus:f.contentDocument.querySelectorAll('[tabindex]').length})}</script>"
    )
    dom = chromium(
        ["--allow-file-access-from-files", "--virtual-time-budget=4000", "--dump-dom", probe.as_uri()], folder
    )
    title = re.search(r"<title>(.*?)</title>", dom)
    assert title is not None, dom[:500]
    found: dict[str, Any] = json.loads(title.group(1))
    return found
