"""K LoRA adapters over one base, scored together: no loop over adapters, and shared layers run once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from surefoot.errors import ConfigError, ModelError
from surefoot.files import read_json, whole_directory, write_json
from surefoot.rewards.batching import forward_tokens
from surefoot.rewards.encoding import TextEncoder, prompt_keys
from surefoot.rewards.loading import choose_device, load_classifier, load_tokenizer
from surefoot.rewards.replication import layers_of, pool_last, replicated
from surefoot.rewards.source import SOURCE, MemberSource, save_calibration
from surefoot.rewards.states import last_token, read_states
from surefoot.types import Text

__all__ = ["AdapterShape", "LoraMembers", "LoraNetwork"]

_ADAPTER = "adapter_model.safetensors"
_ADAPTER_CONFIG = "adapter_config.json"
_WRAPPED = "base_model.model."
"""What PEFT puts before every parameter's name."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """Size and place of K adapters.

    Args:
        members: K.
        rank, alpha: of every adapter; the update is (α/r) B A.
        targets: last names of the linear layers that are adapted.
        start: first adapted layer; everything below is shared and runs once.
    """

    members: int
    rank: int = 8
    alpha: float = 16.0
    targets: tuple[str, ...] = ("q_proj", "v_proj")
    start: int = 0

    def __post_init__(self) -> None:
        if self.members < 1 or self.rank < 1:
            raise ConfigError(f"members and rank must be at least 1, got {self.members} and {self.rank}")


class BatchedLora(nn.Module):
    """y = W x + (α/r) B_k A_k x for K members at once, on rows that stand member by member.

    Args:
        base: the frozen linear layer, shared by all.
    """

    def __init__(self, base: nn.Linear, shape: AdapterShape) -> None:
        super().__init__()
        self.base = base
        self.scale = shape.alpha / shape.rank
        self.lora_A = nn.Parameter(torch.zeros(shape.members, shape.rank, base.in_features))
        self.lora_B = nn.Parameter(torch.zeros(shape.members, base.out_features, shape.rank))

    def forward(self, x: Tensor) -> Tensor:
        plain = self.base(x)
        members = self.lora_A.shape[0]
        rows = x.reshape(members, -1, x.shape[-1])
        low = torch.bmm(rows, self.lora_A.to(x.dtype).transpose(1, 2))
        up = self.lora_B.to(x.dtype).transpose(1, 2)
        flat = plain.reshape(members, -1, plain.shape[-1])
        return torch.baddbmm(flat, low, up, alpha=self.scale).view_as(plain)


class LoraNetwork(nn.Module):
    """A frozen trunk with K adapters in its upper layers and K reward heads.

    Args:
        classifier: an `AutoModelForSequenceClassification` of a decoder with a linear `score`; it is taken over, its
            linear layers from `shape.start` on being wrapped.
        shape: of the adapters.

    Raises:
        ModelError: the model has no linear `score`, or none of the targets.
    """

    def __init__(self, classifier: Any, shape: AdapterShape) -> None:
        super().__init__()
        head = getattr(classifier, "score", None)
        if not isinstance(head, nn.Linear):
            raise ModelError(
                f"{type(classifier).__name__} has no linear layer 'score': LoRA members need a decoder with a "
                "classification head; use kind: heads or independent for this model"
            )
        self.shape = shape
        self.classifier = classifier.requires_grad_(False)
        self.trunk: nn.Module = getattr(classifier, classifier.base_model_prefix)
        self.adapters = _wrap(self.trunk, shape)
        self.head = nn.Parameter(head.weight.detach().float().repeat(shape.members, 1, 1))
        self.head_bias = None
        if head.bias is not None:
            self.head_bias = nn.Parameter(head.bias.detach().float().repeat(shape.members, 1))

    @property
    def device(self) -> torch.device:
        return self.head.device

    def forward(
        self, ids: Int[Tensor, "batch length"], mask: Int[Tensor, "batch length"]
    ) -> Float[Tensor, "members batch"]:
        with replicated(self.trunk, self.shape.start, self.shape.members):
            states = self.trunk(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
        return self.rewards(pool_last(states, mask))

    def rewards(self, states: Float[Tensor, "members batch features"]) -> Float[Tensor, "members batch"]:
        """Each member's head on its own last hidden states, in float32."""
        pooled = states.float()
        scores = torch.einsum("kbd,kod->kb", pooled, self.head)
        return scores if self.head_bias is None else scores + self.head_bias

    def trained(self) -> dict[str, nn.Parameter]:
        """Everything that a member owns, each tensor with the members in front."""
        found = {
            f"{name}.{side}": getattr(m, side) for name, m in self.adapters.items() for side in ("lora_A", "lora_B")
        }
        found["score.weight"] = self.head
        return found if self.head_bias is None else found | {"score.bias": self.head_bias}

    @torch.no_grad()
    def start(self, seed: int) -> None:
        """Draw the adapters and heads: each from `seed` and its member alone; B is zero, as in LoRA."""
        for k in range(self.shape.members):
            stream = torch.Generator().manual_seed((seed * 1_000_003 + k) % 2**63)
            for module in self.adapters.values():
                bound = 1 / math.sqrt(module.lora_A.shape[2])  # kaiming_uniform(a=√5), PEFT's
                drawn = torch.rand(module.lora_A.shape[1:], generator=stream)
                module.lora_A[k] = (bound * (2 * drawn - 1)).to(module.lora_A)
            self.head[k] = (0.02 * torch.randn(self.head.shape[1:], generator=stream)).to(self.head)

    def member(self, k: int) -> dict[str, Tensor]:
        """Member k's parameters by PEFT's names."""
        names = {name: _peft_name(name) for name in self.trained()}
        prefix = f"{self.classifier.base_model_prefix}."
        return {
            _WRAPPED + ("" if name.startswith("score.") else prefix) + names[name]: value[k]
            .detach()
            .cpu()
            .contiguous()
            for name, value in self.trained().items()
        }

    @torch.no_grad()
    def set_member(self, k: int, weights: dict[str, Tensor], scale: float) -> None:
        """Take member k's parameters, by PEFT's names; `scale` is its own α/r, folded into B, its rank padded."""
        prefix = f"{self.classifier.base_model_prefix}."
        left = dict(weights)
        for name, value in self.trained().items():
            key = _WRAPPED + ("" if name.startswith("score.") else prefix) + _peft_name(name)
            if key not in left:
                if name.startswith("score."):
                    continue
                raise ModelError(f"adapter {k} has no {key}; all adapters must adapt the same layers")
            found = left.pop(key).to(value)
            if name.endswith("lora_B"):
                found = found * (scale / (self.shape.alpha / self.shape.rank))
            target = value[k]
            target.zero_()
            target[tuple(slice(0, size) for size in found.shape)] = found
        if left:
            raise ModelError(f"adapter {k} also changes {', '.join(sorted(left)[:3])}, which no other layer expects")


