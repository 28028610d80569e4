"""Parts of the documentation's build that have rules of their own: docstrings, the command line's pages, links."""

import sys
from pathlib import Path

import pytest

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_ext"


@pytest.fixture(autouse=True)
def _extensions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(EXTENSIONS))
    for name in ("docstrings", "cli_reference", "repository_links"):
        monkeypatch.delitem(sys.modules, name, raising=False)


def test_docstrings_become_restructured_text() -> None:
    from docstrings import to_rst

    lines = [
        "Optimum π* of |r| for `a_` and rows_.",
        "",
        "    π* = π₀ exp(r/β)",
        "Args:",
        "    reward_: `(problems, actions)` r*.",
        ">>> f(2 * 3)",
        "6",
    ]
    assert to_rst(lines) == [
        "Optimum π\\* of \\|r\\| for ``a_`` and rows\\_.",
        "",
        "::",
        "",
        "    π* = π₀ exp(r/β)",
        "Args:",
        "    reward\\_: ``(problems, actions)`` r\\*.",
        "",
        ">>> f(2 * 3)",
        "6",
    ]


def test_fenced_examples_become_code_blocks() -> None:
    from docstrings import to_rst

    assert to_rst(["Example:", "", "```python", "f(x, *y)", "```"]) == [
        "**Example**", "", ".. code-block:: python", "", "    f(x, *y)", ""
    ]  # fmt: skip


def test_a_commands_page_is_its_help() -> None:
    from cli_reference import index, page

    made = page("world", "write the offline world to disk")
    assert made.startswith("# surefoot world\n\nWrite the offline world to disk.\n\n```text\nusage: surefoot world")
    assert "--test_pairs" in made
    assert "[`surefoot forecast`](forecast.md)" in index()


def test_links_out_of_docs_go_to_pages_of_the_site() -> None:
    from repository_links import rewrite

    source = ["[SECURITY.md](../../SECURITY.md) [x](../CONTRIBUTING.md#prose) [y](results/) [z](../study.md)"]
    rewrite(None, "results/risk", source)
    assert source == ["[](../security.md) [x](../contributing.md#prose) [y](results/index.md) [z](../study.md)"]
