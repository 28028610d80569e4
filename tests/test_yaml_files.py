"""YAML that a settings file can't mean is refused in one line, and quickly."""

import time
from pathlib import Path

import pytest

from surefoot.errors import ConfigError
from surefoot.yaml_files import parse_yaml, read_yaml

BOMB = "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}, *a{i - 1}, *a{i - 1}]\n" for i in range(1, 40))
MERGED = "a0: &a0 {k0: 1}\n" + "".join(
    f"a{i}: &a{i} {{<<: [*a{i - 1}, *a{i - 1}, *a{i - 1}]}}\n" for i in range(1, 40)
)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        pytest.param(BOMB, "aliases unfold to more than 100,000 values", id="alias bomb"),
        pytest.param(MERGED, "aliases unfold to more than 100,000 values", id="merge bomb"),
        pytest.param("a: &a [*a]", "aliases unfold", id="alias to itself"),
        pytest.param("[" * 20_000, "nested too deeply", id="deep list"),
        pytest.param("{a: " * 20_000, "nested too deeply", id="deep mapping"),
        pytest.param("".join(" " * i + "a:\n" for i in range(2_000)), "nested too deeply", id="deep block"),
        ("beta: 1\nbeta: 2", "the key 'beta' stands there twice"),
        ("a: {b: 1, c: 2, 'b': 3}", "the key 'b' stands there twice"),
        ("a: !!python/object/apply:os.system [x]", "could not determine a constructor"),
        ("a: [1", "is not valid YAML"),
        ("a: 2024-99-99", "is not valid YAML"),
        ("? {b: 1}\n: 2", "is not valid YAML"),
        ("a: \0", "is not valid YAML"),
    ],
)
def test_refused(text: str, said: str) -> None:
    start = time.perf_counter()
    with pytest.raises(ConfigError, match=said) as caught:
        parse_yaml(text, "config file x")
    assert time.perf_counter() - start < 2
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_ordinary_aliases_and_merges() -> None:
    text = "a: &a {x: 1, y: 1e-3}\nb: {<<: *a, x: 2}\nc: [*a, *a]"
    assert parse_yaml(text, "x") == {
        "a": {"x": 1, "y": 0.001},
        "b": {"x": 2, "y": 0.001},
        "c": [{"x": 1, "y": 0.001}] * 2,
    }


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ("title: café".encode("latin-1"), "is not text in UTF-8"),
        ("title: a".encode("utf-16"), "is not text in UTF-8"),
        (None, "Is a directory"),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, held: bytes | None, said: str) -> None:
    path = tmp_path / "c.yaml"
    path.mkdir() if held is None else path.write_bytes(held)
    with pytest.raises(ConfigError, match=said):
        read_yaml(path, "config file")


def test_a_name_too_long() -> None:
    with pytest.raises(ConfigError, match="File name too long"):
        read_yaml("x" * 5000, "config file")
