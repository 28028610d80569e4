"""Write files whole or not at all: to a temporary name beside the target, which is then renamed.

A temporary name begins with a dot and the target's name and ends in `.tmp`. Those that a killed process left are
removed by the next writer of the same target.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from glob import escape
from pathlib import Path
from typing import Any

from surefoot.errors import RunError
from surefoot.locks import open_locked, release

__all__ = [
    "fingerprint",
    "read_json",
    "remove_abandoned",
    "scratch",
    "sweep",
    "whole_directory",
    "whole_file",
    "write_json",
    "write_text",
]

_SUFFIX = ".tmp"


@contextmanager
def scratch(target: str | Path, *, directory: bool = False) -> Iterator[Path]:
    """Give an empty temporary file or directory beside `target`; it is removed after the block unless it was renamed.

    Temporaries of killed writers of the same `target` are removed first. A living writer holds a lock on its own.
    """
    final = Path(target)
    final.parent.mkdir(parents=True, exist_ok=True)
    sweep(final)
    temporary, handle = _new(final, directory)
    try:
        yield temporary
    finally:
        _remove(temporary)
        release(handle)


def _new(final: Path, directory: bool) -> tuple[Path, int]:
    while True:
        if directory:
            path = Path(tempfile.mkdtemp(_SUFFIX, f".{final.name}.", final.parent))
        else:
            opened, name = tempfile.mkstemp(_SUFFIX, f".{final.name}.", final.parent)
            os.close(opened)
            path = Path(name)
        with suppress(FileNotFoundError):  # another writer of this target took it for a leftover
            handle = open_locked(path)
            if handle is not None:
                return path, handle


def sweep(final: Path) -> None:
    """Remove the temporaries of killed writers of `final`."""
    for path in final.parent.glob(f".{escape(final.name)}.*{_SUFFIX}"):
        remove_abandoned(path)


def remove_abandoned(path: Path) -> None:
    """Remove a temporary or a lock file, unless a living process holds it."""
    with suppress(FileNotFoundError):
        handle = open_locked(path, unsupported=False)
        if handle is not None:
            _remove(path)
            release(handle)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def whole_file(path: str | Path) -> Iterator[Path]:
    """Give a temporary file that becomes `path` if the block succeeds, and is removed if it raises."""
    with scratch(path) as temporary:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part of it."""
    with whole_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return Path(path)


def write_json(path: str | Path, values: Any) -> Path:
    """Write standard JSON: NaN and infinities are refused, and keys keep their order."""
    return write_text(path, json.dumps(values, indent=2, allow_nan=False, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """Read JSON, naming the file if it can't be read.

    Raises:
        RunError: the file is missing, can't be read, or is not JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} does not exist") from None
    except OSError as error:
        raise RunError(f"can't read {path}: {error.strerror}") from None
    except json.JSONDecodeError as error:
        raise RunError(
            f"{path} is not valid JSON (line {error.lineno}: {error.msg}); delete it or restore it"
        ) from None
    except (RecursionError, ValueError) as error:  # nested too deeply; not UTF-8; a number of thousands of digits
        raise RunError(f"{path} is not usable JSON ({error}); delete it or restore it") from None


@contextmanager
def whole_directory(target: str | Path) -> Iterator[Path]:
    """Give a temporary directory that becomes `target` if the block succeeds, and is removed if it raises.

    An existing `target` is replaced only then, and is never there in part.
    """
    final = Path(target)
    with scratch(final, directory=True) as temporary:
        yield temporary
        os.chmod(temporary, 0o755)
        if final.exists():
            with scratch(final, directory=True) as old:
                os.replace(final, old)
                os.replace(temporary, final)
        else:
            os.replace(temporary, final)


def fingerprint(values: Any) -> str:
    """Hash of the values' canonical JSON: sixteen hex digits of a SHA-256."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
