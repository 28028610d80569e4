"""Write the `record.json` of a run, and claim output directories so that each holds one run."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from surefoot.errors import RunError
from surefoot.files import fingerprint, read_json, remove_abandoned, write_json
from surefoot.locks import LOCK, hold
from surefoot.redaction import redacted
from surefoot.setting_names import newer_names

__all__ = ["claim_directory", "commit", "holds_other_files", "make_record", "provenance", "versions", "write_record"]

RECORD = "record.json"
CLAIM = "run.json"
_OF_SAFETENSORS = re.compile(r"\.tmp[A-Za-z0-9]{6}")
"""What safetensors, from 0.8 on, leaves of a file where a process is killed while it writes one."""
_PACKAGES = ("torch", "transformers", "trl", "peft", "datasets", "accelerate", "numpy", "scipy")


def versions() -> dict[str, str]:
    """Versions of surefoot, Python and the packages that results depend on."""
    packages = {"surefoot": metadata.version("surefoot"), "python": platform.python_version()}
    for name in _PACKAGES:
        try:
            packages[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return packages


def commit() -> str | None:
    """Commit of surefoot's source, with "+changes" if the source differs from it; None outside a checkout."""
    folder = Path(__file__).parent
    try:
        top = _git(folder, "rev-parse", "--show-toplevel")
        if not Path(__file__).is_relative_to(Path(top) / "src"):
            return None
        changed = _git(folder, "status", "--porcelain", "--", ".")
        return _git(folder, "rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return None


def _git(folder: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(folder), *words], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def make_record(
    kind: str, config: dict[str, Any], *, seed: int | None, data_hash: str | None, metrics: dict[str, Any]
) -> dict[str, Any]:
    """Make a run's record: settings (without secrets), seed, data hash, commit, versions and metrics."""
    return {
        "kind": kind,
        **provenance(config),
        "seed": seed,
        "data_hash": data_hash,
        "metrics": metrics,
    }


def provenance(config: dict[str, Any]) -> dict[str, Any]:
    """When, with which settings (secrets left out), and with which commit and versions a run was made."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": redacted(config),
        "commit": commit(),
        "versions": versions(),
    }


def write_record(directory: str | Path, record: dict[str, Any]) -> Path:
    """Write a record to `record.json` in a directory."""
    return write_json(Path(directory) / RECORD, record)


@contextmanager
def claim_directory(
    directory: str | Path, kind: str, settings: dict[str, Any], *, main_process: bool = True
) -> Iterator[Path]:
    """Claim an output directory for this run, or for resuming the same run, for the time of the block.

    The settings' fingerprint is kept in `run.json`. A directory with another run's settings is refused, so that
    nothing is overwritten and nothing old is taken for new, unless that run left nothing but `run.json`. So is a
    directory that another process works in. The directory of a finished run (it has a record) isn't locked, since
    nothing will be written. Secrets are neither kept nor compared.

    Args:
        main_process: of the processes of one run, only the main one claims.

    Raises:
        RunError: the directory holds another run, or files that surefoot didn't write, or is in use.
    """
    target, settings = Path(directory), redacted(settings)
    claim = {"kind": kind, "fingerprint": fingerprint(settings), "settings": settings}
    if main_process:
        _check_claim(target, claim)
    if not main_process or (target / RECORD).exists():
        remove_abandoned(target / LOCK)  # of a run that was killed after its record was there
        yield target
        return
    with hold(target / LOCK):
        _check_claim(target, claim)  # another process may have been first
        if not (target / CLAIM).exists() or read_json(target / CLAIM) != claim:
            write_json(target / CLAIM, claim)
        for path in target.rglob(".tmp??????"):
            if _OF_SAFETENSORS.fullmatch(path.name) and path.is_file():
                path.unlink()
        yield target


def _check_claim(target: Path, claim: dict[str, Any]) -> None:
    path = target / CLAIM
    if not path.exists():
        if holds_other_files(target, CLAIM):
            raise RunError(f"{target} is not empty and holds no surefoot run; choose another output directory")
        return
    held = read_json(path)
    if not isinstance(held, dict) or not {"kind", "fingerprint", "settings"} <= set(held):
        raise RunError(f"{path} is no record of a run; choose another output directory, or delete it")
    same = held["kind"] == claim["kind"] and claim["fingerprint"] in (
        held["fingerprint"],
        fingerprint(newer_names(held["kind"], held["settings"])),  # a run that was begun under older names
    )
    if not same and holds_other_files(target, CLAIM, CLAIM):  # a run that failed at once has left nothing else
        raise RunError(
            f"{target} holds another run ({_difference(held, claim)}); choose another output directory, or delete "
            "this one"
        )


def holds_other_files(directory: Path, first: str, *before: str) -> bool:
    """Whether a directory has files that a run doesn't write before its file `first`.

    Args:
        before: files that the run writes before `first`.
    """
    ours = (LOCK, f".{first}.")
    names = [] if not directory.is_dir() else [path.name for path in directory.iterdir()]
    return any(name not in before and not name.startswith(ours) for name in names)


def _difference(held: dict[str, Any], wanted: dict[str, Any]) -> str:
    if held["kind"] != wanted["kind"]:
        return f"a {held['kind']} run, this is a {wanted['kind']} run"
    keys = sorted(set(held["settings"]) | set(wanted["settings"]))
    different = [key for key in keys if held["settings"].get(key) != wanted["settings"].get(key)]
    shown = ", ".join(
        f"{key}: {held['settings'].get(key)!r} there, {wanted['settings'].get(key)!r} here" for key in different[:3]
    )
    return shown or "its settings differ"
