"""`surefoot verl`: verl's own PPO command with the variance-aware penalty registered (docs/engines.md)."""

from __future__ import annotations

import argparse
import os
import sys

_MODULES = "VERL_USE_EXTERNAL_MODULES"
"""Modules that verl imports in each process; unlike the entry point's, their errors aren't swallowed."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options of verl's command that `--help` shows; Hydra reads them all, and settings as NAME=VALUE."""
    parser.add_argument("--config-path", metavar="FOLDER", help="Folder of the configuration, absolute.")
    parser.add_argument("--config-name", metavar="NAME", help="The configuration, without .yaml.")
    parser.add_argument("settings", metavar="NAME=VALUE", nargs="*", help="Settings of verl and of `surefoot`.")


def run(arguments: list[str]) -> None:
    """Check that our trainers are registered, then give the words to verl's `main_ppo`, which reads them by Hydra."""
    from surefoot.errors import ConfigError

    given = [name for name in os.environ.get(_MODULES, "").split(",") if name]
    os.environ[_MODULES] = ",".join(dict.fromkeys([*given, "surefoot.engines.verl"]))  # Ray's processes inherit it
    try:
        from surefoot.engines.verl import check_registered
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("verl", "transfer_queue", "omegaconf", "ray", "tensordict"):
            raise
        raise ConfigError(
            f"this needs verl 0.9 and TransferQueue ({error}); docs/engines.md says how to install"
        ) from None
    from verl.trainer.main_ppo import main

    check_registered()
    sys.argv = ["surefoot verl", *arguments]
    main()
