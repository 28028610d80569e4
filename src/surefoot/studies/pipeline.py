"""One whole pipeline on the offline world: preferences, reward members, policy, and its true reward.

A *cell* is one method at one seed. Cells of a seed share its preferences and members, so methods are compared in
pairs; nothing is shared between seeds but the reference policy and the language.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer, PrinterCallback, TrainerCallback

from surefoot.data.preferences import data_hash
from surefoot.data.world import World
from surefoot.data.world.export import HELD_OUT_SEED
from surefoot.files import read_json, write_json
from surefoot.records import make_record
from surefoot.rewards.bootstrap import Bootstrap
from surefoot.rewards.source import RewardSource, load_source
from surefoot.rewards.train_heads import HeadsConfig, train_heads
from surefoot.rewards.train_independent import IndependentConfig, train_independent
from surefoot.studies.disagreement import known_errors, measure_disagreement
from surefoot.training.rloo_config import VarianceAwareRLOOConfig
from surefoot.training.rloo_trainer import VarianceAwareRLOOTrainer
from surefoot.training.sampling import sample_completions

__all__ = ["PipelineConfig", "cell_path", "prepare_seed", "reference_gold", "run_cell", "seed_folder"]

ENSEMBLE, SINGLE = "ensemble", "single"
"""The two sources of a seed; "vanilla" is trained on the single model, every other method on the ensemble."""

EVALUATION_SEED = 990_001
"""Every policy is judged on completions drawn with this seed, from prompts that no training saw."""


@dataclass(frozen=True, slots=True)
class PipelineConfig:
    """Settings of a pipeline; equal for all cells of a study.

    Args:
        variant: of the offline world: "uneven", "even" or "shared_bias".
        pairs: preference pairs that the members are trained on; `held_out_pairs` more measure their disagreement.
        members: K.
        source: "heads" (shared frozen trunk, bootstrap) or "independent" (K full models).
        kl_budget: nats per sequence at which every method is held; None keeps β constant.
        beta: KL coefficient; with a budget its starting value, from which the budget is approached from below.
        steps: policy updates of `prompts_per_step` × `num_generations` completions.
        evaluation_completions: fresh completions of the final policy on which the true reward is measured.
    """

    variant: str = "uneven"
    pairs: int = 3000
    held_out_pairs: int = 500
    members: int = 5
    source: str = "heads"
    kl_budget: float | None = 6.0
    beta: float = 1.0
    steps: int = 100
    prompts_per_step: int = 8
    num_generations: int = 8
    learning_rate: float = 1e-3
    max_completion_length: int = 24
    evaluation_completions: int = 512
    samples_kept: int = 8

    def data_settings(self) -> dict[str, Any]:
        """The settings that a seed's preferences and members depend on."""
        names = ("variant", "pairs", "held_out_pairs", "members", "source")
        return {name: value for name, value in asdict(self).items() if name in names}


def seed_folder(folder: Path, seed: int) -> Path:
    return folder / "seeds" / str(seed)


def cell_path(folder: Path, method: str, seed: int) -> Path:
    return folder / "cells" / f"{method}-{seed}.json"


def prepare_seed(world: World, config: PipelineConfig, seed: int, folder: Path) -> None:
    """Draw the seed's preferences, train its members, and record how far they disagree; skipped if already done.

    Writes `seeds/<seed>/ensemble/`, `seeds/<seed>/single/` and `disagreement/<seed>.json`, the latter last.
    """
    done = folder / "disagreement" / f"{seed}.json"
    if done.exists():
        return
    train = world.draw_preferences(config.variant, config.pairs, seed)
    sources = _train_sources(world, config, train, seed, seed_folder(folder, seed))
    for name, source in sources.items():
        source.save(seed_folder(folder, seed) / name)
    found = _disagreement(world, config, sources[ENSEMBLE], seed)
    found["known_errors"] = _known_errors(sources[ENSEMBLE], reference_gold(world, config, folder))
    write_json(done, found | {"data_hash": data_hash(train)})


