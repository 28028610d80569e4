"""Memory of one step of RLOO or GRPO on each GPU, by phase, as lines of bytes with their arithmetic.

Weights, gradients and optimiser states per parameter, and what sharding divides: ZeRO, arXiv:1910.02054, section 3.1
(mixed precision with Adam is 2 + 2 + 12 bytes; stage 3 divides all of them). Activations: `activations.py`. Phases of
a step: trl 1.16, `RLOOTrainer`. Units: bytes per GPU, GB is 10⁹ and GiB 2³⁰. The phases don't add up: the
peak is the largest one.
"""

from __future__ import annotations

from dataclasses import replace

from surefoot.planning import activations as act
from surefoot.planning.reward_models import reward_weights, scoring_lines
from surefoot.planning.shapes import Line, MemoryPlan, MemoryRun, ModelShape, Phase, RewardPlan

__all__ = ["ALLOWANCE_SHARE", "CONTEXT_BYTES", "plan_memory"]

CONTEXT_BYTES = 1_500_000_000
"""Allowed for the CUDA context and the buffers of NCCL and cuBLAS; a rule of thumb, not measured here."""
ALLOWANCE_SHARE = 0.05
"""Allowed for fragmentation of the allocator, as a share of the phase; a rule of thumb, not measured here."""
_LIVE = 1_000_000_000
"""Parameters that DeepSpeed's ZeRO-3 keeps gathered by default (`stage3_max_live_parameters`)."""


def plan_memory(shape: ModelShape, run: MemoryRun, reward: RewardPlan | None = None) -> MemoryPlan:
    """Memory of each GPU in every phase of a step, from the second step on.

    Args:
        shape: of the policy (and of the reference).
        run: how it is trained.
        reward: where the reward comes from; None is `RewardPlan()`, heads on a trunk of the policy's size.

    Example:
        >>> shape = ModelShape("tiny", 1000, 400, 200, 8, 2, 2, 1, 4, 16, 25)
        >>> plan = plan_memory(shape, MemoryRun(precision="fp32", device="cpu"), RewardPlan("none"))
        >>> plan.phase("generation").lines[0]
        Line(name='policy: weights', bytes=4000, arithmetic='1,000 parameters × 4 B')
    """
    source = reward if reward is not None else RewardPlan()
    held = _held(shape, run) + reward_weights(shape, run, source)
    moments = {
        "generation": _generation(shape, run),
        "log-probabilities": _log_probabilities(shape, run),
        "rewards": scoring_lines(shape, run, source),
        "loss": _loss(shape, run),
        "backward, first layer": _backward(shape, run),
        "backward, last layer": _backward_end(shape, run),
    }
    phases = tuple(_phase(name, [*held, *lines], run) for name, lines in moments.items())
    return MemoryPlan(shape, run, source, phases)


def _phase(name: str, lines: list[Line], run: MemoryRun) -> Phase:
    kept = [line for line in lines if line.bytes]
    if run.device == "gpu":
        total = sum(line.bytes for line in kept)
        size = CONTEXT_BYTES + ALLOWANCE_SHARE * total
        words = f"{CONTEXT_BYTES / 1e9:.1f} GB + {ALLOWANCE_SHARE:.0%} of the above; not measured"
        kept.append(Line("allowance: context, NCCL, fragmentation", round(size), words))
    return Phase(name, tuple(kept))


# --- held throughout -------------------------------------------------------------------------------------------


def _weight_bytes(run: MemoryRun) -> int:
    """Bytes of a stored parameter; ZeRO-3 stores bf16 and an fp32 master copy, otherwise the weight is the master."""
    return 4 if run.precision == "fp32" or (run.precision == "bf16_mixed" and run.sharding != "zero3") else 2


def _trained(shape: ModelShape, run: MemoryRun) -> int:
    return shape.lora_parameters(run.lora_rank) if run.lora_rank else shape.parameters


def _gradient_bytes(run: MemoryRun) -> int:
    return 4 if run.lora_rank and run.sharding != "zero3" else _weight_bytes(run)


def _held(shape: ModelShape, run: MemoryRun) -> list[Line]:
    weight, trained, n = _weight_bytes(run), _trained(shape, run), run.shards
    lines = [_each("policy: weights", shape.parameters, weight, n)]
    if run.lora_rank:
        words = f"policy: adapter of rank {run.lora_rank}"
        lines.append(_each(words, trained, 2 if run.sharding == "zero3" else 4, n))
    if run.sharding == "zero3":
        lines.append(_each("policy: fp32 master weights", trained, 4, n))
    lines.append(_each(f"policy: {run.optimiser} states", trained, _state_bytes(run), n))
    if run.separate_reference:
        lines.append(_each("reference: weights", shape.parameters, weight, n))
    if run.generation == "vllm_colocate":
        size = run.vllm_share * run.gpu_gib * 2**30
        words = f"{run.vllm_share:g} × {run.gpu_gib:g} GiB, its weights and cache"
        lines.append(Line("generation: vLLM's share", round(size), words))
    return lines


