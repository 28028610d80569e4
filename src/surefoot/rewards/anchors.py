"""Store of prompts' anchors: mean scored rows over reference completions, in memory and in a file.

The variance of a completion is that of r(x, y) − b(x), with the anchor b(x) the mean over completions of the reference
policy for its prompt (docs/method.md 2.1). They are drawn once, scored once, and then fixed.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from surefoot.data.messages import cut_short, is_cut, plain_text
from surefoot.errors import DataError, RunError
from surefoot.files import whole_file
from surefoot.maths import ensemble
from surefoot.rewards.source import RewardSource
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.types import AnchorKind, Anchors, Text

__all__ = ["AnchorStore", "Probe", "Sampler", "group_anchors", "prompt_digest"]

Sampler = Callable[[list[Text], int], list[Text]]
"""Function of (prompts, seed) that draws one completion of the reference policy for each prompt."""
PROBES = 4
"""Number of completions whose scored rows are kept with the anchors, to recognise the source that made them."""
TOLERANCE = 0.05
"""Largest relative difference of the probes' rows when a source scores them again.

It allows for another precision: bf16 differs from fp32 by .013 on a model of five layers, more on deeper ones.
"""


def group_anchors(
    scores: Float[Tensor, "batch columns"], groups: Int[Tensor, "batch"], kind: AnchorKind = "group"
) -> Anchors:
    """Anchors that are the mean of each prompt's own scored rows.

    Use them where the reference policy drew the rows ("group", as in best-of-n), or where there is nothing better
    ("dataset"). A completion that is alone has none (NaN), and falls back on the calibration set's.

    Args:
        scores: (batch, columns) of `RewardSource.score`.
        groups: (batch,) prompt ids.
        kind: "group" or "dataset".
    """
    rows, count = ensemble.group_anchors(scores.to(torch.float64), groups)
    return Anchors(rows, kind, count, holds_own=True)


def prompt_digest(prompt: Text) -> str:
    """Hash of a prompt's content, of either format: thirty-two hex digits."""
    return hashlib.sha256(prompt_keys([prompt])[0].encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass(frozen=True, eq=False)
class Probe:
    """A completion with the row that the source gave it when the anchors were made.

    Args:
        row: (columns,).
    """

    prompt: Text
    completion: Text
    row: Float[Tensor, "columns"]


class AnchorStore:
    """Mean scored rows of prompts, kept by the prompts' content.

    Args:
        source: name of the source whose rows they are; a file of another source is refused.
        completions: M, how many reference completions each is the mean of.
        about: how they were drawn (policy, temperature, …), for whoever reads the file.

    Attributes:
        probes: completions with their scored rows, by which `check` tells whether a source is the same.
    """

    def __init__(self, source: str, completions: int, about: dict[str, Any] | None = None) -> None:
        if completions < 1:
            raise DataError(f"an anchor is the mean of at least 1 completion, got {completions}")
        self.source, self.completions = source, completions
        self.about = dict(about or {})
        self.probes: list[Probe] = []
        self._rows: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, prompt: Text) -> bool:
        return prompt_digest(prompt) in self._rows

    @property
    def columns(self) -> int | None:
        """Number of columns of a row; None while the store is empty."""
        return next((len(row) for row in self._rows.values()), None)

    def unscored(self) -> int:
        """Number of prompts with an unknown anchor, because none of their completions was scored."""
        return sum(bool(row.isnan().all()) for row in self._rows.values())

    def missing(self, prompts: Sequence[Text]) -> list[Text]:
        """The different prompts that have no anchor yet, in their order."""
        seen: dict[str, Text] = {}
        for prompt in prompts:
            key = prompt_digest(prompt)
            if key not in self._rows:
                seen.setdefault(key, prompt)
        return list(seen.values())

    def add(self, prompts: Sequence[Text], scores: Float[Tensor, "batch columns"]) -> None:
        """Add prompts with the scored rows of M completions each, a prompt's rows one after the other.

        Rows that the source left unscored don't count; a prompt without any scored row gets an unknown anchor (NaN).
        """
        if len(scores) != len(prompts) * self.completions:
            raise DataError(
                f"{len(prompts)} prompts need {len(prompts) * self.completions} scored rows, got {len(scores)}"
            )
        means = scores.double().view(len(prompts), self.completions, -1).nanmean(dim=1).float()
        for prompt, row in zip(prompts, means, strict=True):
            self._rows[prompt_digest(prompt)] = row

    def add_probe(self, prompt: Text, completion: Text, row: Float[Tensor, "columns"]) -> None:
        """Keep a completion and its row as a probe for `check`, if it was scored and there are fewer than `PROBES`."""
        if len(self.probes) < PROBES and not bool(row.isnan().any()):
            self.probes.append(Probe(prompt, completion, row.float()))

    def of(self, prompts: Sequence[Text]) -> Anchors:
        """Anchors of the prompts, (batch, columns).

        Raises:
            DataError: a prompt has none.
        """
        keys = [prompt_digest(prompt) for prompt in prompts]
        unknown = next((i for i, key in enumerate(keys) if key not in self._rows), None)
        if unknown is not None:
            raise DataError(
                f"prompt {unknown} has no anchor among the {len(self)} known ones: "
                f"{plain_text(prompts[unknown])[:80]!r}; make them with `surefoot anchors` on these prompts"
            )
        rows = torch.stack([self._rows[key] for key in keys])
        return Anchors(rows, "reference", torch.full((len(keys),), float(self.completions)))

    def where_known(self, prompts: Sequence[Text], columns: int) -> Anchors:
        """Anchors of the prompts, (batch, columns), NaN for a prompt that has none.

        Args:
            columns: of the rows, for a store that holds none.
        """
        none = torch.full((columns if self.columns is None else self.columns,), math.nan)
        rows = [self._rows.get(prompt_digest(prompt), none) for prompt in prompts]
        count = torch.full((len(rows),), float(self.completions))
        return Anchors(torch.stack(rows) if rows else none.expand(0, -1), "reference", count)

    def fingerprint(self) -> str:
        """Hash of the prompts and their rows: sixteen hex digits, equal for equal anchors."""
        digest = hashlib.sha256()
        for key, row in sorted(self._rows.items()):
            digest.update(key.encode() + row.numpy().tobytes())
        return digest.hexdigest()[:16]

    def check(self, source: RewardSource) -> None:
        """Refuse a source other than the one that made the anchors: by its name, then by scoring the probes again.

        A source that is paid by the call, a judge, is known by its name and the number of its columns alone: its
        replies vary.

        Raises:
            DataError: it is another source.
        """
        if source.name != self.source:
            raise DataError(
                f"the anchors are of the source '{self.source}', but the source is '{source.name}'; anchors are mean "
                "scores of one source: make them again with `surefoot anchors`"
            )
        if not self.probes or getattr(source, "max_pairs", None) is not None:
            return
        rescored = source.score([probe.prompt for probe in self.probes], [probe.completion for probe in self.probes])
        held = torch.stack([probe.row for probe in self.probes])
        if rescored.shape != held.shape:
            raise DataError(
                f"the anchors are rows of {held.shape[1]} columns, but the source '{source.name}' gives "
                f"{rescored.shape[1]}: it is another source of the same name; make them again with `surefoot anchors`"
            )
        off = self._difference(rescored, held)
        if off > TOLERANCE:
            raise DataError(
                f"the anchors were made with another source than '{source.name}', which has the same name: it scores "
                f"the completions kept with them differently (by {off:.0%}, more than {TOLERANCE:.0%}); make them "
                "again with `surefoot anchors`"
            )

    def _difference(self, rescored: Float[Tensor, "probes columns"], held: Float[Tensor, "probes columns"]) -> float:
        """Largest relative difference of the first column, which is a reward, and of all others together.

        It is relative to the probes or to the anchors, whichever are larger: a reward may be near zero.
        """
        both = ~(rescored.isnan() | held.isnan())
        usual = torch.stack(list(self._rows.values())).double().square().nanmean(dim=0) if self._rows else held[0] * 0
        worst = 0.0
        for part in (slice(0, 1), slice(1, None)):
            known = both[:, part]
            if not bool(known.any()):
                continue
            gap = (rescored - held)[:, part][known].double().norm()
            size = held[:, part][known].double().norm()
            expected = (usual.double().expand(held.shape)[:, part][known]).nansum().sqrt()
            worst = max(worst, float(gap / torch.maximum(size, expected).clamp(min=1e-30)))
        return worst

    def save(self, path: str | Path) -> Path:
        """Write a safetensors file, whole or not at all."""
        target = Path(path)
        keys = sorted(self._rows)
        tensors = {"rows": torch.stack([self._rows[key] for key in keys]) if keys else torch.zeros(0, 0)}
        if self.probes:
            tensors["probes"] = torch.stack([probe.row for probe in self.probes])
        about = {
            "source": self.source,
            "completions": str(self.completions),
            "prompts": json.dumps(keys),
            "about": json.dumps(self.about),
            "probes": json.dumps(
                [[probe.prompt, probe.completion, is_cut(probe.completion)] for probe in self.probes]
            ),
        }
        with whole_file(target) as temporary:
            save_file(tensors, temporary, metadata=about)
        return target

    @classmethod
    def load(cls, path: str | Path, source: RewardSource | None = None) -> AnchorStore:
        """Load a file that `save` wrote.

        Args:
            source: the source that will be given the anchors (see `check`); None checks nothing.

        Raises:
            RunError: no such file, or not one of these. DataError: it was made with another source.
        """
        try:
            with safe_open(str(path), "pt") as file:
                about, rows = file.metadata() or {}, file.get_tensor("rows")
                store = cls(about["source"], int(about["completions"]), json.loads(about.get("about", "{}")))
                texts = json.loads(about.get("probes", "[]"))
                probes = file.get_tensor("probes") if texts else []
            store._rows = dict(zip(json.loads(about["prompts"]), rows, strict=True))
            store.probes = [
                Probe(prompt, cut_short(text) if cut else text, row)
                for (prompt, text, cut), row in zip(texts, probes, strict=True)
            ]
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise RunError(f"{path} is not a file of anchors as `surefoot anchors` writes it: {error}") from error
        if source is not None:
            try:
                store.check(source)
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
        return store
