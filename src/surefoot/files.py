"""Files are written whole or not at all: to a temporary name beside the target, then renamed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from surefoot.errors import RunError

__all__ = ["fingerprint", "read_json", "whole_directory", "write_json", "write_text"]


def write_text(path: str | Path, text: str) -> Path:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return target


def write_json(path: str | Path, values: Any) -> Path:
    """Write JSON that any parser reads: NaN and infinities are refused, keys keep their order."""
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
    """Give a temporary directory that becomes `target` if the block ends well, and vanishes if it doesn't.

    An existing `target` is replaced only then.
    """
    final = Path(target)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=final.parent, prefix=f".{final.name}."))
    try:
        yield temporary
        os.chmod(temporary, 0o755)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def fingerprint(values: Any) -> str:
    """Sixteen hex digits of the SHA-256 of the values' canonical JSON; equal settings give equal fingerprints."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
