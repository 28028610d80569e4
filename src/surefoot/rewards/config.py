"""Settings of `surefoot reward`."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from surefoot.errors import ConfigError
from surefoot.ranges import check_ranges

__all__ = ["RewardSourceArguments"]


@dataclass
class RewardSourceArguments:
    """What to train, on what, and where it goes. Fields that a kind doesn't use are refused if given."""

    output_dir: str = field(metadata={"help": "The source's directory; the same again resumes."})
    model_name_or_path: str = field(
        metadata={"help": "Base model: a directory, a hub name, or package:NAME/FOLDER inside an installed package."}
    )
    dataset_name: str = field(metadata={"help": "Preferences: parquet, json, jsonl, csv, directory or hub name."})
    kind: str = field(
        default="heads",
        metadata={"help": "linear, heads, independent, lora, laplace, dropout, distilled, judge or mixed."},
    )
    dataset_config: str | None = None
    dataset_train_split: str | None = field(default=None, metadata={"help": "Split to train on; all rows if none."})
    dataset_test_split: str | None = field(
        default=None, metadata={"help": "Held-out split; if none, `held_out` of the prompts are set aside."}
    )
    held_out: float = field(default=0.1, metadata={"help": "Share of prompts held out where there is no test split."})
    bad_rows: str = field(default="error", metadata={"help": "error names unusable rows, drop leaves them out."})
    members: int | None = field(default=None, metadata={"help": "K; heads 50, other ensembles 5 if not given."})
    seed: int = 0
    scale_members: bool = field(
        default=False, metadata={"help": "Divide each member by its standard deviation on the calibration set."}
    )
    variance: str = field(
        default="moderated",
        metadata={
            "help": "moderated; smoothed: fitted to the features of a frozen trunk; or raw: the sample variance, "
            "which from few members is riskier than none."
        },
    )
    max_length: int = field(default=512, metadata={"help": "In tokens."})
    overlong: str = field(default="drop", metadata={"help": "Pairs over max_length: drop, or truncate on the left."})
    bootstrap: str | None = field(
        default=None,
        metadata={"help": "heads, lora: none, poisson, exponential; independent: none, resample, disjoint."},
    )
    learning_rate: float | None = field(default=None, metadata={"help": "The kind's usual one if not given."})
    epochs: float | None = None
    batch_size: int | None = None
    weight_decay: float | None = field(default=None, metadata={"help": "heads, lora."})
    head: str | None = field(default=None, metadata={"help": "heads: linear or mlp."})
    pooling: str | None = field(
        default=None, metadata={"help": "linear, heads, distilled, variance: smoothed: last, mean or cls."}
    )
    layer: int | None = field(
        default=None,
        metadata={"help": "linear, heads, distilled, variance: smoothed: hidden state to read, −1 the last."},
    )
    penalty: float | None = field(
        default=None, metadata={"help": "linear: of ‖w‖²/2 on standardised features; chosen by penalty_by if none."}
    )
    penalty_by: str | None = field(
        default=None, metadata={"help": "linear: evidence, or held_out: likelihood over five folds."}
    )
    covariance: str | None = field(
        default=None, metadata={"help": "linear: laplace, the posterior's; sandwich, over fresh pairs and labels."}
    )
    prior_scale: float | None = field(default=None, metadata={"help": "heads: size of the random prior functions."})
    trunk_epochs: int | None = field(
        default=None, metadata={"help": "heads: epochs of trunk and heads together, after the heads; 0 freezes it."}
    )
    trunk_learning_rate: float | None = field(default=None, metadata={"help": "heads: of those epochs."})
    other_models: list[str] | None = field(
        default=None,
        metadata={
            "help": "independent: further base models; members start from all of them in turn. mixed: further sources."
        },
    )
    rank: int | None = field(
        default=None,
        metadata={"help": "lora: of each adapter; independent: of PEFT's adapters, merged; laplace: of low_rank."},
    )
    alpha: float | None = field(
        default=None, metadata={"help": "lora, independent: the update is alpha / rank times B A."}
    )
    targets: list[str] | None = field(
        default=None, metadata={"help": "lora, independent: names of the adapted linear layers."}
    )
    bf16: bool | None = field(
        default=None, metadata={"help": "independent: mixed precision in training; on accelerators if not given."}
    )
    start: float | None = field(
        default=None, metadata={"help": "lora, dropout: share of the depth below which members share everything."}
    )
    structure: str | None = field(default=None, metadata={"help": "laplace: full, low_rank or diagonal."})
    precision: float | None = field(default=None, metadata={"help": "laplace: of the prior; by evidence if none."})
    distance: float | None = field(default=None, metadata={"help": "laplace: size of the distance term, 0 for none."})
    distance_layer: int | None = field(default=None, metadata={"help": "laplace: hidden state to measure it in."})
    rate: float | None = field(default=None, metadata={"help": "dropout: share of the features that a member lacks."})
    teacher: str | None = field(default=None, metadata={"help": "distilled: the source whose variance is learnt."})
    endpoint: str | None = field(default=None, metadata={"help": "judge: address of an OpenAI-compatible server."})
    key_variable: str | None = field(
        default=None, metadata={"help": "judge: environment variable that holds the key."}
    )
    rubric: str | None = field(default=None, metadata={"help": "judge: one of the library, or your own YAML file."})
    wordings: int | None = field(default=None, metadata={"help": "judge: how many of the rubric's; all if not given."})
    samples: int | None = field(default=None, metadata={"help": "judge: replies for each wording."})
    temperature: float | None = field(default=None, metadata={"help": "judge: of the replies."})
    references: str | None = field(
        default=None, metadata={"help": "judge: prompt and reference; completions are compared in both positions."}
    )
    reading: str | None = field(default=None, metadata={"help": "judge: samples, or logprobs of the rating's token."})
    top_logprobs: int | None = field(
        default=None,
        metadata={"help": "judge: reading logprobs: alternatives asked for; most allowed if none."},
    )
    reason: bool | None = field(default=None, metadata={"help": "judge: ask for a short reason before the rating."})
    structured: str | None = field(default=None, metadata={"help": "judge: auto, json_schema, json_object or none."})
    max_tokens: int | None = field(default=None, metadata={"help": "judge: of a reply."})
    token_parameter: str | None = field(
        default=None, metadata={"help": "judge: max_tokens or max_completion_tokens, as the server calls it."}
    )
    parameters: dict[str, Any] | None = field(default=None, metadata={"help": "judge: further fields of requests."})
    sample_seed: int | None = field(default=None, metadata={"help": "judge: sample i carries seed this + i."})
    min_valid: int | None = field(
        default=None, metadata={"help": "judge: fewest valid replies of a scored completion."}
    )
    concurrency: int | None = field(default=None, metadata={"help": "judge: calls in flight."})
    requests_per_minute: float | None = field(default=None, metadata={"help": "judge: of each process."})
    tokens_per_minute: float | None = field(default=None, metadata={"help": "judge: of each process."})
    retries: int | None = field(default=None, metadata={"help": "judge: of one call, after its first try."})
    backoff_s: float | None = field(default=None, metadata={"help": "judge: wait before the first retry; it doubles."})
    backoff_limit_s: float | None = field(default=None, metadata={"help": "judge: longest such wait."})
    timeout_s: float | None = field(default=None, metadata={"help": "judge: of one try."})
    deadline_s: float | None = field(default=None, metadata={"help": "judge: of all calls of one completion."})
    budget_tokens: int | None = field(default=None, metadata={"help": "judge: no call starts beyond it."})
    budget_money: float | None = field(default=None, metadata={"help": "judge: no call starts beyond it."})
    price_input: float | None = field(default=None, metadata={"help": "judge: of a million tokens of prompts."})
    price_output: float | None = field(default=None, metadata={"help": "judge: of a million tokens of replies."})
    cache: str | None = field(default=None, metadata={"help": "judge: SQLite file of replies; the user's if none."})
    variance_of: str | None = field(default=None, metadata={"help": "judge: reply, s², or mean, s²/n."})
    max_pairs: int | None = field(default=None, metadata={"help": "judge: held-out pairs that are paid for."})

    def check(self) -> None:
        """Refuse values that no kind knows, and settings of other kinds, before anything is loaded.

        Raises:
            ConfigError: what is wrong, and what to do.
        """
        for name, allowed in _CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        for name, allowed in _CHOICES_OF_KINDS.items():
            if getattr(self, name) not in (None, *allowed):
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got '{getattr(self, name)}'")
        if self.start is not None and not 0 <= self.start < 1:
            raise ConfigError(f"start must be a share of the depth in [0, 1), got {self.start}")
        check_ranges(vars(self))
        foreign = sorted(self._given(_ALL_SETTINGS - set(_SETTINGS[self.kind]) - set(self._of_variance())))
        if foreign:
            owners = {name: [kind for kind, names in _SETTINGS.items() if name in names] for name in foreign}
            said = ", ".join(f"{name} (kind: {' or '.join(kinds)})" for name, kinds in owners.items())
            raise ConfigError(f"kind: {self.kind} has no {said}; remove what doesn't belong, or change the kind")
        if self.bootstrap is not None and self.bootstrap not in _BOOTSTRAPS[self.kind]:
            raise ConfigError(
                f"bootstrap of kind {self.kind} must be one of {', '.join(_BOOTSTRAPS[self.kind])}, got "
                f"'{self.bootstrap}'"
            )
        given = self.members is not None or self.scale_members or self.variance != "moderated"
        if given and self.kind in _WITHOUT_MEMBERS:
            raise ConfigError(
                f"kind: {self.kind} has no members: members, scale_members and variance don't apply to it"
            )
        if self.variance == "smoothed" and self.kind not in _WITH_TRUNK:
            raise ConfigError(
                f"variance: smoothed reads the features of a trunk, which kind: {self.kind} hasn't; it is for "
                f"{', '.join(_WITH_TRUNK)}"
            )
        if self.variance == "smoothed" and self.member_count < 2:
            raise ConfigError("variance: smoothed needs at least two members")
        if self.scale_members and self.kind == "judge":
            raise ConfigError(
                "kind: judge is one member: scale_members doesn't apply to it; kind: mixed always scales"
            )
        if self.kind == "distilled" and self.teacher is None:
            raise ConfigError("kind: distilled needs teacher, the directory of the source whose variance is learnt")
        _ = self.settings()

    def settings(self) -> Any:
        """The settings object of the kind, made of what was given; None where there is nothing to set."""
        if self.kind not in _FACTORIES:
            return None
        factory = _factory(self.kind)
        given = self._given(set(_SETTINGS[self.kind]) - {"teacher", "other_models"})
        if "epochs" in given and self.kind != "independent":
            given["epochs"] = int(given["epochs"])
        if "targets" in given:
            given["targets"] = tuple(given["targets"])
        if self.kind == "judge":
            given["variance"] = self.variance
        common = {name: getattr(self, name) for name in _COMMON if name in factory.__dataclass_fields__}
        if "members" in factory.__dataclass_fields__:
            common["members"] = self.member_count
        return factory(**common, **given)

    @property
    def member_count(self) -> int:
        """K: what was given, or the kind's usual number."""
        return self.members if self.members is not None else _USUAL_MEMBERS.get(self.kind, 5)

    def _of_variance(self) -> tuple[str, ...]:
        """Settings that belong to the kind of variance, whatever the kind of source."""
        return ("pooling", "layer") if self.variance == "smoothed" else ()

    def _given(self, names: Collection[str]) -> dict[str, Any]:
        return {name: getattr(self, name) for name in names if getattr(self, name) is not None}