def _wrap(trunk: nn.Module, shape: AdapterShape) -> dict[str, BatchedLora]:
    layers = layers_of(trunk)
    path = next(name for name, module in trunk.named_modules() if module is layers)
    found: dict[str, BatchedLora] = {}
    for place in range(shape.start, len(layers)):
        for name, module in list(layers[place].named_modules()):
            if isinstance(module, nn.Linear) and name.split(".")[-1] in shape.targets:
                owner, _, last = name.rpartition(".")
                wrapped = BatchedLora(module, shape).to(module.weight.device)
                setattr(layers[place].get_submodule(owner), last, wrapped)
                found[f"{path}.{place}.{name}"] = wrapped
    if not found:
        raise ModelError(f"layers {shape.start} and above hold no linear layer named {' or '.join(shape.targets)}")
    return found


def _peft_name(name: str) -> str:
    return name if name.startswith("score.") else f"{name}.weight"


class LoraMembers(MemberSource):
    """Members that are LoRA adapters over one base.

    Args:
        network: base and adapters.
        encoder: the base's text encoder.
        base: what the base was loaded from; saved adapters name it, as PEFT's do.
    """

    def __init__(self, network: LoraNetwork, encoder: TextEncoder, base: str, name: str = "lora") -> None:
        self.network = network.eval()
        self.encoder = encoder
        self.base = base
        self.name = name

    @property
    def num_members(self) -> int:
        return self.network.shape.members

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        rows, network = self.encoder(prompts, completions), self.network
        with replicated(network.trunk, network.shape.start, self.num_members):
            states = read_states(
                network.trunk,
                rows,
                pad_token_id=self.encoder.tokenizer.pad_token_id,
                tokens=forward_tokens(network.device, self.num_members),
                read_at=last_token(rows),
                keys=prompt_keys(prompts),
                copies=self.num_members,
            )
        return network.rewards(states).T.cpu()

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            names = [f"members/{k}" for k in range(self.num_members)]
            for k, name in enumerate(names):
                write_adapter(folder / name, self.network, k, self.base)
            self.encoder.tokenizer.save_pretrained(folder / "tokenizer")
            write_json(
                folder / SOURCE,
                {"kind": "lora", "name": self.name, "base": self.base, "members": names,
                 "max_length": self.encoder.max_length},
            )  # fmt: skip
            save_calibration(folder, self.calibration)

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> "LoraMembers":
        held = read_json(directory / SOURCE)
        folders = [directory / name for name in held["members"]]
        tokenizer = directory / "tokenizer"
        source = cls.from_adapters(folders, held["base"], tokenizer, max_length=held["max_length"], device=device)
        source.name = held["name"]
        return source

    @classmethod
    def from_adapters(
        cls,
        adapters: Sequence[str | Path],
        base: str | Path,
        tokenizer: str | Path | None = None,
        *,
        max_length: int = 1024,
        device: str | torch.device | None = None,
    ) -> "LoraMembers":
        """PEFT's own adapter directories over one base; ranks and alphas may differ.

        Raises:
            ModelError: an adapter is of a kind that can't be batched (DoRA, biases, other targets than the first's).
        """
        configs = [_adapter_config(Path(folder)) for folder in adapters]
        first = configs[0]
        model = load_classifier(base, choose_device(device), for_training=True)
        weights = [load_file(Path(folder) / _ADAPTER) for folder in adapters]
        shape = AdapterShape(
            members=len(configs),
            rank=max(config["r"] for config in configs),
            alpha=float(max(config["r"] for config in configs)),
            targets=tuple(sorted(first["target_modules"])),
            start=_lowest_layer(weights),
        )
        network = LoraNetwork(model, shape)
        for k, (config, values) in enumerate(zip(configs, weights, strict=True)):
            root = math.sqrt(config["r"]) if config.get("use_rslora") else config["r"]
            network.set_member(k, values, config["lora_alpha"] / root)
        encoder = TextEncoder(load_tokenizer(tokenizer or base), max_length)
        return cls(network, encoder, str(base))


