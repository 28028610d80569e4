"""Make the anchors of a trainer's prompts when they first come up, equal on all processes, and keep them."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import torch
from accelerate import Accelerator
from accelerate.utils import gather, gather_object
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, DataError
from surefoot.rewards.anchors import AnchorStore, Sampler, prompt_digest
from surefoot.rewards.source import RewardSource
from surefoot.types import Anchors, Text

__all__ = ["OWN_COLUMNS", "PromptAnchors", "dataset_completions"]

OWN_COLUMNS = ("completion", "chosen", "rejected")
"""Columns of the training data that hold a prompt's own completions."""


class PromptAnchors:
    """Anchors of a batch's prompts; those of new prompts are made.

    Attributes:
        store: what this run made; kept in its checkpoints.

    Args:
        source: scores the completions.
        store: takes what is made: `store.completions` completions of each prompt.
        accelerator: the trainer's. Every process must ask together, and each draws a share of what is new.
        sample: draws completions of the reference policy.
        seed: with the prompts that are drawn together, fixes their completions: a resumed run draws the same.
        kind: "reference" draws; "dataset" takes the prompt's own completions from its row.
        prepared: anchors of a file; a prompt that it has isn't drawn.
    """

    def __init__(
        self,
        source: RewardSource,
        store: AnchorStore,
        accelerator: Accelerator,
        sample: Sampler,
        seed: int,
        kind: Literal["reference", "dataset"] = "reference",
        prepared: AnchorStore | None = None,
    ) -> None:
        self.source, self.store, self.accelerator, self.kind = source, store, accelerator, kind
        self._sample, self._seed, self._prepared = sample, seed, prepared

    def of(self, rows: list[dict[str, Any]]) -> Anchors:
        """Anchors of the prompts of every process's rows, process by process, as `gather` orders tensors.

        Args:
            rows: this process's, of the training data: `prompt`, and for "dataset" its completions.

        Raises:
            DataError: a row has no completions of its own. ConfigError: a row has images.
        """
        everyone: list[dict[str, Any]] = gather_object([self._needed(row) for row in rows])
        missing: dict[str, dict[str, Any]] = {}
        for row in everyone:
            if row["prompt"] not in self.store and not self._is_prepared(row["prompt"]):
                missing.setdefault(prompt_digest(row["prompt"]), row)
        if missing:
            (self._draw if self.kind == "reference" else self._read)(list(missing.values()))
        return self._found(everyone)

    def _needed(self, row: dict[str, Any]) -> dict[str, Any]:
        """The parts of a row that the other processes need."""
        if self.kind == "dataset":
            return {"prompt": row["prompt"], "completions": dataset_completions(row)}
        if row.get("image") is not None or row.get("images"):
            raise ConfigError(
                "anchor: reference keeps anchors by the prompt's text and can't tell prompts apart that differ in "
                "their images; choose anchor: calibration or dataset"
            )
        return {"prompt": row["prompt"]}

    def _is_prepared(self, prompt: Text) -> bool:
        return self._prepared is not None and prompt in self._prepared

    def _draw(self, missing: list[dict[str, Any]]) -> None:
        """Draw and score M completions of each prompt; every process draws and scores the same number of them."""
        prompts = [row["prompt"] for row in missing]
        asked = [prompt for prompt in prompts for _ in range(self.store.completions)]
        mine = [asked[i] for i in self._share(len(asked))]
        completions = self._sample(mine, self._seed_of(prompts))
        self.store.add(prompts, self._gathered(mine, completions)[: len(asked)])

    def _read(self, missing: list[dict[str, Any]]) -> None:
        """Score the data's own completions, a share on each process."""
        asked = [(row["prompt"], text) for row in missing for text in row["completions"]]
        mine = [asked[i] for i in self._share(len(asked))]
        scores = self._gathered([prompt for prompt, _ in mine], [text for _, text in mine])[: len(asked)]
        sides = scores.double().split([len(row["completions"]) for row in missing])
        self.store.add([row["prompt"] for row in missing], torch.stack([side.nanmean(dim=0) for side in sides]))

    def _share(self, rows: int) -> list[int]:
        """This process's block of the rows; all processes have equally many.

        If the rows don't divide evenly, the last block is filled up with the first rows; those scores aren't used.
        """
        size = -(-rows // self.accelerator.num_processes)
        start = size * self.accelerator.process_index
        return [i % rows for i in range(start, start + size)]

    def _gathered(self, prompts: list[Text], completions: list[Text]) -> Float[Tensor, "rows columns"]:
        """Score this process's rows and gather those of all processes, in order."""
        return gather(self.source.score(prompts, completions).to(self.accelerator.device)).cpu()

    def _seed_of(self, prompts: Sequence[Text]) -> int:
        words = [str(self._seed), str(self.accelerator.process_index), *(prompt_digest(prompt) for prompt in prompts)]
        return int(hashlib.sha256(" ".join(words).encode()).hexdigest()[:15], 16)

    def _found(self, rows: list[dict[str, Any]]) -> Anchors:
        known = [(self.store if row["prompt"] in self.store else self._prepared, row["prompt"]) for row in rows]
        parts = [store.of([prompt]) for store, prompt in known if store is not None]
        count = torch.cat([part.count for part in parts])
        if self.kind == "dataset":
            count = torch.tensor([float(len(row["completions"])) for row in rows])
        return replace(parts[0], rows=torch.cat([part.rows for part in parts]), kind=self.kind, count=count)


def dataset_completions(row: dict[str, Any]) -> list[Text]:
    """The completions that a row of the training data holds beside its prompt.

    Raises:
        DataError: it holds none.
    """
    completions = [row[name] for name in OWN_COLUMNS if row.get(name) is not None]
    if not completions:
        raise DataError(
            "anchor: dataset needs a completion, or chosen and rejected, beside every prompt; this row has "
            f"{', '.join(sorted(row))}. Use anchor: reference"
        )
    return completions
