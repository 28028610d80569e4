"""TRL's DPO with variance-weighted log-ratios."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from surefoot.errors import ConfigError
from surefoot.rewards.source import RewardSource
from surefoot.training.bridge import PreferenceBridge, ensure_reference_on_disk
from surefoot.training.dpo_config import VarianceAwareDPOConfig
from surefoot.training.paper import PAPER
from surefoot.training.preference_weights import VARIANCES, WEIGHTS, add_variances, add_weights

__all__ = ["VarianceAwareDPOTrainer"]


class VarianceAwareDPOTrainer(PreferenceBridge):
    """Drop-in for TRL's `DPOTrainer` whose log-ratios are weighted by the variance of the rewards.

    At the optimum of E_π[r] − β D_w(π‖π₀) the rewards of two completions differ by β(w_c ℓ_c − w_r ℓ_r), with
    ℓ = ln π/π₀ (DESIGN 2.3), so the loss is −log σ(β[w_c ℓ_c − w_r ℓ_r]); in the literal form, β(w_c − w_r) is added.
    With `weights="none"` it is TRL's own DPO.

    Args:
        model: as in TRL.
        source: scores the pairs once; the variances are stored as columns. None takes the columns that are there:
            `chosen_variance` and `rejected_variance`, as `surefoot score` writes them.
        args: `VarianceAwareDPOConfig`.
        train_dataset, eval_dataset: preference pairs, not streamed. The mean weight is 1 over each.
        keywords: everything else of TRL's trainer.

    Raises:
        DataError: the variances are missing or not finite. VarianceError: the source has one member.
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
        **keywords: Any,
    ) -> None:
        settings = args if args is not None else VarianceAwareDPOConfig()

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
            if all(name in pairs.column_names for name in WEIGHTS):
                return pairs
            if source is not None and not all(name in pairs.column_names for name in VARIANCES):
                pairs = add_variances(pairs, source)
            return add_weights(pairs, settings.weight_floor, settings.weight_ceiling)

        ensure_reference_on_disk(model, settings.output_dir, settings.beta)
        super().__init__(
            model, args=settings, train_dataset=weigh(train_dataset), eval_dataset=weigh(eval_dataset), **keywords
        )