_COMMON = ("seed", "max_length", "overlong")
_USUAL_MEMBERS = {"heads": 50}
_WITHOUT_MEMBERS = ("linear", "laplace", "distilled")
_WITH_TRUNK = ("heads", "independent", "lora", "dropout")
"""Kinds whose variance can be smoothed."""
_FIT = ("learning_rate", "epochs", "batch_size")
_JUDGE = (
    *("endpoint", "key_variable", "rubric", "wordings", "samples", "temperature", "references", "reading"),
    *("top_logprobs", "reason"),
    *("structured", "max_tokens", "token_parameter", "parameters", "sample_seed", "min_valid", "concurrency"),
    *("requests_per_minute", "tokens_per_minute", "retries", "backoff_s", "backoff_limit_s", "timeout_s"),
    *("deadline_s", "budget_tokens", "budget_money", "price_input", "price_output", "cache", "variance_of"),
    "max_pairs",
)
_SETTINGS: dict[str, tuple[str, ...]] = {
    "linear": ("pooling", "layer", "penalty", "penalty_by", "covariance"),
    "heads": (
        "bootstrap",
        *_FIT,
        "weight_decay",
        "head",
        "pooling",
        "layer",
        "prior_scale",
        "trunk_epochs",
        "trunk_learning_rate",
    ),
    "independent": ("bootstrap", *_FIT, "rank", "alpha", "targets", "other_models", "bf16"),
    "lora": ("bootstrap", *_FIT, "weight_decay", "rank", "alpha", "targets", "start"),
    "laplace": ("structure", "rank", "precision", "distance", "distance_layer"),
    "dropout": ("rate", "start"),
    "distilled": ("teacher", *_FIT, "weight_decay", "pooling", "layer"),
    "judge": _JUDGE,
    "mixed": ("other_models",),
}
"""Which settings belong to which kind."""
_ALL_SETTINGS = {name for names in _SETTINGS.values() for name in names}
_CHOICES: dict[str, tuple[str, ...]] = {
    "kind": tuple(_SETTINGS),
    "bad_rows": ("error", "drop"),
    "overlong": ("drop", "truncate"),
    "variance": ("moderated", "raw", "smoothed"),
}
_CHOICES_OF_KINDS = {
    "pooling": ("last", "mean", "cls"),
    "head": ("linear", "mlp"),
    "structure": ("full", "low_rank", "diagonal"),
}
_BOOTSTRAPS = {
    "heads": ("none", "poisson", "exponential"),
    "lora": ("none", "poisson", "exponential"),
    "independent": ("none", "resample", "disjoint"),
}
_FACTORIES = {
    "linear": "surefoot.rewards.kinds.linear:LinearConfig",
    "heads": "surefoot.rewards.kinds.heads.fit:HeadsConfig",
    "independent": "surefoot.rewards.kinds.independent.fit:IndependentConfig",
    "lora": "surefoot.rewards.kinds.lora.fit:LoraConfig",
    "laplace": "surefoot.rewards.kinds.laplace:LaplaceConfig",
    "dropout": "surefoot.rewards.kinds.dropout:DropoutConfig",
    "distilled": "surefoot.rewards.kinds.distilled:DistilledConfig",
    "judge": "surefoot.rewards.kinds.judge.config:JudgeConfig",
}


def _factory(kind: str) -> Any:
    module, name = _FACTORIES[kind].split(":")
    return getattr(import_module(module), name)
