"""Write the offline world to disk as ordinary files: a model directory, preferences and prompts."""

from __future__ import annotations

import json
from pathlib import Path

from datasets import Dataset

from surefoot.data.preferences import data_hash
from surefoot.data.world.preferences import draw_preferences
from surefoot.data.world.world import World, build_world
from surefoot.errors import ConfigError
from surefoot.files import whole_file, write_json, write_text
from surefoot.records import claim_directory, versions

__all__ = ["HELD_OUT_SEED", "export_world"]

HELD_OUT_SEED = 500_000
"""Offset from a seed to that of its held-out pairs."""


def export_world(directory: Path, *, variant: str, pairs: int, test_pairs: int, seed: int) -> dict[str, Path]:
    """Write `policy/`, preferences (parquet) and prompts (jsonl) for training and testing, and `world.json`.

    Args:
        variant: "uneven", "even" or "shared_bias".
        pairs, test_pairs: sizes of the two draws of preferences.
        seed: of the draws; the reference policy and the language don't depend on it.

    Returns:
        The paths that were written, by name.

    Raises:
        ConfigError: unknown variant, or a size below 1.
        RunError: the directory holds a world with other settings, or other files.
    """
    if min(pairs, test_pairs) < 1:
        raise ConfigError(f"pairs and test_pairs must be at least 1, got {pairs} and {test_pairs}")
    draws = {
        "train": draw_preferences(variant, pairs, seed),
        "test": draw_preferences(variant, test_pairs, seed + HELD_OUT_SEED),
    }
    settings = {"variant": variant, "pairs": pairs, "test_pairs": test_pairs, "seed": seed}
    with claim_directory(directory, "world", settings):
        world = build_world(directory)
        paths = {"policy": world.policy_path}
        for split, table in draws.items():
            paths[f"preferences ({split})"] = _write_parquet(directory / f"preferences-{split}.parquet", table)
            paths[f"prompts ({split})"] = _write_prompts(directory / f"prompts-{split}.jsonl", world, split)
        hashes = {split: data_hash(table) for split, table in draws.items()}
        write_json(directory / "world.json", settings | {"data_hashes": hashes, "versions": versions()})
    return paths


def _write_parquet(path: Path, table: Dataset) -> Path:
    with whole_file(path) as temporary:
        table.to_parquet(temporary)
    return path


def _write_prompts(path: Path, world: World, split: str) -> Path:
    return write_text(path, "".join(json.dumps({"prompt": prompt}) + "\n" for prompt in world.prompts(split)))
