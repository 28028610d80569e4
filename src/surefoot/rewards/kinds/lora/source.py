"""Reward members that are LoRA adapters over one base: a source that scores them together, saved as PEFT's."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ModelError
from surefoot.files import whole_directory, write_json
from surefoot.rewards.kinds.lora.config import LoraConfig
from surefoot.rewards.kinds.lora.layers import AdapterShape
from surefoot.rewards.kinds.lora.network import LoraNetwork
from surefoot.rewards.kinds.lora.peft_files import read_adapters, take_base, write_adapter
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, base_of, inner_folders, read_source, save_calibration
from surefoot.rewards.source import FitJob, MemberSource, RewardSource
from surefoot.rewards.trunk.loading import choose_device, load_base, load_encoder
from surefoot.rewards.trunk.text_encoder import TextEncoder, prompt_keys
from surefoot.types import Text

__all__ = ["AdapterShape", "LoraMembers", "LoraNetwork"]


@register("lora")
class LoraMembers(MemberSource):
    """Members that are LoRA adapters over one base.

    A saved source names its base if that is on the hub. A base in a directory is saved with it, in `base`: as links to
    the same data (hard links) where the disk allows it, else as copies.

    Args:
        network: base and adapters.
        encoder: the base's text encoder.
        base: what the base was loaded from; saved adapters name it, as PEFT's do.
    """

    settings = LoraConfig

    def __init__(self, network: LoraNetwork, encoder: TextEncoder, base: str, name: str = "lora") -> None:
        self.network = network.eval()
        self.encoder = encoder
        self.base = base
        self.name = name

    @property
    def num_members(self) -> int:
        return self.network.shape.members

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        rows = self.encoder(prompts, completions)
        return self.network.score(rows, prompt_keys(prompts), self.encoder.tokenizer.pad_token_id).T.cpu()

    def save(self, directory: str | Path) -> None:
        with whole_directory(directory) as folder:
            names = [f"members/{k}" for k in range(self.num_members)]
            for k, name in enumerate(names):
                write_adapter(folder / name, self.network, k, self.base)
            self.encoder.tokenizer.save_pretrained(folder / "tokenizer")
            base = self.base
            if Path(base).is_dir():
                base = take_base(Path(base), folder / "base").name
            held = {"kind": "lora", "name": self.name, "base": base, "members": names}
            write_json(folder / SOURCE, held | {"max_length": self.encoder.max_length})
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        from surefoot.rewards.kinds.lora.fit import train_lora

        return train_lora(
            job.pairs, job.model, job.settings, directory=job.work / "checkpoint", on_progress=job.report
        )

    @classmethod
    def load(cls, directory: Path, device: str | torch.device | None = None) -> "LoraMembers":
        held = read_source(directory)
        folders, base = inner_folders(directory, held["members"], "members"), base_of(directory, held["base"])
        tokenizer = directory / "tokenizer"
        source = cls.from_adapters(folders, base, tokenizer, max_length=held["max_length"], device=device)
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
            ModelError: an adapter is of a kind that can't be batched (DoRA, biases, a base that PEFT changed),
                or neither it nor the base holds some part of the way to the reward.
        """
        folders = [Path(folder) for folder in adapters]
        shape, saved, members = read_adapters(folders)
        model, missing = load_base(base, choose_device(device))
        network = LoraNetwork(model, shape, saved)
        for k, (weights, scale) in enumerate(members):
            lost = [name for name in missing if f"base_model.model.{name}" not in weights]
            if lost:
                raise ModelError(
                    f"neither {folders[k]} nor its base {base} holds {', '.join(lost[:3])}, so the rewards that it "
                    "was trained to give can't be had; give the base that it was trained on"
                )
            network.set_member(k, weights, scale)
        return cls(network, load_encoder(tokenizer or base, model, max_length), str(base))
