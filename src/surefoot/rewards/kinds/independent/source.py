"""K separate reward models as members: each a full model with its own weights, and its own tokenizer if need be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ModelError
from surefoot.files import whole_directory, write_json
from surefoot.rewards.kinds.independent.config import IndependentConfig
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, inner_folders, read_source, save_calibration
from surefoot.rewards.source import FitJob, MemberSource, RewardSource
from surefoot.rewards.trunk.dtypes import Dtype, kept_dtype
from surefoot.rewards.trunk.loading import choose_device, load_classifier, load_encoder
from surefoot.rewards.trunk.reading import read_rewards
from surefoot.rewards.trunk.text_encoder import TextEncoder
from surefoot.types import Text

__all__ = ["IndependentMembers", "Member"]


@dataclass(slots=True)
class Member:
    """One reward model and how its text is encoded."""

    model: Any
    encoder: TextEncoder


@register("independent")
class IndependentMembers(MemberSource):
    """Members that are whole models.

    Args:
        members: the models; a source of one member scores, but has no variance.
        name: shown in logs.
        dtype: that the members were loaded in, to be saved.

    Raises:
        ModelError: no members.
    """

    settings = IndependentConfig

    def __init__(self, members: Sequence[Member], name: str = "independent", dtype: Dtype = "auto") -> None:
        if not members:
            raise ModelError("a reward source needs at least one model")
        self.members = list(members)
        self.name = name
        self.dtype = dtype

    @property
    def num_members(self) -> int:
        return len(self.members)

    @classmethod
    def from_models(
        cls,
        names: Sequence[str | Path],
        *,
        max_length: int = 1024,
        device: str | torch.device | None = None,
        dtype: Dtype = "auto",
    ) -> "IndependentMembers":
        """Existing reward models, from directories or the hub, each with its own tokenizer and chat template.

        Args:
            max_length: in tokens; a model whose own limit is lower keeps its own.
            dtype: precision that the models run in, but for their heads, which are float32.

        Raises:
            ConfigError: the precision isn't one of ours.
            ModelError: one can't be loaded, isn't a trained reward model with one output, or can't pad.
        """
        target = choose_device(device)
        return cls([_load_member(name, max_length, target, dtype) for name in names], dtype=dtype)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        from surefoot.rewards.kinds.independent.fit import train_independent

        count = job.settings.members
        return train_independent(
            job.pairs,
            [job.model, *job.settings.other_models],
            job.target,
            job.settings,
            on_step=lambda k, done, total: job.report(f"member {k + 1} of {count}", done / total),
        )

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> "IndependentMembers":
        held = read_source(directory)
        target, dtype = choose_device(device), kept_dtype(held)
        folders = inner_folders(directory, held["members"], "members")
        members = [_load_member(folder, held["max_length"], target, dtype) for folder in folders]
        return cls(members, held["name"], dtype)

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            names = [f"members/{k}" for k in range(self.num_members)]
            for name, member in zip(names, self.members, strict=True):
                member.model.save_pretrained(folder / name)
                member.encoder.tokenizer.save_pretrained(folder / name)
            write_source(folder, names, self.name, self.members[0].encoder.max_length, self.dtype)
            save_calibration(folder, self.calibration)

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        columns = [
            read_rewards(member.model, member.encoder(prompts, completions), member.encoder.tokenizer.pad_token_id)
            for member in self.members
        ]
        return torch.stack(columns, dim=1)


def write_source(folder: Path, members: list[str], name: str, max_length: int, dtype: Dtype = "auto") -> None:
    """Write `source.json` of members that lie in subfolders of `folder`."""
    held = {"kind": "independent", "name": name, "members": members, "max_length": max_length, "dtype": dtype}
    write_json(folder / SOURCE, held)


def _load_member(name: str | Path, max_length: int, device: torch.device, dtype: Dtype) -> Member:
    model = load_classifier(name, device, dtype)
    return Member(model, load_encoder(name, model, max_length))
