"""Run RLOO or GRPO from settings to record; checks everything first and resumes an interrupted run."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoConfig, AutoTokenizer, PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from surefoot.data.preferences import data_hash, load_prompts
from surefoot.errors import ConfigError, ModelError
from surefoot.files import read_json
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.registry import load_source
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.loading import check_templates, template_objection
from surefoot.rewards.trunk.model_names import resolve_model
from surefoot.training.checkpoints import last_whole_checkpoint
from surefoot.training.distributed import end_training
from surefoot.training.grpo_config import VarianceAwareGRPOConfig
from surefoot.training.grpo_trainer import VarianceAwareGRPOTrainer
from surefoot.training.prompt_anchors import OWN_COLUMNS
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.training.step_lines import PrintingArguments, print_short_lines

__all__ = ["OnlineScriptArguments", "averages", "load_policy_tokenizer", "run_policy_gradient", "with_model_settings"]


TRAINERS: dict[str, Any] = {"rloo": VarianceAwareRLOOTrainer, "grpo": VarianceAwareGRPOTrainer}
"""Trainers that sample from the policy, by their command."""


@dataclass
class OnlineScriptArguments(PrintingArguments):
    """TRL's script arguments, and the source of the reward (exactly one of three)."""

    reward_source: str | None = field(
        default=None, metadata={"help": "Directory or hub name of a reward source; give exactly one of these three."}
    )
    reward_config: str | None = field(
        default=None,
        metadata={"help": "Config of `surefoot reward`: the source is trained first, or loaded if it is finished."},
    )
    reward_models: list[str] | None = field(
        default=None, metadata={"help": "Existing reward models (directories or hub names) to use as members."}
    )
    dataset_prompts: int | None = field(
        default=None, metadata={"help": "Use only so many prompts of the dataset; all if not given."}
    )

    def check(self) -> None:
        """Raise ConfigError unless exactly one source of rewards and a dataset are given."""
        given = [name for name in ("reward_source", "reward_config", "reward_models") if getattr(self, name)]
        if len(given) != 1:
            raise ConfigError(
                "give exactly one of reward_source, reward_config and reward_models, got "
                f"{' and '.join(given) if given else 'none'}"
            )
        if self.dataset_name is None:
            raise ConfigError("dataset_name is missing; give a local file, directory or hub name that holds prompts")


def run_policy_gradient(
    kind: str,
    script: OnlineScriptArguments,
    args: VarianceAwareRLOOConfig | VarianceAwareGRPOConfig,
    model: ModelConfig,
    settings: dict[str, Any],
    source: RewardSource | None = None,
) -> dict[str, Any]:
    """Align a policy and write the model, its checkpoints and `record.json` to `args.output_dir`.

    Args:
        kind: a key of `TRAINERS`; `args` are of its config.
        settings: what the user gave, as written; the output directory is bound to it.
        source: used instead of loading `script.reward_source`.

    Returns:
        The record; that of the finished run if there is one already.

    Raises:
        ConfigError, DataError, ModelError, RunError: before any training, each saying what to change.
    """
    script.check()
    tokenizer = load_policy_tokenizer(model, trust_remote_code=args.trust_remote_code)
    beside = OWN_COLUMNS if args.anchor == "dataset" else ()
    prompts = load_prompts(
        script.dataset_name,
        split=script.dataset_train_split,
        config=script.dataset_config,
        beside=beside,
        objection=template_objection(tokenizer),
    )
    if script.dataset_prompts is not None:
        prompts = prompts.select(range(min(script.dataset_prompts, len(prompts))))
    check_templates(
        [script.reward_source] if script.reward_source else script.reward_models or [], prompts[0]["prompt"]
    )
    with claim_directory(args.output_dir, kind, settings, main_process=args.process_index == 0) as folder:
        if (folder / RECORD).exists():
            finished: dict[str, Any] = read_json(folder / RECORD)
            return finished
        return _train(kind, script, args, model, settings, source, tokenizer, prompts, folder)