def _state_bytes(run: MemoryRun) -> int | float:
    """Bytes of Adam's two moments per parameter.

    They have the parameter's dtype, which is fp32 for master copies and adapters; or 8 bits with one fp32 scale for
    each block of 256 (bitsandbytes; paged moments can be moved to the host, but are counted).
    """
    if run.optimiser != "adamw":
        return 2 * (1 + 4 / 256)
    return 4 if run.precision == "bf16" and run.sharding != "zero3" and not run.lora_rank else 8


def _each(name: str, parameters: int, size: int | float, shards: int) -> Line:
    words = f"{parameters:,} parameters × {size:g} B" + (f" / {shards} GPUs" if shards > 1 else "")
    return Line(name, round(parameters * size / shards), words)


# --- the phases --------------------------------------------------------------------------------------------


def _gathered(shape: ModelShape, run: MemoryRun, *, backward: bool = False) -> list[Line]:
    """Parameters gathered on each GPU at one time: the root's, and those of the current layer and the next."""
    if run.sharding == "none":
        return []
    count = shape.root_parameters + 2 * shape.layer_parameters
    words = f"root {shape.root_parameters:,} + 2 layers × {shape.layer_parameters:,}"
    if run.sharding == "zero3" and count < min(_LIVE, shape.parameters):
        count, words = min(_LIVE, shape.parameters), "ZeRO-3 lets 1,000,000,000 parameters live"
    lines = [Line("gathered parameters", count * run.compute, f"{words}, × {run.compute} B")]
    if backward and not run.lora_rank:
        head = shape.matrix if run.sharding == "fsdp" else 0  # FSDP divides the root's when all is done
        words = f"2 layers × {shape.layer_parameters:,}" + (f" + output head {head:,}" if head else "")
        size = (2 * shape.layer_parameters + head) * run.compute
        lines.append(Line("gradients, whole", size, f"({words}) × {run.compute} B before they are divided"))
    return lines


def _generation(shape: ModelShape, run: MemoryRun) -> list[Line]:
    lines = _kept_gradients(shape, run)
    if run.generation != "transformers":
        return lines + _gathered(shape, run)
    if run.sharding == "zero3" and run.gather_for_generation:
        words = f"{shape.parameters:,} × {run.compute} B, whole on every GPU (ds3_gather_for_generation)"
        lines.append(Line("gathered parameters", shape.parameters * run.compute, words))
    else:
        lines += _gathered(shape, run)
    return [*lines, *_casts(shape, run), *_sampling(shape, run)]


def _sampling(shape: ModelShape, run: MemoryRun) -> list[Line]:
    """Key-value cache and logits at the end of decoding, or cache and forward of the prompts if that is larger."""
    c, residual = run.compute, 4 if run.autocast else run.compute
    cell = shape.keys * (residual + c)  # under autocast the rotation leaves keys in fp32
    grown = round(run.samples * run.length * cell * (shape.layers + 0.5))
    logits = run.samples * shape.vocabulary * (c + 3 * 4)
    work = act.forward_bytes(shape, c, run.prompt, attention=run.attention, residual=residual)
    first = run.samples * run.prompt * (cell * shape.layers + work)
    if first > grown + logits:
        words = f"{run.samples} × {run.prompt} tokens × (keys and values {cell * shape.layers:,} B + one layer's work)"
        return [Line("prompts: cache and one layer", first, words)]
    tokens = f"{run.samples} × {run.length} tokens"
    kv = f"{shape.keys} × ({residual} + {c}) B × {tokens} × ({shape.layers} layers + ½ being copied)"
    words = f"{run.samples} × {shape.vocabulary:,} words × ({c} B + 3 × 4 B in fp32)"
    return [Line("cache of keys and values", grown, kv), Line("logits of the next token", logits, words)]


def _log_probabilities(shape: ModelShape, run: MemoryRun) -> list[Line]:
    """Memory of computing log-probabilities: one layer's work, or the output head's tile if that is larger."""
    c, residual = run.compute, 4 if run.autocast else run.compute
    layer = run.tokens * act.forward_bytes(shape, c, run.length, attention=run.attention, residual=residual)
    hidden = run.tokens * 2 * shape.hidden * residual
    head = hidden + act.head_forward(shape, run)
    name, size = ("one layer's work", layer) if layer > head else ("tile of logits and hidden states", head)
    words = f"{run.tokens:,} tokens × {size / run.tokens:,.0f} B"
    return [*_kept_gradients(shape, run), *_gathered(shape, run), *_casts(shape, run), Line(name, size, words)]


