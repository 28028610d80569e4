"""Inputs and results of a memory plan: model shape, run settings, and lines of bytes with arithmetic."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

from surefoot.errors import ConfigError

__all__ = ["Line", "MemoryPlan", "MemoryRun", "ModelShape", "Phase", "RewardPlan"]

SHARDING = ("none", "fsdp", "zero3")
PRECISION = ("bf16_mixed", "bf16", "fp32")
OPTIMISER = ("adamw", "adamw_8bit", "paged_adamw_8bit")
ATTENTION = ("sdpa", "eager", "flash")
GENERATION = ("transformers", "vllm_colocate", "vllm_server")
REFERENCE = ("auto", "separate", "adapter", "none")
REWARDS = ("none", "heads", "independent", "lora", "laplace")
DEVICE = ("gpu", "cpu")
DTYPE = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a Llama-like decoder (RMSNorm, rotary positions, grouped queries, gated MLP).

    Args:
        parameters: all of them, tied ones once.
        layer_parameters: of one decoder layer, the unit that FSDP and ZeRO-3 gather.
        root_parameters: outside the layers: embeddings, output head, last norm.
        hidden, layers, heads, kv_heads, head_dim, intermediate, vocabulary: as in the model's config.
        tied: the output head is the embedding.
    """

    name: str
    parameters: int
    layer_parameters: int
    root_parameters: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocabulary: int
    tied: bool = False

    def __post_init__(self) -> None:
        _positive(self, *(f.name for f in fields(self) if f.type == "int"))

    @property
    def queries(self) -> int:
        """Width of all query heads together."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of all key heads together, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def matrix(self) -> int:
        """Parameters of the embedding, and of the output head."""
        return self.vocabulary * self.hidden

    @property
    def largest_unit(self) -> int:
        """Parameters of the largest unit that is gathered at once."""
        return max(self.layer_parameters, self.root_parameters)

    def lora_parameters(self, rank: int) -> int:
        """Parameters of one adapter on the query and value projections, PEFT's choice for Llama and Qwen."""
        return self.layers * rank * (2 * self.hidden + self.queries + self.keys)


@dataclass(frozen=True, slots=True)
class RewardPlan:
    """Settings of the reward source, whose models are whole on every GPU (only policy and reference are sharded).

    Args:
        kind: "none" also where rewards come from elsewhere (a server, a judge, a function).
        members: K.
        shape: of the reward model; None takes the policy's.
        rank: of LoRA members.
        dtype: of frozen weights, as in a source's settings: "auto" is float32 on a CPU, bfloat16 on a GPU.
    """

    kind: str = "heads"
    members: int = 5
    shape: ModelShape | None = None
    rank: int = 8
    dtype: str = "auto"

    def __post_init__(self) -> None:
        _one_of(self, kind=REWARDS, dtype=DTYPE)
        _positive(self, "members", "rank")