def _train(
    kind: str,
    script: OnlineScriptArguments,
    args: VarianceAwareRLOOConfig | VarianceAwareGRPOConfig,
    model: ModelConfig,
    settings: dict[str, Any],
    source: RewardSource | None,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset,
    folder: Path,
) -> dict[str, Any]:
    trainer = TRAINERS[kind](
        model.model_name_or_path,
        source if source is not None else _source(script),
        with_model_settings(args, model),
        train_dataset=prompts,
        processing_class=tokenizer,
        quantization_config=get_quantization_config(model),
        peft_config=get_peft_config(model),
    )
    if not script.all_metrics:
        print_short_lines(trainer, args.target_kl)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_whole_checkpoint(args.output_dir))
    trainer.save_model(args.output_dir)
    record = make_record(kind, settings, seed=args.seed, data_hash=data_hash(prompts), metrics=summarise(trainer))
    if trainer.accelerator.is_main_process:
        write_record(folder, record | {"log": trainer.state.log_history})
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    end_training(trainer)
    return record


def _source(script: OnlineScriptArguments) -> RewardSource:
    if script.reward_source is not None:
        return load_source(script.reward_source)
    from surefoot.rewards.kinds.independent.source import IndependentMembers

    return IndependentMembers.from_models(script.reward_models or [])


def load_policy_tokenizer(model: ModelConfig, *, trust_remote_code: bool = False) -> PreTrainedTokenizerBase:
    """Load the policy's tokenizer, and check that there is a policy to train.

    Raises:
        ModelError: the directory holds no config or no weights, or the tokenizer can neither pad nor end a text.
        ConfigError: no model is named.
    """
    name = model.model_name_or_path
    if name is None:
        raise ConfigError("model_name_or_path is missing; give the directory or hub name of a causal language model")
    resolve_model(name)
    try:
        AutoConfig.from_pretrained(name, revision=model.model_revision, trust_remote_code=trust_remote_code)
        tokenizer = AutoTokenizer.from_pretrained(
            name, revision=model.model_revision, trust_remote_code=trust_remote_code
        )
    except (OSError, ValueError) as error:
        raise ModelError(f"can't load model '{name}': {error}") from error
    if tokenizer.pad_token is None and tokenizer.eos_token is None:
        raise ModelError(
            f"the tokenizer of '{name}' has neither a pad token nor an eos token; set tokenizer.pad_token"
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def with_model_settings(args: Any, model: ModelConfig) -> Any:
    """Merge ModelConfig into `model_init_kwargs` as TRL does; the user's own values take precedence."""
    kwargs = {
        "revision": model.model_revision,
        "attn_implementation": model.attn_implementation,
        "dtype": model.dtype,
    }
    given = args.model_init_kwargs or {}
    if not isinstance(given, dict):
        raise ConfigError(f"model_init_kwargs must be `key: value` settings of the model, got {given!r:.60}")
    args.model_init_kwargs = {**kwargs, **given}
    return args


_SUMMARY = ("reward", "sequence_kl", "beta", "reward/variance", "weight/effective_sample_size", "unscored")


def summarise(trainer: Any) -> dict[str, Any]:
    """Metrics of a run: averages of the first and last tenth of its log, time for anchors, and calibration."""
    rows = [row for row in trainer.state.log_history if "reward" in row]
    tenth = max(1, len(rows) // 10)
    calibration = trainer.source.calibration
    return {
        "start": averages(rows[:tenth], _SUMMARY),
        "end": averages(rows[-tenth:], _SUMMARY),
        "steps": trainer.state.global_step,
        "objective": repr(trainer.objective),
        "anchors": {name: rows[-1].get(f"anchors/{name}") for name in ("prompts", "share_of_time")} if rows else None,
        "calibration": None if calibration is None else calibration.to_dict(),
    }


def averages(rows: list[dict[str, Any]], names: tuple[str, ...]) -> dict[str, float | None]:
    """Mean of each logged figure over the rows that have it; None where none has."""
    means: dict[str, float | None] = {}
    for name in names:
        values = [row[name] for row in rows if row.get(name) is not None]
        means[name] = sum(values) / len(values) if values else None
    return means
