"""The work of the commands as functions: train a source and diagnose one (docs/python.md)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

from datasets import Dataset

from surefoot.data.comparisons import load_comparisons
from surefoot.data.preferences import check_preferences, data_hash, load_preferences, split_by_prompt
from surefoot.data.usable import BadRows
from surefoot.diagnosis import check_source, diagnose, score_comparisons
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.config import RewardSourceArguments, reward_arguments
from surefoot.rewards.registry import load_source
from surefoot.rewards.run import run_reward
from surefoot.rewards.source import RewardSource

__all__ = ["diagnose_source", "train_source"]

Data: TypeAlias = str | Path | Dataset
"""A file, a directory, a name on the hub, or a dataset in memory."""


def train_source(
    dataset: Data,
    model: str | Path,
    output_dir: str | Path,
    *,
    kind: str = "linear",
    eval_dataset: Data | None = None,
    on_progress: Callable[[str, float], None] | None = None,
    **settings: Any,
) -> RewardSource:
    """Train a reward source with a variance on preference pairs, as `surefoot reward` does, and load it.

    The source is written to `output_dir/source`, with `output_dir/record.json` beside it. The same call again loads
    the finished source, or goes on where it was interrupted.

    Args:
        dataset: pairs with `chosen`, `rejected` and, perhaps, `prompt`, as text or messages.
        model: the base model: a directory or hub name. What it is depends on the kind (docs/sources.md).
        output_dir: of this source alone.
        kind: linear, heads, independent, lora, laplace, dropout, distilled, judge, criteria, panel or mixed.
        eval_dataset: held-out pairs, for calibration and accuracy; None sets `held_out` (0.1) of the prompts aside.
        on_progress: called with (what is being done, share done in [0, 1]).
        settings: any other setting of `surefoot reward --kind KIND --help`, such as `seed`, `layer` or `members`.

    Returns:
        The source, calibrated on the held-out pairs; its rewards have the unit of the fit, its variances that squared.

    Raises:
        ConfigError: an unknown setting, or one out of range. DataError: pairs are missing, empty or unreadable.
        ModelError: the model can't be loaded. RunError: `output_dir` holds another run.

    Example:

    ```python
    source = train_source("pairs.jsonl", "world/policy", "runs/reward", kind="linear", layer=0)
    rewards = source.estimate(source.score(["how do i wash my car ? "], ["with water ."]))
    rewards.mean, rewards.variance
    ```
    """
    given = {
        "model_name_or_path": str(model),
        "dataset_name": f"{len(dataset)} rows in memory" if isinstance(dataset, Dataset) else str(dataset),
        "kind": kind,
        **settings,
    }
    args = reward_arguments(output_dir=str(output_dir), **given)
    pairs = None
    if isinstance(dataset, Dataset) or eval_dataset is not None:
        args.check()
        pairs = _pairs(args, dataset, eval_dataset)
        given["data_hash"] = data_hash(*pairs)  # the directory is bound to the pairs, which have no name
    run_reward(args, given, on_progress, pairs=pairs)
    return load_source(Path(output_dir) / "source")


def _pairs(args: RewardSourceArguments, train: Data, held_out: Data | None) -> tuple[Dataset, Dataset]:
    def load(data: Data, split: str | None, name: str) -> Dataset:
        bad_rows: Any = args.bad_rows
        if isinstance(data, Dataset):
            return check_preferences(data, name, bad_rows=bad_rows)
        return load_preferences(data, split=split, config=args.dataset_config, bad_rows=bad_rows)

    pairs = load(train, args.dataset_train_split, "dataset")
    if held_out is not None:
        return pairs, load(held_out, args.dataset_test_split, "eval_dataset")
    return split_by_prompt(pairs, args.held_out, args.seed)


def diagnose_source(
    source: RewardSource | str | Path,
    dataset: Data,
    *,
    split: str | None = None,
    config: str | None = None,
    bad_rows: BadRows = "error",
    anchors: str | Path | None = None,
    far_items: int = 500,
    on_progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Measure a source on held-out preferences, as `surefoot diagnose` does: accuracy, calibration, variance.

    Args:
        source: a source, or the directory or hub name of one.
        dataset: pairs that it wasn't trained on, or RewardBench (v1 or v2).
        split, config: of a dataset that is named.
        bad_rows: "error" names unusable rows, "drop" leaves them out.
        anchors: file of `surefoot anchors` to centre variances by; None centres by a prompt's own completions.
        far_items: items whose right completions are changed into far texts; 0 for none.
        on_progress: called with (completions scored, of how many).

    Returns:
        Plain values, as in diagnose.json (docs/diagnose.md); `verdict` says whether weighting by the variance is
        likely to help.

    Raises:
        DataError: fewer than two pairs could be scored, or rows are unusable. ModelError: the source can't be loaded.
        VarianceError: the source has one member.

    Example:

    ```python
    found = diagnose_source("runs/reward/source", "held-out.jsonl")
    found["verdict"]
    ```
    """
    comparisons = load_comparisons(dataset, split=split, config=config, bad_rows=bad_rows)
    loaded = source if isinstance(source, RewardSource) else load_source(source)
    check_source(loaded)
    store = None if anchors is None else AnchorStore.load(anchors, loaded)
    scored = score_comparisons(loaded, comparisons, far_items=far_items, on_progress=on_progress)
    return diagnose(loaded, comparisons, scored, anchors=store)