def write_adapter(folder: Path, network: LoraNetwork, k: int, base: str) -> None:
    """Member k as an ordinary PEFT adapter directory."""
    folder.mkdir(parents=True, exist_ok=True)
    shape = network.shape
    save_file(network.member(k), folder / _ADAPTER)
    write_json(
        folder / _ADAPTER_CONFIG,
        {
            "peft_type": "LORA",
            "task_type": "SEQ_CLS",
            "base_model_name_or_path": base,
            "r": shape.rank,
            "lora_alpha": shape.alpha,
            "lora_dropout": 0.0,
            "bias": "none",
            "inference_mode": True,
            "target_modules": list(shape.targets),
            "layers_to_transform": list(range(shape.start, len(layers_of(network.trunk)))),
            "modules_to_save": ["score"],
        },
    )


def _adapter_config(folder: Path) -> dict[str, Any]:
    if not (folder / _ADAPTER_CONFIG).exists() or not (folder / _ADAPTER).exists():
        raise ModelError(f"{folder} is not a PEFT adapter: it needs {_ADAPTER_CONFIG} and {_ADAPTER}")
    config: dict[str, Any] = read_json(folder / _ADAPTER_CONFIG)
    foreign = [name for name in ("use_dora", "fan_in_fan_out", "rank_pattern", "alpha_pattern") if config.get(name)]
    if config.get("peft_type") != "LORA" or foreign or config.get("bias", "none") != "none":
        raise ModelError(
            f"{folder} is a {config.get('peft_type')} adapter with {', '.join(foreign) or 'biases'}, which can't be "
            "batched with others; merge it into its base and use kind: independent"
        )
    return config


def _lowest_layer(weights: list[dict[str, Tensor]]) -> int:
    numbers = [int(part) for one in weights for key in one for part in key.split(".") if part.isdigit()]
    return min(numbers, default=0)
