"""TRL's DPO with variance-weighted log-ratios."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from datasets import Dataset

from surefoot.data.preferences import check_preferences
from surefoot.errors import ConfigError
from surefoot.rewards.anchors import AnchorStore
from surefoot.rewards.score_cache import Progress
from surefoot.rewards.source import RewardSource
from surefoot.training.checks import check_dataset, check_model, settings_of
from surefoot.training.dpo_bridge import PreferenceBridge
from surefoot.training.dpo_config import VarianceAwareDPOConfig
from surefoot.training.policy_card import PAPER, complete_card
from surefoot.training.preference_weights import VARIANCES, WEIGHTS, add_variances, add_weights, anchors_of
from surefoot.training.reference import ensure_reference_on_disk

__all__ = ["VarianceAwareDPOTrainer"]


class VarianceAwareDPOTrainer(PreferenceBridge):
    """Drop-in for TRL's `DPOTrainer` whose log-ratios are weighted by the variance of the rewards.

    At the optimum of E_π[r] − β D_w(π‖π₀) the rewards of two completions differ by β(w_c ℓ_c − w_r ℓ_r), with
    ℓ = ln π/π₀ (docs/method.md 7.5), so the loss is −log σ(β[w_c ℓ_c − w_r ℓ_r]); the literal form adds β(w_c − w_r).
    With `weights="none"` it is TRL's own DPO.

    Args:
        model: as in TRL.
        source: scores the pairs once; the variances are stored as columns. None takes the columns that are there:
            `chosen_variance` and `rejected_variance`, as `surefoot score` writes them.
        args: `VarianceAwareDPOConfig`. With `anchor_file` the variances are centred by the reference policy's
            completions, else by the dataset's own of the prompt.
        train_dataset, eval_dataset: preference pairs in any layout (`surefoot.data.rows`), not streamed. The mean
            weight is 1 over each.
        scores: directory that keeps what the source has scored, made for this source and no other; a run that was
            interrupted goes on from there. None keeps nothing.
        on_progress: called with (pairs scored, pairs).
        keywords: everything else of TRL's trainer.

    Attributes:
        anchor_shares: share of the training pairs that had each kind of anchor, logged as `anchor/…`; empty where it
            is not known, or nothing is weighted.

    Raises:
        ConfigError: `anchor_file` is given, but there is no source to score with, or the data have variances already;
            or `args` are of another class, such as TRL's own.
        DataError: a dataset is empty or lacks `chosen` or `rejected`, or variances are missing or not finite.
        ModelError: the model is neither a path nor on the hub. VarianceError: the source has one member.
    """

    _tag_names = ["trl", "dpo", "surefoot"]  # noqa: RUF012 - TRL's own class attribute
    _name = "Variance-aware DPO"
    _paper = PAPER

    def __init__(
        self,
        model: Any,
        args: VarianceAwareDPOConfig | None = None,
        *,
        train_dataset: Dataset,
        source: RewardSource | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        scores: Path | None = None,
        on_progress: Progress | None = None,
        **keywords: Any,
    ) -> None:
        settings = settings_of(args, VarianceAwareDPOConfig, type(self).__name__)
        check_model(model)
        check_dataset(train_dataset, ("chosen", "rejected"))
        check_dataset(eval_dataset, ("chosen", "rejected"), "eval_dataset")
        anchors = _anchors(settings.anchor_file, source)

        def weigh(pairs: Any) -> Any:
            if pairs is None or settings.weights == "none":
                return pairs
            if isinstance(pairs, dict):
                return {name: weigh(part) for name, part in pairs.items()}
            if not isinstance(pairs, Dataset):
                raise ConfigError(
                    f"a {type(pairs).__name__} can't be weighted: the weights need the mean variance of all pairs; "
                    "give a datasets.Dataset"
                )
            pairs = check_preferences(pairs)
            there = next((names for names in (WEIGHTS, VARIANCES) if set(names) <= set(pairs.column_names)), None)
            if there is not None and anchors is not None:
                raise ConfigError(
                    f"anchor_file is of no use: the data have {' and '.join(there)} already; leave it out, or remove "
                    "the columns"
                )
            if there == WEIGHTS:
                return pairs
            if source is not None and there is None:
                pairs = add_variances(pairs, source, anchors, cache=scores, on_progress=on_progress)
            return add_weights(pairs, settings.weight_floor, settings.weight_ceiling)

        pairs = weigh(train_dataset)
        self.anchor_shares = {} if settings.weights == "none" else anchors_of(pairs)
        ensure_reference_on_disk(model, settings.output_dir, settings.beta)
        super().__init__(model, args=settings, train_dataset=pairs, eval_dataset=weigh(eval_dataset), **keywords)

    def create_model_card(self, *positional: Any, **keywords: Any) -> None:
        """TRL's model card, whose example loads this model."""
        super().create_model_card(*positional, **keywords)
        if self.accelerator.is_main_process:
            complete_card(self.args.output_dir)

    def log(self, logs: dict[str, float], *positional: Any, **keywords: Any) -> None:
        """TRL's log, with the shares of the anchors added to the loss."""
        shares = {f"anchor/{kind}": share for kind, share in self.anchor_shares.items()} if "loss" in logs else {}
        super().log(logs | shares, *positional, **keywords)


def _anchors(path: str | None, source: RewardSource | None) -> AnchorStore | None:
    if path is None:
        return None
    if source is None:
        raise ConfigError("anchor_file centres what a reward source scores; give a source, or leave it out")
    return AnchorStore.load(path, source)