def _train_sources(
    world: World, config: PipelineConfig, train: Dataset, seed: int, folder: Path
) -> dict[str, RewardSource]:
    """The ensemble, and the one reward model that a user without an ensemble would train on the same pairs.

    The single model sees every pair and has no prior function: a member of the ensemble, which sees a bootstrap sample
    and carries one, would be too weak a baseline.
    """
    if config.source == "heads":
        members = _heads(config.members, seed, bootstrap="exponential", prior_scale=1.0)
        single = _heads(1, seed, bootstrap="none", prior_scale=0.0)
        return {
            ENSEMBLE: train_heads(train, world.policy_path, members, device="cpu"),
            SINGLE: train_heads(train, world.policy_path, single, device="cpu"),
        }
    several = IndependentConfig(config.members, seed, learning_rate=1e-3, epochs=3, batch_size=32)
    one = replace(several, members=1, bootstrap="none")
    return {
        ENSEMBLE: train_independent(train, world.policy_path, folder / "independent", several, device="cpu"),
        SINGLE: train_independent(train, world.policy_path, folder / "independent-single", one, device="cpu"),
    }


def _heads(members: int, seed: int, *, bootstrap: Bootstrap, prior_scale: float) -> HeadsConfig:
    """Heads that read words from the embeddings (layer 0)."""
    return HeadsConfig(
        members=members,
        seed=seed,
        layer=0,
        bootstrap=bootstrap,
        prior_scale=prior_scale,
        learning_rate=1e-2,
        weight_decay=0.0,
        epochs=60,
    )


