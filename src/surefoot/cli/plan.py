"""Estimate memory for `surefoot study --plan`: settings, a table for the terminal, and JSON."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from surefoot.planning.memory import plan_memory
from surefoot.planning.process_memory import with_process
from surefoot.planning.shapes import (
    ATTENTION,
    DEVICE,
    DTYPE,
    GENERATION,
    OPTIMISER,
    PRECISION,
    REFERENCE,
    REWARDS,
    SHARDING,
    Line,
    MemoryPlan,
    MemoryRun,
    Phase,
    RewardPlan,
)

__all__ = ["MemoryPlanArguments", "memory_json", "memory_plan", "memory_table"]


@dataclass
class MemoryPlanArguments:
    """What the memory of a named model size depends on."""

    device: str = field(
        default="gpu",
        metadata={"help": "plan: cpu is one process, with its libraries, as `top` shows it.", "choices": DEVICE},
    )
    gpus: int = field(default=8, metadata={"help": "plan: GPUs that parameters and states are divided over."})
    sharding: str = field(
        default="fsdp", metadata={"help": "plan: fsdp is FSDP2, full shard; zero3 DeepSpeed's.", "choices": SHARDING}
    )
    per_device_train_batch_size: int = field(
        default=1, metadata={"help": "plan: sequences of one forward and backward on a GPU."}
    )
    gradient_accumulation_steps: int = field(
        default=8, metadata={"help": "plan: batches of one update; all of an update are sampled at once."}
    )
    num_generations: int = field(default=8, metadata={"help": "plan: completions of one prompt."})
    prompt_tokens: int = field(default=512, metadata={"help": "plan: longest prompt."})
    max_completion_length: int = field(default=512, metadata={"help": "plan: longest completion."})
    precision: str = field(
        default="bf16_mixed",
        metadata={"help": "plan: bf16_mixed has fp32 weights, TRL's default.", "choices": PRECISION},
    )
    gradient_checkpointing: bool = field(
        default=True, metadata={"help": "plan: gradient checkpointing, TRL's default."}
    )
    optimiser: str = field(default="adamw", metadata={"help": "plan: the policy's.", "choices": OPTIMISER})
    attention: str = field(default="sdpa", metadata={"help": "plan: how it is computed.", "choices": ATTENTION})
    adapter_rank: int = field(default=0, metadata={"help": "plan: LoRA rank of the policy; 0 trains everything."})
    reference: str = field(
        default="auto",
        metadata={"help": "plan: adapter is the policy with LoRA off; auto does as TRL.", "choices": REFERENCE},
    )
    generation: str = field(
        default="transformers", metadata={"help": "plan: what samples the completions.", "choices": GENERATION}
    )
    gpu_gib: float = field(default=80.0, metadata={"help": "plan: memory of one GPU in GiB."})
    reward_kind: str = field(
        default="heads", metadata={"help": "plan: none if rewards are computed elsewhere.", "choices": REWARDS}
    )
    members: int = field(default=5, metadata={"help": "plan: K reward models, adapters or heads."})
    reward_dtype: str = field(
        default="auto", metadata={"help": "plan: frozen reward models; auto is float32 on a CPU.", "choices": DTYPE}
    )
    reward_size: str | None = field(
        default=None, metadata={"help": "plan: reward model's size or directory; the policy's if not given."}
    )


def memory_plan(model_size: str, given: MemoryPlanArguments) -> MemoryPlan:
    """The plan of a named size (7B, 32B, 70B) or of a model's directory or config.json.

    Raises:
        ConfigError: an unknown size (the nearest is named) or a setting that isn't usable.
        ModelError: a config that can't be read, or isn't a Llama-like decoder's.
    """
    from surefoot.planning.model_shape import model_shape

    reward = RewardPlan(
        given.reward_kind,
        given.members,
        None if given.reward_size is None else model_shape(given.reward_size),
        dtype=given.reward_dtype,
    )
    plan = plan_memory(model_shape(model_size), _run(given), reward)
    return with_process(plan) if given.device == "cpu" else plan


def _run(given: MemoryPlanArguments) -> MemoryRun:
    names = ("device", "gpus", "sharding", "precision", "optimiser", "attention", "reference", "generation", "gpu_gib")
    same: dict[str, Any] = {name: getattr(given, name) for name in names}
    if given.device == "cpu":
        same |= {"gpus": 1, "sharding": "none"}
    return MemoryRun(
        batch=given.per_device_train_batch_size,
        accumulation=given.gradient_accumulation_steps,
        generations=given.num_generations,
        prompt=given.prompt_tokens,
        completion=given.max_completion_length,
        gradient_checkpointing=given.gradient_checkpointing,
        lora_rank=given.adapter_rank,
        **same,
    )


def memory_table(plan: MemoryPlan) -> Any:
    """A rich group: the phases, the peak's lines with their arithmetic, and whether it fits, in words."""
    from rich.console import Group

    run, shape = plan.run, plan.shape
    where = "one process on a CPU" if run.device == "cpu" else f"{run.gpus} GPUs, sharding {run.sharding}"
    head = f"{shape.name}: {shape.parameters:,} parameters; {where}"
    return Group(head, _phases(plan), f"at the peak, {plan.peak.name}:", _lines(plan.peak), *memory_words(plan))


def _phases(plan: MemoryPlan) -> Any:
    from rich.table import Table

    table = Table()
    table.add_column("phase of a step")
    table.add_column("GiB" if plan.run.device == "cpu" else "GiB per GPU", justify="right")
    for phase in plan.phases:
        table.add_row(phase.name + (" (peak)" if phase is plan.peak else ""), gib(phase.bytes))
    return table


def _lines(phase: Phase) -> Any:
    from rich.table import Table

    table = Table(show_footer=True)
    table.add_column("held", footer="together")
    table.add_column("GiB", justify="right", footer=gib(phase.bytes))
    table.add_column("arithmetic")
    for line in phase.lines:
        table.add_row(line.name, gib(line.bytes), line.arithmetic)
    return table


def memory_words(plan: MemoryPlan) -> list[str]:
    """Whether it fits, what takes most, and what isn't known."""
    peak, room = plan.peak, plan.run.gpu_gib * 2**30
    largest: Line = max(peak.lines, key=lambda line: line.bytes)
    if plan.run.device == "cpu":
        return [
            f"The peak is {gib(peak.bytes)} GiB ({peak.name}).",
            f"Most of it: {largest.name}, {gib(largest.bytes)} GiB.",
            "It is for batches of the longest prompt; shorter ones take less (docs/results/memory.md).",
        ]
    fits = "fits" if peak.bytes <= room else "does not fit"
    return [
        f"The peak, {gib(peak.bytes)} GiB ({peak.name}), {fits} into {plan.run.gpu_gib:g} GiB.",
        f"Most of it: {largest.name}, {gib(largest.bytes)} GiB.",
        "The allowance is a rule of thumb: CUDA's context, NCCL's buffers and fragmentation were not measured.",
    ]


def memory_json(plan: MemoryPlan) -> dict[str, Any]:
    """The plan as plain values, bytes per GPU."""
    fits = None if plan.run.device == "cpu" else plan.peak.bytes <= plan.run.gpu_gib * 2**30
    return plan.to_dict() | {"fits": fits, "words": memory_words(plan)}


def gib(size: int) -> str:
    return f"{size / 2**30:,.2f}"
