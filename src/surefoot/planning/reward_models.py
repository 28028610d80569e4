"""Memory of the reward source on each GPU, and of scoring one batch of completions.

As in `surefoot.rewards`: models whole on every GPU, in bf16 (fp32 on a CPU, and under LoRA members); batches of a
fixed number of computed tokens; a prompt's keys and values computed once for all its completions.
"""

from __future__ import annotations

from surefoot.planning.activations import forward_bytes
from surefoot.planning.shapes import Line, MemoryRun, ModelShape, RewardPlan

__all__ = ["GPU_TOKENS", "reward_weights", "scoring_lines"]

GPU_TOKENS = 131_072
"""Computed tokens of one scoring forward on a GPU (`surefoot.rewards.trunk.batching.forward_tokens`)."""
_CPU_TOKENS, _CPU_TOKENS_MEMBERS = 1024, 2048


def reward_weights(policy: ModelShape, run: MemoryRun, reward: RewardPlan) -> list[Line]:
    """Lines of the source's weights: trunk and members (K heads are small, K independent models K times a trunk)."""
    if reward.kind == "none":
        return []
    shape, size, k = reward.shape or policy, _weight_bytes(run, reward), reward.members
    trunk = shape.parameters - (0 if shape.tied else shape.matrix)
    if reward.kind == "independent":
        words = f"{k} × ({trunk:,} + {shape.hidden:,}) parameters × {size} B, whole on every GPU"
        return [Line(f"reward: {k} models", k * (trunk + shape.hidden) * size, words)]
    lines = [Line("reward: trunk", trunk * size, f"{trunk:,} parameters × {size} B, whole on every GPU")]
    if reward.kind == "heads":
        lines.append(Line(f"reward: {k} heads", 4 * k * shape.hidden, f"{k} × {shape.hidden:,} × 4 B (on the host)"))
    if reward.kind == "lora":
        each = shape.lora_parameters(reward.rank) + shape.hidden
        lines.append(Line(f"reward: {k} adapters and heads", 4 * k * each, f"{k} × {each:,} × 4 B"))
    if reward.kind == "laplace":
        lines.append(Line("reward: head", 4 * shape.hidden, f"{shape.hidden:,} × 4 B (its posterior is on the host)"))
    return lines


def _weight_bytes(run: MemoryRun, reward: RewardPlan) -> int:
    if reward.kind == "lora" or reward.dtype == "float32":
        return 4
    return 4 if run.device == "cpu" and reward.dtype == "auto" else 2


def _limit(run: MemoryRun, copies: int) -> int:
    if run.device == "cpu":
        return _CPU_TOKENS if copies == 1 else max(1, _CPU_TOKENS_MEMBERS // copies)
    return max(1, GPU_TOKENS // copies)


def scoring_lines(policy: ModelShape, run: MemoryRun, reward: RewardPlan) -> list[Line]:
    """Lines of scoring a batch: one layer's work, and the keys and values of prompts shared by completions."""
    if reward.kind == "none":
        return []
    shape, size = reward.shape or policy, _weight_bytes(run, reward)
    copies = reward.members if reward.kind == "lora" else 1
    rows, computed = _batch(run, _limit(run, copies), shared=reward.kind != "independent")
    rows, computed = copies * rows, copies * computed
    cell, work = 2 * shape.keys * size, forward_bytes(shape, size, run.length, rows * run.length / computed)
    words = f"{computed:,} tokens × {work:,} B" + (f" ({copies} members at once)" if copies > 1 else "")
    layer = Line("scoring: one layer's work", computed * work, words)
    if reward.kind == "independent":
        return [layer]  # each row is read by itself, without a cache
    cache = f"2 × {shape.keys} × {size} B × {shape.layers} layers × {rows} rows × {run.length} tokens"
    return [
        layer,
        Line("scoring: keys and values", cell * shape.layers * rows * run.length, cache),
    ]


def _batch(run: MemoryRun, limit: int, *, shared: bool) -> tuple[int, int]:
    """(rows of the largest scoring batch, tokens of its largest forward)."""
    group = min(run.generations, run.samples)
    if not shared or group == 1:
        rows = min(run.samples, max(1, limit // run.length))
        return rows, rows * run.length
    prompts = max(1, min(run.samples // group, limit // (run.prompt + group * run.completion)))
    return prompts * group, prompts * max(run.prompt, group * run.completion)