def _casts(shape: ModelShape, run: MemoryRun) -> list[Line]:
    """bf16 copies of fp32 weights, which autocast keeps until the forward ends."""
    if not run.autocast or (run.lora_rank and not run.separate_reference):
        return []
    count = shape.layers * shape.layer_parameters
    return [Line("bf16 copies of the weights (autocast)", 2 * count, f"{count:,} parameters of layers × 2 B")]


def _kept_gradients(shape: ModelShape, run: MemoryRun) -> list[Line]:
    """Gradients outside of the update: none but ZeRO-3's partition, which is kept."""
    return _gradients(shape, run) if run.sharding == "zero3" else []


def _gradients(shape: ModelShape, run: MemoryRun) -> list[Line]:
    return [_each("policy: gradients", _trained(shape, run), _gradient_bytes(run), run.shards)]


def _gradients_so_far(shape: ModelShape, run: MemoryRun, *, head: bool) -> list[Line]:
    """Gradients when the backward begins: those of earlier accumulation steps, or only the output head's."""
    if run.accumulation > 1 or run.sharding == "zero3":
        return _gradients(shape, run)
    if not head or run.lora_rank:
        return []
    return [_each("policy: gradient of the output head", shape.matrix, _gradient_bytes(run), run.shards)]


def _saved(shape: ModelShape, run: MemoryRun) -> Line:
    t, n = run.tokens, shape.layers
    if run.gradient_checkpointing:
        size = shape.hidden * (4 if run.autocast else run.compute)
        words = f"{n} layers × {t:,} tokens × {size:,} B, each layer's input (checkpointing)"
        return Line("activations", n * t * size, words)
    size = act.layer_saved(shape, run)
    return Line("activations", n * t * size, f"{n} layers × {t:,} tokens × {size:,} B")


def _one_layer(shape: ModelShape, run: MemoryRun) -> Line:
    size = act.layer_saved(shape, run)
    return Line("activations of one layer", run.tokens * size, f"{run.tokens:,} tokens × {size:,} B")


def _layer_gradients(shape: ModelShape, run: MemoryRun) -> Line:
    size = act.layer_backward(shape, run)
    return Line("gradients of activations", run.tokens * size, f"{run.tokens:,} tokens × {size:,} B")


def _loss(shape: ModelShape, run: MemoryRun) -> list[Line]:
    """Memory of the loss: all activations, and the output head's forward and backward."""
    head, t = act.head_backward(shape, run), run.tokens
    final = act.final_bytes(shape, run)
    words = "a tile of logits, and gradients in fp32 of hidden states" + (
        "" if run.lora_rank else f" and of the weight, {shape.matrix:,} × 4 B"
    )
    casts = _casts(replace(shape, layers=1), run) if run.gradient_checkpointing else _casts(shape, run)
    return [
        *_gradients_so_far(shape, run, head=False), *_gathered(shape, run, backward=True), *casts,
        _saved(shape, run), Line("last norm", t * final, f"{t:,} tokens × {final:,} B"),
        Line("output head", head, words),
    ]  # fmt: skip


def _backward(shape: ModelShape, run: MemoryRun) -> list[Line]:
    """Memory of the backward of the last layer, when nearly all activations are still kept."""
    again = [_one_layer(shape, run)] if run.gradient_checkpointing else []
    casts = _casts(replace(shape, layers=1), run) if run.gradient_checkpointing else _casts(shape, run)
    gradients = _gradients_so_far(shape, run, head=True)
    work = [_saved(shape, run), *again, _layer_gradients(shape, run)]
    return [*gradients, *_gathered(shape, run, backward=True), *casts, *work]


def _backward_end(shape: ModelShape, run: MemoryRun) -> list[Line]:
    """Memory of the backward of the lowest layer or of the embedding, whose gradient is whole, if that is larger."""
    work = [_one_layer(shape, run), _layer_gradients(shape, run)]
    size = shape.matrix * _gradient_bytes(run)
    if not run.lora_rank and size > sum(line.bytes for line in work):
        work = [Line("gradient of the embedding", size, f"{shape.matrix:,} × {_gradient_bytes(run)} B, whole")]
    return [_gradients_before_embedding(shape, run), *_gathered(shape, run, backward=True), *work]


def _gradients_before_embedding(shape: ModelShape, run: MemoryRun) -> Line:
    """Gradients before the embedding's is added, unless it exists already (tied head, earlier accumulation step)."""
    has_one = shape.tied or run.accumulation > 1 or run.sharding == "zero3" or run.lora_rank > 0
    count = _trained(shape, run) - (0 if has_one else shape.matrix)
    return _each("policy: gradients", count, _gradient_bytes(run), run.shards)
