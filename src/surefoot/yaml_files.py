"""Read YAML settings: YAML 1.2's numbers, no key twice, and limits on nesting and on aliases."""

from __future__ import annotations

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

from surefoot.errors import ConfigError

__all__ = ["parse_yaml", "read_yaml"]

_MOST = 100_000
"""Most values of a file, with aliases expanded; a study with thousands of cells has hundreds."""


_DEEPEST = 50
"""Deepest nesting of lists and mappings."""


class _Loader(yaml.SafeLoader):
    """YAML loader with YAML 1.2's numbers, since YAML 1.1 reads `1e-3` as text, which would fail only later."""

    def fetch_flow_collection_start(self, TokenClass: Any) -> None:
        if self.flow_level > _DEEPEST:
            raise RecursionError
        super().fetch_flow_collection_start(TokenClass)

    def add_indent(self, column: int) -> bool:
        if len(self.indents) > _DEEPEST:
            raise RecursionError
        return super().add_indent(column)

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None and _size(node, {}) > _MOST:
            raise yaml.YAMLError(f"its aliases unfold to more than {_MOST:,} values")
        return node

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            name = (key.tag, key.value) if isinstance(key, yaml.ScalarNode) else None
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{key.value}' stands there twice", key.start_mark
                )
            seen |= {name} - {None}
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def _size(node: yaml.Node, known: dict[int, int]) -> int:
    """Number of values below a node with its aliases expanded; more than `_MOST` for an alias inside of itself."""
    if isinstance(node, yaml.ScalarNode):
        return 1
    if id(node) not in known:
        known[id(node)] = _MOST + 1  # until it is known, as an alias to a node around it sees it
        pairs = node.value if isinstance(node, yaml.MappingNode) else [(inner,) for inner in node.value]
        known[id(node)] = 1 + sum(_size(inner, known) for pair in pairs for inner in pair)
    return known[id(node)]


def parse_yaml(text: str, where: str) -> Any:
    """Parse a YAML text.

    Args:
        where: what the text is, for errors.

    Raises:
        ConfigError: it isn't YAML, has a key twice, is nested too deeply, or its aliases unfold without end.
    """
    try:
        return yaml.load(text, _Loader)
    except RecursionError:
        raise ConfigError(f"{where} is not usable YAML: it is nested too deeply") from None
    except (yaml.YAMLError, ValueError, TypeError) as error:  # such as 2024-99-99, which looks like a date
        raise ConfigError(f"{where} is not valid YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: str | Path, what: str) -> Any:
    """Read and parse a YAML file in UTF-8.

    Args:
        what: the file's part in the command, for errors: "config file", say.

    Raises:
        ConfigError: it can't be read, or holds what `parse_yaml` refuses.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{what} {path} does not exist") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{what} {path} is not text in UTF-8 ({error.reason} at byte {error.start})") from None
    except (OSError, ValueError) as error:
        raise ConfigError(f"can't read {what} {str(path)!r}: {getattr(error, 'strerror', None) or error}") from None
    return parse_yaml(text, f"{what} {path}")
