"""A study's settings, and the cells of its grid: settings × sources × methods × KL budgets × seeds."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from surefoot.errors import ConfigError, did_you_mean
from surefoot.files import fingerprint
from surefoot.maths.objectives import Objective
from surefoot.ranges import check_ranges
from surefoot.redaction import holds_secret
from surefoot.rewards.config import RewardSourceArguments
from surefoot.rewards.registry import source_class
from surefoot.run_records import CellPlace
from surefoot.setting_types import check_nested
from surefoot.training.objective_config import ObjectiveArguments

__all__ = [
    "Cell",
    "StudyConfig",
    "check_keys",
    "method_settings",
    "objective_of",
    "policy_settings",
    "single_of",
    "without_methods",
]

_METHOD_KEYS = (
    *("preset", "aggregate", "aggregate_parameter", "weights", "objective", "weight_floor", "weight_ceiling"),
    *("anchor", "anchor_completions"),
)
TRAINERS = ("rloo", "grpo", "exact")
_COMMAND_KEYS = ("title", "output_dir")
_USUAL: dict[str, Any] = {
    "beta": 1.0,
    "lr_scheduler_type": "constant",
    "gradient_checkpointing": False,
    "logging_steps": 1,
    "save_strategy": "no",
    "report_to": "none",
    "disable_tqdm": True,
    "max_steps": 100,
}
_ON_THE_WORLD: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "num_generations": 8,
    "max_completion_length": 24,
    "learning_rate": 3e-4,
    "use_cpu": True,
}
_CONTENT = (".json", ".jsonl", ".csv", ".parquet", ".arrow", ".safetensors", ".yaml")
_WHOLE_FILE, _PART = 1 << 30, 1 << 26
"""Of larger files, in bytes, the size and the first and last part are hashed."""


@dataclass(frozen=True, slots=True)
class Cell:
    """One pipeline: its place in the grid, and everything that its result depends on.

    Args:
        key: address of the content of `work`; equal work has one address, wherever it stands in a grid.
        work: setting, source, objective, budget, seed, trainer, policy and evaluation, as plain values.
    """

    setting: str
    source: str
    method: str
    kl_budget: float | None
    seed: int
    key: str
    work: dict[str, Any]

    def place(self) -> CellPlace:
        """Its coordinates and address, as records and reports name them."""
        return CellPlace(self.key, self.setting, self.source, self.method, self.kl_budget, self.seed)


@dataclass
class _SourceLines:
    """Types of what a source's lines hold beside the settings of `surefoot reward`."""

    path: str = ""
    single: dict[str, Any] = field(default_factory=dict)
    methods: list[str] = field(default_factory=list)


