"""Settings of `surefoot reward`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from surefoot.errors import ConfigError
from surefoot.rewards.train_heads import HeadsConfig
from surefoot.rewards.train_independent import IndependentConfig

__all__ = ["RewardSourceArguments"]


@dataclass
class RewardSourceArguments:
    """What to train, on what, and where it goes. Fields that a kind doesn't use are refused if given."""

    output_dir: str = field(metadata={"help": "The source's directory; the same again resumes."})
    model_name_or_path: str = field(
        metadata={"help": "Base model: a directory, a hub name, or package:NAME/FOLDER inside an installed package."}
    )
    dataset_name: str = field(metadata={"help": "Preferences: parquet, json, jsonl, csv, directory or hub name."})
    kind: str = field(default="heads", metadata={"help": "heads (shared frozen trunk) or independent (full models)."})
    dataset_config: str | None = None
    dataset_train_split: str | None = field(default=None, metadata={"help": "Split to train on; all rows if none."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Held-out split; if none, `held_out` of the prompts are set aside."}
    )
    held_out: float = field(default=0.1, metadata={"help": "Share of prompts held out where there is no test split."})
    bad_rows: str = field(default="error", metadata={"help": "error names unusable rows, drop leaves them out."})
    members: int = field(default=5, metadata={"help": "K."})
    seed: int = 0
    max_length: int = field(default=512, metadata={"help": "In tokens."})
    overlong: str = field(default="drop", metadata={"help": "Pairs over max_length: drop, or truncate on the left."})
    bootstrap: str | None = field(
        default=None, metadata={"help": "heads: none, poisson, exponential; independent: none, resample."}
    )
    learning_rate: float | None = field(default=None, metadata={"help": "The kind's usual one if not given."})
    epochs: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = field(default=None, metadata={"help": "heads only."})
    head: str | None = field(default=None, metadata={"help": "heads only: linear or mlp."})
    pooling: str | None = field(default=None, metadata={"help": "heads only: last, mean or cls."})
    layer: int | None = field(default=None, metadata={"help": "heads only: hidden state to read, −1 the last."})
    prior_scale: float | None = field(
        default=None, metadata={"help": "heads only: size of the random prior functions."}
    )

    def heads(self) -> HeadsConfig:
        """The settings of a heads source."""
        given = self._given(
            (
                "bootstrap",
                "learning_rate",
                "epochs",
                "batch_size",
                "weight_decay",
                "head",
                "pooling",
                "layer",
                "prior_scale",
            )
        )
        if "epochs" in given:
            given["epochs"] = int(given["epochs"])
        return HeadsConfig(**self._common(), **given)

    def independent(self) -> IndependentConfig:
        """The settings of an independent source.

        Raises:
            ConfigError: a setting of heads is given.
        """
        foreign = self._given(("weight_decay", "head", "pooling", "layer", "prior_scale"))
        if foreign:
            raise ConfigError(f"{', '.join(foreign)} belong to kind: heads, but kind is independent; remove them")
        return IndependentConfig(
            **self._common(), **self._given(("bootstrap", "learning_rate", "epochs", "batch_size"))
        )

    def check(self) -> None:
        """Refuse values that no kind knows, before anything is loaded."""
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        if self.members < 1:
            raise ConfigError(f"members must be at least 1, got {self.members}")
        if self.bootstrap is not None and self.bootstrap not in _BOOTSTRAPS[self.kind]:
            raise ConfigError(
                f"bootstrap of kind {self.kind} must be one of {', '.join(_BOOTSTRAPS[self.kind])}, got "
                f"'{self.bootstrap}'"
            )
        _ = self.heads() if self.kind == "heads" else self.independent()

    def _common(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("members", "seed", "max_length", "overlong")}

    def _given(self, names: tuple[str, ...]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": ("heads", "independent"),
    "bad_rows": ("error", "drop"),
    "overlong": ("drop", "truncate"),
}
_BOOTSTRAPS = {"heads": ("none", "poisson", "exponential"), "independent": ("none", "resample")}