def run_cell(
    world: World,
    config: PipelineConfig,
    method: str,
    seed: int,
    folder: Path,
    on_step: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Train one policy and measure its true reward; the record is written whole, and returned if it already exists.

    Args:
        method: a preset of `surefoot.maths.objectives`.
        on_step: called after every policy update, for progress.
    """
    path = cell_path(folder, method, seed)
    if path.exists():
        record: dict[str, Any] = read_json(path)
        return record
    torch.set_num_threads(1)
    start = time.perf_counter()
    name = SINGLE if method == "vanilla" else ENSEMBLE
    source = load_source(seed_folder(folder, seed) / name, device="cpu")
    trainer = _trainer(world, config, method, seed, source, folder)
    trainer.add_callback(_OnStep(on_step))
    trainer.train()
    seconds = time.perf_counter() - start
    record = _record(world, config, method, seed, folder, trainer, source, seconds)
    write_json(path, record)
    return record


def _trainer(
    world: World, config: PipelineConfig, method: str, seed: int, source: RewardSource, folder: Path
) -> VarianceAwareRLOOTrainer:
    args = VarianceAwareRLOOConfig(
        output_dir=str(seed_folder(folder, seed) / method),
        preset=method,
        beta=config.beta,
        target_kl=config.kl_budget,
        per_device_train_batch_size=config.prompts_per_step * config.num_generations,
        num_generations=config.num_generations,
        max_completion_length=config.max_completion_length,
        max_steps=config.steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type="constant",
        gradient_checkpointing=False,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=seed,
    )
    trainer = VarianceAwareRLOOTrainer(
        str(world.policy_path),
        source,
        args,
        train_dataset=Dataset.from_dict({"prompt": world.prompts("train")}),
        monitors={"gold": world.true_reward},
    )
    trainer.remove_callback(PrinterCallback)
    return trainer


class _OnStep(TrainerCallback):
    def __init__(self, function: Callable[[], None] | None) -> None:
        self.function = function

    def on_step_end(self, args: Any, state: Any, control: Any, **keywords: Any) -> None:
        if self.function is not None:
            self.function()


_TRAJECTORY = {
    "kl": "sequence_kl",
    "proxy": "reward/mean_of_members",
    "gold": "monitor/gold",
    "variance": "reward/variance",
    "weight": "weight/mean",
    "beta": "beta",
}


def trajectory(history: list[dict[str, Any]]) -> list[dict[str, float | None]]:
    """The trainer's log as rows of step, kl, proxy, gold, variance, weight, beta; None where a value isn't logged."""
    rows = [entry for entry in history if "sequence_kl" in entry]
    return [{"step": row["step"]} | {ours: row.get(theirs) for ours, theirs in _TRAJECTORY.items()} for row in rows]


def _record(
    world: World,
    config: PipelineConfig,
    method: str,
    seed: int,
    folder: Path,
    trainer: VarianceAwareRLOOTrainer,
    source: RewardSource,
    seconds: float,
) -> dict[str, Any]:
    path = trajectory(trainer.state.log_history)
    prompts = _evaluation_prompts(world, config.evaluation_completions)
    reference = reference_gold(world, config, folder)
    completions = _sample(trainer.model, trainer.processing_class, prompts, config)
    gold = world.true_reward(prompts, completions)
    tail = path[-max(1, len(path) // 10) :]
    metrics = {
        "gold_reference": reference["mean"],
        "gold_final": sum(gold) / len(gold),
        "gold_gain": sum(gold) / len(gold) - reference["mean"],
        "kl_final": sum(row["kl"] or 0.0 for row in tail) / len(tail),
        "proxy_reference": path[0]["proxy"],
        "proxy_final": sum(row["proxy"] or 0.0 for row in tail) / len(tail),
        "beta_final": path[-1]["beta"],
        "seconds": seconds,
    }
    digest = read_json(folder / "disagreement" / f"{seed}.json")["data_hash"]
    record = make_record("cell", asdict(config), seed=seed, data_hash=digest, metrics=metrics)
    samples = _samples(source, prompts, completions, gold, reference, config.samples_kept)
    return record | {"method": method, "trajectory": path, "samples": samples}


def _samples(
    source: RewardSource,
    prompts: list[str],
    completions: list[str],
    gold: list[float],
    reference: dict[str, Any],
    count: int,
) -> list[dict[str, Any]]:
    estimate = source.estimate(source.score(prompts[:count], completions[:count]))
    return [
        {
            "prompt": prompts[i],
            "reference": reference["completions"][i],
            "completion": completions[i],
            "proxy": float(estimate.mean[i]),
            "variance": float(estimate.variance[i]) if estimate.has_variance else None,
            "gold": gold[i],
            "gold_reference": reference["gold"][i],
        }
        for i in range(len(estimate))
    ]


def reference_gold(world: World, config: PipelineConfig, folder: Path) -> dict[str, Any]:
    """The reference policy's completions of the evaluation prompts and their true reward, measured once a study."""
    path = folder / "reference.json"
    if path.exists():
        held: dict[str, Any] = read_json(path)
        return held
    prompts = _evaluation_prompts(world, config.evaluation_completions)
    model = AutoModelForCausalLM.from_pretrained(world.policy_path)
    completions = _sample(model, AutoTokenizer.from_pretrained(world.policy_path), prompts, config)
    gold = world.true_reward(prompts, completions)
    found = {"mean": sum(gold) / len(gold), "gold": gold, "completions": completions, "prompts": prompts}
    write_json(path, found)
    return found


def _evaluation_prompts(world: World, count: int) -> list[str]:
    prompts = world.prompts("test")
    return [prompts[i % len(prompts)] for i in range(count)]


def _sample(model: Any, tokenizer: Any, prompts: list[str], config: PipelineConfig) -> list[str]:
    return sample_completions(
        model, tokenizer, prompts, max_new_tokens=config.max_completion_length, seed=EVALUATION_SEED
    )


def _disagreement(world: World, config: PipelineConfig, source: RewardSource, seed: int) -> dict[str, Any]:
    pairs = world.draw_preferences(config.variant, config.held_out_pairs, seed + HELD_OUT_SEED)
    return measure_disagreement(source, pairs).to_dict()


def _known_errors(source: RewardSource, reference: dict[str, Any]) -> dict[str, Any]:
    """The members' variance against their true error, on the reference policy's completions."""
    prompts = reference["prompts"]
    index = {prompt: i for i, prompt in enumerate(dict.fromkeys(prompts))}
    groups = torch.tensor([index[prompt] for prompt in prompts])
    scores = source.score(prompts, reference["completions"])
    return known_errors(scores, torch.tensor(reference["gold"]), groups).to_dict()