@dataclass
class _SettingLines:
    """Types of what a setting's lines hold beside its counts."""

    world: str = ""
    model: str = ""
    prompts: str = ""
    evaluation_prompts: str = ""
    preferences: str = ""
    gold: dict[str, Any] = field(default_factory=dict)
    draw: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyConfig:
    """A whole study: the axes of its grid, and how policies are trained and judged.

    Args:
        settings: name to what `surefoot.studies.settings.build_setting` reads.
        sources: name to settings of `surefoot reward`, or `path` of a saved source; `methods` among them names the
            methods that are run with this source, all if not given.
        methods: preset names; or name to a preset with changed fields (`preset: lcb`, `aggregate_parameter: 2`).
        kl_budgets: nats per sequence at which policies are held; None keeps β constant.
        seeds: every seed draws its own preferences, members and policy run; methods of a seed share the first two.
        trainer: rloo, grpo, or exact: no training, the exact policy on candidates of the reference policy.
        policy: settings of the trainer and of TRL's ModelConfig; for exact, `candidates` of each evaluation prompt and
            `max_completion_length`.
        evaluation_completions: fresh completions of the final policy whose true reward is measured.
        samples_kept: of them that are kept to be read.
        monitor_gold: whether every training batch is judged too, for the trajectory.

    Raises:
        ConfigError: an empty axis, a method that is no objective, or a secret among the settings.
    """

    settings: dict[str, dict[str, Any]]
    sources: dict[str, dict[str, Any]]
    methods: dict[str, dict[str, Any]]
    kl_budgets: tuple[float | None, ...]
    seeds: tuple[int, ...]
    trainer: str = "rloo"
    policy: dict[str, Any] = field(default_factory=dict)
    evaluation_completions: int = 512
    samples_kept: int = 8
    monitor_gold: bool = True

    def __post_init__(self) -> None:
        for name in ("settings", "sources", "methods", "kl_budgets", "seeds"):
            if not getattr(self, name):
                raise ConfigError(f"a study needs at least one of {name}")
        if self.trainer not in TRAINERS:
            raise ConfigError(f"trainer must be {', '.join(TRAINERS)}, got '{self.trainer}'")
        self._check_axes()
        object.__setattr__(self, "sources", {name: _with_kind(spec) for name, spec in self.sources.items()})
        for name in ("settings", "sources", "methods", "policy"):
            if holds_secret(getattr(self, name)):
                raise ConfigError(
                    f"{name} of a study must hold no token, key or password, since its records hold every setting; "
                    "log in to the hub, or set HF_TOKEN"
                )
        for name, spec in self.methods.items():
            check_nested(spec, (ObjectiveArguments,), f"methods.{name}")
            check_ranges(spec, f"methods.{name}.")
            ObjectiveArguments(**spec).check_objective(beta=1.0, num_generations=2)
        for name, source in self.sources.items():
            check_nested(source, (_SourceLines,), f"sources.{name}")
            check_keys(source.get("methods", ()), self.methods, f"the methods of source '{name}'")
        for name, setting in self.settings.items():
            check_nested(setting, (_SettingLines,), f"settings.{name}")

    def _check_axes(self) -> None:
        for axis in ("settings", "sources", "methods"):
            for name in getattr(self, axis):
                if not isinstance(name, str):
                    raise ConfigError(f"{axis} must be named by text, got {name!r}; put it in quotes")
        for budget in self.kl_budgets:
            if budget is not None and not (math.isfinite(budget) and budget > 0):
                raise ConfigError(f"kl_budgets must be positive and finite, got {budget}")
        for seed in self.seeds:
            if isinstance(seed, bool) or not isinstance(seed, int):
                raise ConfigError(f"seeds must be whole numbers, got {seed!r}")
            check_ranges({"seed": seed})
        if len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("seeds names one twice; every seed is an independent pipeline")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> StudyConfig:
        """Read a study as a config file states it, or as `to_dict` wrote it.

        Args:
            values: the fields. `methods` may also be a list of presets, `seeds` a count from `first_seed` (0) on, and
                `kl_budgets` None. `title` and `output_dir`, which belong to the command, are passed over.

        Raises:
            ConfigError: an unknown key, or whatever the study itself refuses.
        """
        names = {each.name for each in fields(cls)}
        check_keys(values, {*names, *_COMMAND_KEYS, "first_seed"}, "a study")
        grid = {name: value for name, value in values.items() if name in names}
        axes = {
            "settings": _named(values.get("settings") or {}, "settings"),
            "sources": _named(values.get("sources") or {}, "sources"),
            "methods": method_settings(values.get("methods") or {}),
            "kl_budgets": _budgets(values.get("kl_budgets")),
            "seeds": _seeds(values.get("seeds") or (), values.get("first_seed") or 0),
        }
        return cls(**grid | axes)

    def to_dict(self) -> dict[str, Any]:
        """The study as plain values, which `from_dict` and `surefoot study --config` read back to an equal one.

        Seeds are a count where they follow one another, and methods a list where all are presets.
        """
        first, count = self.seeds[0], len(self.seeds)
        follow = self.seeds == tuple(range(first, first + count))
        presets = all(spec == {"preset": name} for name, spec in self.methods.items())
        values: dict[str, Any] = {
            "settings": self.settings,
            "sources": self.sources,
            "methods": list(self.methods) if presets else self.methods,
            "kl_budgets": None if self.kl_budgets == (None,) else list(self.kl_budgets),
            "seeds": count if follow else list(self.seeds),
            "first_seed": first,
        }
        return values | {each.name: getattr(self, each.name) for each in fields(self) if each.name not in values}

    def cells(self) -> list[Cell]:
        """Every cell of the grid, seeds outermost, so that methods are compared from early on."""
        ours = {name: file_hashes(spec) for name, spec in self.settings.items()}
        theirs = {name: file_hashes(spec) for name, spec in self.sources.items()}
        bounds = [(s, z) for s in self.settings for z in self.sources]
        return [
            self._cell(setting, source, method, budget, seed, ours[setting] | theirs[source])
            for seed in self.seeds
            for setting, source in bounds
            for budget in self.kl_budgets
            for method in self.sources[source].get("methods", self.methods)
        ]

    def _cell(
        self, setting: str, source: str, method: str, budget: float | None, seed: int, files: dict[str, str]
    ) -> Cell:
        spec, objective = without_methods(self.sources[source]), self.methods[method]
        work = {
            "setting": self.settings[setting],
            "files": files,
            "sources": roles(spec, objective_of(objective)),
            "method": objective,
            "kl_budget": budget,
            "seed": seed,
            "trainer": self.trainer,
            "policy": policy_settings(self.settings[setting], self.policy, self.trainer),
            "evaluation_completions": self.evaluation_completions,
            "samples_kept": self.samples_kept,
            "monitor_gold": self.monitor_gold,
        }
        return Cell(setting, source, method, budget, seed, fingerprint(work), work)


