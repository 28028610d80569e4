"""The README and the documentation's pages: tables agree with their data, links lead somewhere, one version."""

import importlib.util
import pydoc
import re
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

import surefoot
from surefoot.files import read_json
from tests.docs.first_hour import PAGE, ROOT

UNCHECKED = 44
"""Test modules that mypy doesn't check yet: a number to lower, never to raise."""
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = sorted([*ROOT.glob("*.md"), *(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)])
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?!https?:|mailto:|file:)([^)\s#]*)(#[^)\s]*)?\)")


def load(name: str) -> ModuleType:
    """A file of the repository that isn't in a package, as a module."""
    path = ROOT / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def anchors(text: str) -> set[str]:
    """Addresses of a page's headings, as code hosts and the site make them."""
    headings = re.findall(r"^#{1,4} (.+)$", _FENCE.sub("", text), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", each).lower()) for each in headings]
    return {each.strip().replace(" ", "-") for each in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_to_files_lead_somewhere(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    broken = []
    for target, anchor in _LINK.findall(_FENCE.sub("", text)):
        path = (page.parent / target).resolve() if target else page
        if not path.exists():
            broken.append(target)
        elif anchor and path.suffix == ".md" and anchor[1:] not in anchors(path.read_text(encoding="utf-8")):
            broken.append(target + anchor)
    assert broken == []


def test_every_page_is_in_the_site() -> None:
    """Named in a table of contents, by itself or by a pattern."""
    listed = set()
    for page in PAGES:
        if page.is_relative_to(ROOT / "docs"):
            for block in re.findall(r"^```\{toctree\}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S):
                names = [line for line in block.splitlines() if line and not line.startswith(":")]
                listed |= {path for name in names for path in page.parent.glob(f"{name}.md")}
    docs = {page for page in PAGES if page.is_relative_to(ROOT / "docs") and "cli" not in page.parts}
    assert {str(page.relative_to(ROOT)) for page in docs - listed} == {"docs/index.md"}


def test_the_readmes_table_and_picture_are_those_of_the_records() -> None:
    made = load("benchmarks/front_page.py")
    assert made.with_table(README, made.table(read_json(made.RESULTS))) == README
    assert made.picture(read_json(made.CURVES)) == made.PICTURE.read_text(encoding="utf-8")
    finals = {row["method"]: row for row in read_json(made.RESULTS) if row["study"] == "uneven"}
    assert set(made.METHODS) <= set(finals)


def test_the_table_of_five_completions_is_what_the_script_prints() -> None:
    made = load("benchmarks/concepts.py")
    page = (ROOT / "docs" / "why.md").read_text(encoding="utf-8")
    for name, policy in made.optima().items():
        assert f"| {name} | {' | '.join(f'{p:.2f}' for p in policy)} | {made.true_reward(policy):.2f} |" in page
    assert made.picture(made.optima()) == made.PICTURE.read_text(encoding="utf-8")


def test_the_readmes_prose_has_no_decimals() -> None:
    prose = [line for line in _FENCE.sub("", README).splitlines() if not line.startswith("|")]
    prose = [re.sub(r"`[^`]*`|arXiv:\S+|Apache-2\.0|Python \d+\.\d+", "", line) for line in prose]
    assert [line for line in prose if re.search(r"\d*\.\d", line)] == []


def test_every_command_of_the_readme_has_a_measured_time() -> None:
    rows = re.findall(r"^\| `(\w+)` \|.*\| (\S+) \|$", README, re.MULTILINE)
    assert [name for name, _ in rows] == ["world", "reward", "diagnose", "forecast", "rloo"]
    page = PAGE.read_text(encoding="utf-8")
    assert [seconds for name, seconds in rows if f"| `surefoot {name}` | {seconds} |" not in page] == []


def test_on_the_package_index_no_link_is_relative() -> None:
    hook = load("hatch_build.py")
    bare = hook.for_index(README, None)
    assert _LINK.findall(_FENCE.sub("", bare)) == []
    assert "![" not in bare
    assert "documentation" in bare
    linked = hook.for_index(README, "https://host.example/a/b/")
    assert "](https://host.example/a/b/raw/HEAD/docs/figures/gain.svg)" in linked
    assert "[contributing](https://host.example/a/b/blob/HEAD/CONTRIBUTING.md)" in linked
    assert _LINK.findall(_FENCE.sub("", linked)) == []


def test_the_version_is_the_packages_everywhere() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == surefoot.__version__
    assert f"## {surefoot.__version__}" in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert 'dynamic = ["readme", "version"]' in (ROOT / "pyproject.toml").read_text(encoding="utf-8")


def test_fewer_and_fewer_tests_are_not_type_checked() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["mypy"]["overrides"]
    unchecked = [name for each in settings if each.get("ignore_errors") for name in each["module"]]
    assert len(unchecked) <= UNCHECKED
    missing = [name for name in unchecked if not (ROOT / f"{name.replace('.', '/')}.py").exists()]
    assert missing == []


def test_what_the_api_reference_names_is_there() -> None:
    named = [
        name
        for page in (ROOT / "docs" / "api").glob("*.md")
        for name in re.findall(r"^\.\. auto\w+:: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    assert len(named) > 20
    assert [name for name in named if pydoc.locate(name) is None] == []
