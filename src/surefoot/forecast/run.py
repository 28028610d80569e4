"""`surefoot forecast` from settings to files: candidates drawn once, scored once, and a config to train by."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml
from jaxtyping import Float
from torch import Tensor

from surefoot.data.preferences import load_prompts
from surefoot.errors import ConfigError
from surefoot.files import read_json, write_json, write_text
from surefoot.forecast.candidates import Texts, draw_candidates, group_texts, read_candidates
from surefoot.forecast.compute import forecast_scores
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.gold import Gold, gold_spec, load_gold
from surefoot.rewards.registry import load_source
from surefoot.rewards.score_cache import score_texts, source_hash
from surefoot.rewards.source import RewardSource

__all__ = ["ForecastArguments", "run_forecast"]

FORECAST = "forecast.json"
Progress = Callable[[str, int, int], None]
"""Called with (what is being done, done, of how many)."""


@dataclass
class ForecastArguments:
    """Settings of `surefoot forecast`. Give a policy and prompts, or completions of the policy."""

    output_dir: str = field(metadata={"help": "Directory of the result; the same again goes on."})
    reward_source: str = field(metadata={"help": "Directory or hub name of the reward source to train against."})
    model_name_or_path: str | None = field(
        default=None, metadata={"help": "The reference policy, from which candidates are drawn."}
    )
    dataset_name: str | None = field(default=None, metadata={"help": "Prompts: a file, directory or hub name."})
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a hub dataset."})
    dataset_split: str | None = field(default=None, metadata={"help": "Split of the dataset."})
    dataset_prompts: int | None = field(default=None, metadata={"help": "Use only so many prompts."})
    completions: str | None = field(
        default=None,
        metadata={"help": "Completions of the reference policy (columns prompt and completion, several of a prompt), "
                  "drawn elsewhere, such as by vLLM, or by an earlier forecast (candidates.jsonl)."},
    )  # fmt: skip
    gold: str | None = field(
        default=None,
        metadata={"help": "The true reward: a source that is never trained against, or a function as file.py:name."},
    )
    n: int = field(default=64, metadata={"help": "Candidates of each prompt; they carry budgets up to ln n − 1 nats."})
    objectives: list[str] | None = field(
        default=None, metadata={"help": "Presets, with a parameter after a colon (lcb:2); all if not given."}
    )
    kl_budgets: list[float] | None = field(
        default=None, metadata={"help": "In nats per sequence; twelve up to ln n − 1 if not given."}
    )
    draws: int = field(default=64, metadata={"help": "Other rewards that the preferences could have given."})
    runs: int = field(default=16, metadata={"help": "How many of them make a policy; all judge."})
    max_completion_length: int = field(default=256, metadata={"help": "In tokens, as in the training to come."})
    temperature: float = field(default=1.0, metadata={"help": "As in the training to come."})
    prompts_per_batch: int = field(default=8, metadata={"help": "Prompts sampled at a time."})
    vllm_server_base_url: str | None = field(
        default=None,
        metadata={"help": "Draw candidates from the policy that `vllm serve` serves there, as http://127.0.0.1:8000; "
                  "a key is read from VLLM_API_KEY."},
    )  # fmt: skip
    seed: int = field(default=0, metadata={"help": "Of everything that is drawn."})

    def check(self) -> None:
        """Refuse values out of range, and settings that exclude each other.

        Raises:
            ConfigError: what is wrong.
        """
        drawn = self.model_name_or_path is not None and self.dataset_name is not None
        if drawn == (self.completions is not None) or (self.completions and self.model_name_or_path):
            raise ConfigError(
                "give either model_name_or_path and dataset_name (candidates are drawn), or completions (a file)"
            )
        if self.vllm_server_base_url is not None and not drawn:
            raise ConfigError("vllm_server_base_url draws candidates; it needs model_name_or_path and dataset_name")
        for name in ("n", "draws", "runs", "max_completion_length", "prompts_per_batch", "dataset_prompts"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name} must be at least 1, got {value}")
        if not self.temperature > 0:
            raise ConfigError(f"temperature must be positive, got {self.temperature}")


def run_forecast(
    args: ForecastArguments, settings: dict[str, Any], on_progress: Progress | None = None
) -> dict[str, Any]:
    """Write `forecast.json`, `record.json` and, where training is advised, `rloo.yaml` to `args.output_dir`.

    Candidates and scored rows are kept, so that an interrupted call goes on, and another source needs no new ones
    (`--completions candidates.jsonl`).

    Returns:
        The forecast; that of the finished run if there is one already.

    Raises:
        ConfigError, DataError, ModelError, RunError, VarianceError: before anything is sampled where possible.
    """
    args.check()
    report: Progress = on_progress or (lambda what, done, total: None)
    source = load_source(args.reward_source)
    gold = None if args.gold is None else load_gold(gold_spec(args.gold))
    with claim_directory(args.output_dir, "forecast", settings) as folder:
        if (folder / RECORD).exists():
            finished: dict[str, Any] = read_json(folder / FORECAST)
            return finished
        return _forecast(args, settings, source, gold, folder, report)


def _forecast(
    args: ForecastArguments,
    settings: dict[str, Any],
    source: RewardSource,
    gold: Gold | None,
    folder: Path,
    report: Progress,
) -> dict[str, Any]:
    file = args.completions if args.completions is not None else str(_draw(args, folder, report))
    texts = group_texts(*read_candidates(file))
    scores = _scores(source, args.reward_source, texts, folder, report)
    true = None if gold is None else torch.tensor(gold(texts.prompts, texts.completions), dtype=torch.float64)
    result = forecast_scores(
        source, texts, scores, gold=true, objectives=args.objectives, kl_budgets=args.kl_budgets, draws=args.draws,
        runs=args.runs, seed=args.seed, on_progress=lambda done, total: report("objectives", done, total),
    )  # fmt: skip
    write_json(folder / FORECAST, result)
    row = result["recommendation"]["row"]
    if row is not None:
        write_text(folder / "rloo.yaml", training_config(row, args))
    metrics = {name: result[name] for name in ("prompts", "candidates", "reliability", "recommendation")}
    write_record(folder, make_record("forecast", settings, seed=args.seed, data_hash=None, metrics=metrics))
    return result


def training_config(row: dict[str, Any], args: ForecastArguments) -> str:
    """A config of `surefoot rloo` for the recommended row; what the forecast doesn't know is left to be filled in."""
    values = {
        "model_name_or_path": args.model_name_or_path or "POLICY",
        "dataset_name": args.dataset_name or "PROMPTS",
        "reward_source": args.reward_source,
        "output_dir": str(Path(args.output_dir) / "policy"),
        "preset": row["preset"],
        "aggregate_parameter": row["aggregate_parameter"],
        "target_kl": round(row["kl_budget"], 4),
        "beta": float(f"{row['beta']:.3g}"),
        "max_completion_length": args.max_completion_length,
        "temperature": args.temperature,
    }
    given = {name: value for name, value in values.items() if value is not None}
    head = (
        f"# Forecast: {row['objective']} at {row['kl_budget']:.2f} nats per sequence. With this β the exact policy\n"
        "# on candidates spends that budget; training starts from it and adapts it to hold target_kl.\n"
        "#   surefoot rloo --config rloo.yaml\n"
    )
    return head + yaml.safe_dump(given, sort_keys=False, allow_unicode=True)


def _draw(args: ForecastArguments, folder: Path, report: Progress) -> Path:
    assert args.model_name_or_path is not None
    assert args.dataset_name is not None
    table = load_prompts(args.dataset_name, split=args.dataset_split, config=args.dataset_config)
    return draw_candidates(
        args.model_name_or_path,
        list(table["prompt"])[: args.dataset_prompts],
        args.n,
        folder,
        max_completion_length=args.max_completion_length,
        temperature=args.temperature,
        seed=args.seed,
        prompts_per_batch=args.prompts_per_batch,
        vllm_server_base_url=args.vllm_server_base_url,
        on_progress=lambda done, total: report("candidates", done, total),
    )


def _scores(
    source: RewardSource, name: str, texts: Texts, folder: Path, report: Progress
) -> Float[Tensor, "rows columns"]:
    key = source_hash(source, name)
    cache = None if key is None else folder / "scores" / key
    return score_texts(
        source,
        texts.prompts,
        texts.completions,
        cache=cache,
        on_progress=lambda done, total: report("scores", done, total),
    )