def _named(axis: Any, what: str) -> dict[str, dict[str, Any]]:
    if not isinstance(axis, dict) or not all(isinstance(value, dict) for value in axis.values()):
        raise ConfigError(f"{what} must be `name: {{key: value}}` lines in the config file")
    return axis


def _budgets(budgets: Sequence[float | None] | None) -> tuple[float | None, ...]:
    """Without any budget β stays constant. Budgets become floats, so that 6 and 6.0 are one address."""
    try:
        return tuple(None if budget is None else float(budget) for budget in budgets or (None,))
    except (TypeError, ValueError):
        raise ConfigError(f"kl_budgets must be a list of numbers, got {budgets!r}") from None


def _seeds(seeds: int | Sequence[int], first: int) -> tuple[int, ...]:
    """A count of seeds from the first on, or their list."""
    if not isinstance(seeds, int):
        return tuple(seeds)
    check_ranges({"first_seed": first} | ({"seed": first + seeds - 1} if seeds > 0 else {}))
    return tuple(range(first, first + seeds))


def without_methods(source: dict[str, Any]) -> dict[str, Any]:
    """A source's settings without the names of the methods that are run with it, on which no result depends."""
    return {name: value for name, value in source.items() if name != "methods"}


def method_settings(methods: Sequence[str] | dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Methods as the YAML gives them, by name: a list of presets, or names with presets and changes.

    Raises:
        ConfigError: an unknown key.
    """
    specs = {}
    given = methods if isinstance(methods, dict) else dict.fromkeys(methods)
    for name, spec in given.items():
        if not isinstance(spec or {}, dict):
            raise ConfigError(f"method '{name}' must be `key: value` lines, got {spec!r:.60}")
        changed = {"preset": name} | dict(spec or {})
        check_keys(changed, _METHOD_KEYS, f"method '{name}'")
        specs[name] = changed
    return specs


def policy_settings(setting: dict[str, Any], given: dict[str, Any], trainer: str = "rloo") -> dict[str, Any]:
    """The trainer's settings: what the study gives, over the usual ones. `save_steps` asks for checkpoints."""
    if trainer == "exact":
        return {"candidates": 64, "max_completion_length": 24 if "world" in setting else 256} | given
    saving = {"save_strategy": "steps"} if "save_steps" in given else {}
    return _USUAL | (_ON_THE_WORLD if "world" in setting else {}) | saving | given


def objective_of(method: dict[str, Any]) -> Objective:
    """The objective that a method's settings name."""
    return ObjectiveArguments(**method).build_objective()


def roles(spec: dict[str, Any], objective: Objective) -> dict[str, dict[str, Any]]:
    """The sources that an objective reads: `reward`, and `variance` where another source gives the variance.

    "One model" is the model that a user without an ensemble would train on the same pairs: it sees every pair and has
    no prior function. A member of the ensemble would be too weak a baseline.
    """
    if objective.aggregate != "one" or objective.parameter is not None:
        return {"reward": spec}
    single = single_of(spec)
    if objective.weights == "variance" and single is not spec:
        return {"reward": single, "variance": spec}
    return {"reward": single}


def _with_kind(spec: Any) -> Any:
    """The settings with the default kind written out, so that a source's address tells it."""
    named = not isinstance(spec, dict) or "kind" in spec or "path" in spec
    return spec if named else {"kind": RewardSourceArguments.kind, **spec}


_ONE_PLAIN_MODEL = {"members": 1, "bootstrap": "none", "prior_scale": 0.0}
"""Settings with which a kind that trains members trains one, on every pair."""


def single_of(spec: dict[str, Any]) -> dict[str, Any]:
    """Settings of the one plain model beside an ensemble; `single` in the source's settings if it is given."""
    if "single" in spec:
        return dict(spec["single"])
    if "path" in spec:
        return spec
    kind = _with_kind(spec)["kind"]
    source = source_class(kind)
    if source.made_from == "reward model":
        raise ConfigError(
            f"kind: {kind} is fitted to one reward model: give that model's own settings as `single` (kind: "
            "independent, learning_rate: …)"
        )
    settings = {item.name for item in fields(source.settings)} if source.settings is not None else set()
    if "members" not in settings:
        return spec
    plain = {name: value for name, value in spec.items() if name not in ("scale_members", "variance", "other_models")}
    return plain | {name: value for name, value in _ONE_PLAIN_MODEL.items() if name in settings}


def check_keys(given: Collection[str], known: Collection[str], what: str) -> None:
    """Refuse unknown keys and name the nearest known key.

    Raises:
        ConfigError: the first unknown key.
    """
    for key in given:
        if key not in known:
            hint = did_you_mean(str(key), known) or f" (known: {', '.join(sorted(known))})"
            raise ConfigError(f"unknown key '{key}' in {what}{hint}")


def file_hashes(spec: dict[str, Any]) -> dict[str, str]:
    """SHA-256 of every local file that a setting or a source names, in directories the data and weights below them.

    So a model or source that was trained again in its old place changes the cells' addresses.
    """
    return {str(path): _digest(path) for name in _strings(spec) for path in _files(name)}


def _strings(values: Any) -> Iterator[str]:
    if isinstance(values, str):
        yield values
    elif isinstance(values, dict):
        for value in values.values():
            yield from _strings(value)
    elif isinstance(values, list | tuple):
        for value in values:
            yield from _strings(value)


def _files(name: str) -> list[Path]:
    path = Path(name.rpartition(":")[0] if ".py:" in name else name)
    if path.is_file():
        return [path]
    if path.is_dir() and "/" in name:
        return sorted(inner for inner in path.rglob("*") if inner.suffix in _CONTENT)
    return []


def _digest(path: Path) -> str:
    size = path.stat().st_size
    with path.open("rb") as file:
        if size <= _WHOLE_FILE:
            return hashlib.file_digest(file, "sha256").hexdigest()[:16]
        digest = hashlib.sha256(f"{size}".encode())
        digest.update(file.read(_PART))
        file.seek(-_PART, 2)
        digest.update(file.read(_PART))
    return digest.hexdigest()[:16]
