"""MC dropout of a reward model you already have: K thinned models, each a fixed function of the text.

A member is a fixed set of features that are switched off (Gal and Ghahramani, arXiv:1506.02142, with masks drawn
once, so that a text's score doesn't depend on its batch). Masks stand where the model has dropout layers; a model
without any, as most decoders are, is thinned at the input of every feed-forward block from `start` on and at its head.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from surefoot.errors import ConfigError, ModelError
from surefoot.files import whole_directory, write_json
from surefoot.rewards.kinds.laplace import load_reader
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, read_source, save_calibration
from surefoot.rewards.source import FitJob, MemberSource, RewardSource
from surefoot.rewards.trunk.batching import forward_tokens, length_sorted_batches
from surefoot.rewards.trunk.dtypes import Dtype, kept_dtype
from surefoot.rewards.trunk.hidden_states import read_states
from surefoot.rewards.trunk.reading import apply_head, decoder_head, head_in_float32, own_pad, read_places
from surefoot.rewards.trunk.replicated_layers import layers_of, replicated, start_layer
from surefoot.rewards.trunk.text_encoder import TextEncoder, prompt_keys
from surefoot.types import Text

__all__ = ["DropoutConfig", "DropoutMembers"]


@dataclass(slots=True)
class DropoutConfig:
    """Settings of MC dropout.

    Args:
        rate: share of the features that are off.
        start: share of the depth below which the members share everything.
        dtype: precision that the model runs in, but for its head, which is float32.
    """

    members: int = 5
    seed: int = 0
    rate: float = field(default=0.1, metadata={"help": "Share of the features that a member lacks."})
    start: float = field(default=0.0, metadata={"help": "Share of the depth below which nothing is dropped."})
    max_length: int = 1024
    dtype: Dtype = "auto"

    def __post_init__(self) -> None:
        if not 0 < self.rate < 1:
            raise ConfigError(f"rate must lie between 0 and 1, got {self.rate}")


@register("dropout")
class DropoutMembers(MemberSource):
    """K fixed thinnings of one reward model.

    Args:
        model: an `AutoModelForSequenceClassification` with one output.
        encoder: its text encoder.
        config: how many, how thin, from where, and the seed that the masks are drawn from.
    """

    settings = DropoutConfig
    made_from = "reward model"

    def __init__(self, model: Any, encoder: TextEncoder, config: DropoutConfig, name: str = "dropout") -> None:
        self.model, self.encoder, self.config, self.name = model.eval(), encoder, config, name
        self.trunk: nn.Module = getattr(model, model.base_model_prefix)
        self.first = start_layer(self.trunk, config.start)
        self.places = _places(model, self.trunk, self.first)
        heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
        if not heads:
            raise ModelError(f"{type(model).__name__} has no linear layer with one output")
        self.head = heads[-1]
        self.shares = decoder_head(model) is self.head

    @classmethod
    def from_model(
        cls, model: str | Path, config: DropoutConfig, *, device: str | torch.device | None = None
    ) -> "DropoutMembers":
        """Thin an existing reward model (directory or hub name)."""
        reader, encoder = load_reader(model, config.max_length, device, config.dtype)
        return cls(reader.model, encoder, config)

    @property
    def num_members(self) -> int:
        return self.config.members

    @torch.no_grad()
    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        rows, device = self.encoder(prompts, completions), self.model.device
        if self.shares:
            return self._score_shared(rows, prompt_keys(prompts))
        scores = torch.full((len(rows), self.num_members), torch.nan)
        pad, tokens = self.encoder.tokenizer.pad_token_id, forward_tokens(device, self.num_members)
        replica = replicated(self.trunk, self.first, self.num_members)
        with replica, self._thinned(), head_in_float32(self.model):
            for batch, ids, mask in length_sorted_batches(rows, pad_token_id=pad, tokens=tokens, device=device):
                scores[batch] = self._members(ids, mask).float().cpu()
        return scores

    def _score_shared(self, rows: list[list[int]], keys: list[str]) -> Float[Tensor, "batch members"]:
        """A decoder's trunk read where its head reads, with each prompt computed once."""
        pad = self.encoder.tokenizer.pad_token_id
        with replicated(self.trunk, self.first, self.num_members), self._thinned():
            states = read_states(
                self.trunk,
                rows,
                pad_token_id=pad,
                tokens=forward_tokens(self.model.device, self.num_members),
                read_at=read_places(rows, own_pad(self.model)),
                keys=keys,
                copies=self.num_members,
            )
            thinned = self._hook(len(self.places) - 1)(self.head, (states.flatten(0, 1),))[0]
            return apply_head(self.head, thinned).view(self.num_members, -1).T.cpu()

    def _members(self, ids: Tensor, mask: Tensor) -> Float[Tensor, "batch members"]:
        """The classifier on ids repeated member by member would run the shared layers K times; its trunk does not."""
        copies = ids.repeat(self.num_members, 1)
        trunk, self_forward = self.trunk, self.trunk.forward

        def once(input_ids: Any = None, attention_mask: Any = None, **rest: Any) -> Any:
            rest.pop("inputs_embeds", None)
            return self_forward(input_ids=ids, attention_mask=mask, **rest)

        trunk.forward = once
        try:
            logits = self.model(input_ids=copies, attention_mask=mask.repeat(self.num_members, 1)).logits[:, 0]
        finally:
            del trunk.forward
        return logits.view(self.num_members, -1).T

    @contextmanager
    def _thinned(self) -> Iterator[None]:
        with ExitStack() as stack:
            for index, module in enumerate(self.places):
                handle = module.register_forward_pre_hook(self._hook(index))
                stack.callback(handle.remove)
            yield

    def _hook(self, index: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def thin(module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
            x = args[0]
            masks = self._masks(index, x.shape[-1]).to(x)
            rows = x.view(self.num_members, -1, *x.shape[1:])
            shape = (self.num_members, *[1] * (rows.ndim - 2), x.shape[-1])
            return ((rows * masks.view(shape)).view_as(x), *args[1:])

        return thin

    def _masks(self, index: int, features: int) -> Float[Tensor, "members features"]:
        """0 or 1/(1 − rate); each member's from the seed, its number and the place alone."""
        kept = []
        for k in range(self.num_members):
            stream = torch.Generator().manual_seed(((self.config.seed * 1_000_003 + k) * 1009 + index) % 2**63)
            kept.append(torch.rand(features, generator=stream) >= self.config.rate)
        return torch.stack(kept) / (1 - self.config.rate)

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            self.model.save_pretrained(folder / "model")
            self.encoder.tokenizer.save_pretrained(folder / "model")
            held = asdict(self.config)
            write_json(folder / SOURCE, {"kind": "dropout", "name": self.name, "config": held})
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return cls.from_model(job.model, job.settings)

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> "DropoutMembers":
        held = read_source(directory)
        config = DropoutConfig(**{**held["config"], "dtype": kept_dtype(held["config"])})
        source = cls.from_model(directory / "model", config, device=device)
        source.name = held["name"]
        return source


def _places(model: nn.Module, trunk: nn.Module, first: int) -> list[nn.Module]:
    """Modules whose input is thinned: the dropout layers from `first` on, or the feed-forward blocks; and the head."""
    layers = list(layers_of(trunk))[first:]
    places: list[nn.Module] = [m for y in layers for m in y.modules() if isinstance(m, nn.Dropout) and m.p > 0]
    # A dropout layer inside attention sees probabilities, whose last axis is a position and not a feature.
    places = [m for m in places if not _in_attention(layers, m)]
    if not places:
        blocks = [getattr(layer, name) for layer in layers for name in ("mlp", "feed_forward") if hasattr(layer, name)]
        places = [block for block in blocks if isinstance(block, nn.Module)]
    heads = [m for m in model.modules() if isinstance(m, nn.Linear) and m.out_features == 1]
    return [*places, *heads[-1:]]


def _in_attention(layers: Sequence[nn.Module], dropout: nn.Module) -> bool:
    names = [name for layer in layers for name, module in layer.named_modules() if module is dropout]
    return any(name.endswith(("attention.self.dropout", "attn_dropout", "attention.dropout")) for name in names)
