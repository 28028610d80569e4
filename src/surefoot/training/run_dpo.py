"""Run weighted DPO from settings to record; checks everything first and resumes an interrupted run."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import ModelConfig, get_peft_config, get_quantization_config

from surefoot.data.preferences import data_hash, load_preferences
from surefoot.errors import ConfigError
from surefoot.files import read_json
from surefoot.progress import progress
from surefoot.records import RECORD, claim_directory, make_record, write_record
from surefoot.rewards.registry import load_source
from surefoot.rewards.score_cache import source_hash
from surefoot.rewards.trunk.loading import check_templates, template_objection
from surefoot.training.checkpoints import last_whole_checkpoint
from surefoot.training.distributed import end_training
from surefoot.training.dpo_config import VarianceAwareDPOConfig
from surefoot.training.dpo_trainer import VarianceAwareDPOTrainer
from surefoot.training.preference_weights import VARIANCES
from surefoot.training.run_online import averages, load_policy_tokenizer, with_model_settings
from surefoot.training.step_lines import PrintingArguments, print_short_lines

__all__ = ["DPOScriptArguments", "run_dpo"]


@dataclass
class DPOScriptArguments(PrintingArguments):
    """TRL's script arguments, and the source of the variances."""

    reward_source: str | None = field(
        default=None,
        metadata={
            "help": "Directory of a reward source; not needed if the dataset has the columns of `surefoot score`."
        },
    )
    bad_rows: str = field(
        default="error",
        metadata={"help": "error names unusable rows, drop leaves them out.", "choices": ("error", "drop")},
    )


def run_dpo(
    script: DPOScriptArguments, args: VarianceAwareDPOConfig, model: ModelConfig, settings: dict[str, Any]
) -> dict[str, Any]:
    """Align a policy on weighted pairs and write the model, its checkpoints and `record.json` to `args.output_dir`.

    Returns:
        The record; that of the finished run if there is one already.

    Raises:
        ConfigError, DataError, ModelError, RunError: before any training, each saying what to change.
    """
    if script.dataset_name is None:
        raise ConfigError("dataset_name is missing; give a local file, directory or hub name that holds preferences")
    if script.bad_rows not in ("error", "drop"):
        raise ConfigError(f"bad_rows must be error or drop, got '{script.bad_rows}'")
    tokenizer = load_policy_tokenizer(model, trust_remote_code=args.trust_remote_code)
    pairs = load_preferences(
        script.dataset_name,
        split=script.dataset_train_split,
        config=script.dataset_config,
        bad_rows=script.bad_rows,  # type: ignore[arg-type]
        objection=template_objection(tokenizer),
    )
    missing = [name for name in VARIANCES if name not in pairs.column_names]
    if args.weights == "variance" and missing and script.reward_source is None:
        raise ConfigError(
            f"{script.dataset_name} has no {' and no '.join(missing)}; give reward_source, score the pairs first with "
            "`surefoot score`, or set weights: none"
        )
    if args.anchor_file is not None and (not missing or script.reward_source is None):
        raise ConfigError(
            "anchor_file centres what reward_source scores, and "
            + ("there is no reward_source" if missing else f"{script.dataset_name} has variances already")
            + "; leave it out, or let the source score the pairs"
        )
    check_templates([script.reward_source] if script.reward_source else [], pairs[0]["chosen"])
    with claim_directory(args.output_dir, "dpo", settings, main_process=args.process_index == 0) as folder:
        if (folder / RECORD).exists():
            finished: dict[str, Any] = read_json(folder / RECORD)
            return finished
        return _train(script, args, model, settings, tokenizer, pairs, folder)


def _train(
    script: DPOScriptArguments,
    args: VarianceAwareDPOConfig,
    model: ModelConfig,
    settings: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    pairs: Dataset,
    folder: Path,
) -> dict[str, Any]:
    source = None if script.reward_source is None else load_source(script.reward_source)
    key = None if source is None else source_hash(source, script.reward_source)
    with progress() if args.process_index == 0 else nullcontext() as show:
        trainer = VarianceAwareDPOTrainer(
            model.model_name_or_path,
            with_model_settings(args, model),
            train_dataset=pairs,
            source=source,
            scores=None if key is None else folder / "scores" / key,
            on_progress=None if show is None else partial(show, "pairs scored"),
            processing_class=tokenizer,
            quantization_config=get_quantization_config(model),
            peft_config=get_peft_config(model),
        )
    if not script.all_metrics:
        print_short_lines(trainer)
    trainer.train(resume_from_checkpoint=args.resume_from_checkpoint or last_whole_checkpoint(args.output_dir))
    trainer.save_model(args.output_dir)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    tenth = max(1, len(rows) // 10)
    metrics = {
        "start": averages(rows[:tenth], _SUMMARY),
        "end": averages(rows[-tenth:], _SUMMARY),
        "steps": trainer.state.global_step,
        "anchor": trainer.anchor_shares,
    }
    record = make_record("dpo", settings, seed=args.seed, data_hash=data_hash(pairs), metrics=metrics)
    if trainer.accelerator.is_main_process:
        write_record(folder, record | {"log": trainer.state.log_history})
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    end_training(trainer)
    return record


_SUMMARY = ("loss", "rewards/margins", "rewards/accuracies")