@dataclass(frozen=True, slots=True)
class MemoryRun:
    """Settings of a run that its memory depends on; names as in TRL where it has them.

    Args:
        gpus: over which parameters, gradients and optimiser states are divided, if `sharding` isn't "none".
        batch: sequences of one forward and backward on one GPU.
        accumulation: gradient accumulation steps; the GPU samples batch × accumulation completions at once.
        generations: completions of one prompt.
        prompt, completion: tokens, the longest of a batch.
        precision: "bf16_mixed" keeps fp32 parameters and computes in bf16 (TRL's default); "bf16" keeps bf16 alone.
        lora_rank: of the policy's adapter on queries and values; 0 trains everything.
        lora_dropout: whether the adapter has dropout (PEFT saves a mask and a copy for it).
        reference: "auto" is "adapter" (the policy with its adapter off) with LoRA, else "separate".
        gather_for_generation: ZeRO-3 gathers the whole policy on every GPU to sample (TRL's default).
        gpu_gib: of one GPU; vLLM on the training GPUs takes `vllm_share` of it.
        device: "cpu" has torch's instead of Triton's kernels, no allowance, and smaller scoring batches.
    """

    gpus: int = 1
    sharding: str = "none"
    batch: int = 8
    accumulation: int = 1
    generations: int = 8
    prompt: int = 512
    completion: int = 512
    precision: str = "bf16_mixed"
    gradient_checkpointing: bool = True
    optimiser: str = "adamw"
    attention: str = "sdpa"
    lora_rank: int = 0
    lora_dropout: bool = True
    reference: str = "auto"
    generation: str = "transformers"
    gather_for_generation: bool = True
    vllm_share: float = 0.3
    gpu_gib: float = 80.0
    device: str = "gpu"

    def __post_init__(self) -> None:
        kinds = {"sharding": SHARDING, "precision": PRECISION, "optimiser": OPTIMISER, "attention": ATTENTION}
        _one_of(self, **kinds, reference=REFERENCE, generation=GENERATION, device=DEVICE)
        _positive(self, "gpus", "batch", "accumulation", "generations", "prompt", "completion", "gpu_gib")
        if self.lora_rank < 0:
            raise ConfigError(f"lora_rank must be at least 0 (0 trains everything), got {self.lora_rank}")
        if not 0 < self.vllm_share < 1:
            raise ConfigError(f"vllm_share must lie between 0 and 1, got {self.vllm_share}")
        if self.reference == "adapter" and not self.lora_rank:
            raise ConfigError("reference 'adapter' is the policy with its adapter off; it needs lora_rank above 0")

    @property
    def shards(self) -> int:
        return 1 if self.sharding == "none" else self.gpus

    @property
    def length(self) -> int:
        return self.prompt + self.completion

    @property
    def tokens(self) -> int:
        """Tokens of one forward and backward."""
        return self.batch * self.length

    @property
    def samples(self) -> int:
        """Completions that one GPU samples and scores at once."""
        return self.batch * self.accumulation

    @property
    def compute(self) -> int:
        """Bytes of one number in the forward."""
        return 4 if self.precision == "fp32" else 2

    @property
    def autocast(self) -> bool:
        """Whether fp32 weights are used under autocast; FSDP and DeepSpeed give the forward bf16 weights instead."""
        return self.precision == "bf16_mixed" and self.sharding == "none"

    @property
    def separate_reference(self) -> bool:
        return self.reference == "separate" or (self.reference == "auto" and not self.lora_rank)


@dataclass(frozen=True, slots=True)
class Line:
    """One item of a plan: bytes on one GPU, and their arithmetic."""

    name: str
    bytes: int
    arithmetic: str


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a step, with everything in memory at that time."""

    name: str
    lines: tuple[Line, ...]

    @property
    def bytes(self) -> int:
        return sum(line.bytes for line in self.lines)


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Memory of one GPU by phase; permanent items are in every phase, and the peak is the largest phase."""

    shape: ModelShape
    run: MemoryRun
    reward: RewardPlan
    phases: tuple[Phase, ...]

    @property
    def peak(self) -> Phase:
        return max(self.phases, key=lambda phase: phase.bytes)

    def phase(self, name: str) -> Phase:
        return next(phase for phase in self.phases if phase.name == name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; bytes per GPU."""
        phases = [
            {"name": phase.name, "bytes": phase.bytes, "lines": [asdict(line) for line in phase.lines]}
            for phase in self.phases
        ]
        return {
            "shape": asdict(self.shape),
            "run": asdict(self.run),
            "reward": asdict(self.reward),
            "phases": phases,
            "peak": {"phase": self.peak.name, "bytes": self.peak.bytes},
        }


def _positive(values: Any, *names: str) -> None:
    for name in names:
        if getattr(values, name) <= 0:
            raise ConfigError(f"{name} must be at least 1, got {getattr(values, name)}")


def _one_of(values: Any, **kinds: tuple[str, ...]) -> None:
    for name, kind in kinds.items():
        given, known = getattr(values, name), kind
        if given not in known:
            raise ConfigError(f"{name} must be one of {', '.join(known)}, got '{given}'")
