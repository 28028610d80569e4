"""`surefoot openrlhf`: OpenRLHF's own PPO command with the variance-aware penalty (docs/engines.md)."""

from __future__ import annotations

import argparse

_ENGINE = ("openrlhf", "vllm", "deepspeed", "ray", "flash_attn")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add our options, and a place for those of OpenRLHF's `train_ppo_ray`, which reads them itself."""
    _add_own(parser)
    parser.add_argument("options", metavar="--NAME VALUE", nargs="*", help="Options of OpenRLHF's train_ppo_ray.")


def _add_own(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--surefoot.target_kl",
        dest="target_kl",
        type=float,
        metavar="NATS",
        help="Budget in nats per sequence, to which β adapts; β is --algo.kl.init_coef throughout if none.",
    )
    parser.add_argument(
        "--surefoot.reference_variance",
        dest="reference_variance",
        type=float,
        metavar="VARIANCE",
        help="Weight is variance over this, in reward²; the mean variance of the run's first batch if none.",
    )
    parser.add_argument(
        "--surefoot.anchor",
        dest="anchor",
        default="file",
        choices=("file", "calibration"),
        help="'file' refuses rewards whose prompt has no anchor at the server; 'calibration' takes them.",
    )


def run(arguments: list[str]) -> None:
    """Take our options out of the words, and give the others to OpenRLHF."""
    from surefoot.engines.settings import EngineSettings
    from surefoot.errors import ConfigError

    parser = argparse.ArgumentParser(prog="surefoot openrlhf", add_help=False, allow_abbrev=False)
    _add_own(parser)
    own, rest = parser.parse_known_args(arguments)
    try:
        from surefoot.engines.openrlhf import launch
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in _ENGINE:
            raise
        raise ConfigError(f"this needs OpenRLHF 0.11 ({error}); docs/engines.md says how to install") from None
    launch(rest, EngineSettings(**vars(own)))
