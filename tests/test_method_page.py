"""docs/method.md: the sections that code cites exist, and what the page names exists."""

import re
from importlib.util import find_spec
from itertools import chain
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "method.md").read_text(encoding="utf-8")
FOLDERS = ("src", "tests", "benchmarks", "docs")
CITATION = re.compile(r"method\.md\)? (\d+(?:\.\d+)?)(?: (?:and|to) (\d+(?:\.\d+)?))?")


def sections() -> set[str]:
    return set(re.findall(r"^## (\d+)\.", PAGE, re.MULTILINE)) | set(
        re.findall(r"^\*\*(\d+\.\d+) ", PAGE, re.MULTILINE)
    )


def test_sections_that_are_cited_exist() -> None:
    files = chain.from_iterable((ROOT / name).rglob(kind) for name in FOLDERS for kind in ("*.py", "*.md"))
    cited: dict[str, Path] = {}
    for file in files:
        for found in CITATION.finditer(file.read_text(encoding="utf-8")):
            cited |= dict.fromkeys(filter(None, found.groups()), file)
    assert len(cited) > 10  # or the pattern no longer matches how the page is cited
    assert {number: str(file) for number, file in cited.items() if number not in sections()} == {}


def test_what_the_page_names_exists() -> None:
    tests = re.findall(r"`(tests/[\w/]+\.py)`", PAGE)
    modules = re.findall(r"`(surefoot\.[\w.]+)`", PAGE)
    functions = re.findall(r"`((?!surefoot)[a-z_]+)\.([\w]+)`", PAGE)
    assert min(len(tests), len(modules), len(functions)) > 5
    assert [name for name in tests if not (ROOT / name).exists()] == []
    assert [name for name in modules if find_spec(name) is None] == []
    homes = list((ROOT / "src").rglob("*.py"))
    for module, function in functions:
        defined = re.compile(rf"^(?:def|class) {function}\b", re.MULTILINE)
        assert any(path.stem == module and defined.search(path.read_text(encoding="utf-8")) for path in homes), (
            function
        )
