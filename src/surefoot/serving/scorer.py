"""From rows to answers: score, find each row's anchor, and estimate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import DataError, RowError
from surefoot.maths.objectives import weights
from surefoot.rewards.anchored import estimate_anchored
from surefoot.rewards.anchors import AnchorStore, group_anchors, prompt_digest
from surefoot.rewards.gaussian import GaussianSource
from surefoot.rewards.source import MemberSource, RewardSource
from surefoot.serving.anchor_memory import AnchorMemory
from surefoot.serving.batcher import Failure
from surefoot.serving.formats import Answer, Row
from surefoot.types import Anchors, RewardEstimate, Text

__all__ = ["Job", "Scorer", "answer_of", "describe", "failed"]


@dataclass(frozen=True, slots=True)
class Job:
    """A row to score, and whether its reward and variance are wanted besides its raw scores."""

    row: Row
    estimated: bool

    @property
    def characters(self) -> int:
        """Of the prompt and the completion, in messages with their roles and tool calls."""
        return _length(self.row.prompt) + _length(self.row.completion)

    @property
    def tokens(self) -> int:
        """About: four characters are a token."""
        return 1 + self.characters // 4


class Scorer:
    """Scores rows, and estimates each from the best anchor that it has: the file's, the clients', the calibration's.

    A row's answer depends on the row, its prompt's anchor and fixed constants: not on the batch it came in.

    Args:
        anchors: of `surefoot anchors`.
        memory: of anchors that clients had made; None keeps none.
        reference_variance: the weight's unit; None takes the calibration's.
    """

    def __init__(
        self,
        source: RewardSource,
        anchors: AnchorStore | None = None,
        memory: AnchorMemory | None = None,
        reference_variance: float | None = None,
    ) -> None:
        self.source, self.memory, self._anchors = source, memory, anchors
        calibrated = None if source.calibration is None else source.calibration.reference_variance
        self.reference_variance = calibrated if reference_variance is None else reference_variance
        needs_calibration = source.centred and source.num_members != 1 and not isinstance(source, GaussianSource)
        self._refusal: str | None = None
        if needs_calibration and source.calibration is None:
            # Its constants would be fitted to the rows of a batch, and so depend on what other clients send.
            self._refusal = f"'{source.name}' isn't calibrated, so it gives raw rows only (rows: true); calibrate it"

    def __call__(self, jobs: list[Job]) -> list[Answer]:
        """Score a batch of rows, and estimate those that want it; what the source raises is raised."""
        scores = self.source.score([job.row.prompt for job in jobs], [job.row.completion for job in jobs])
        answers = [Answer(raw=row) for row in scores.tolist()]
        wanting = [i for i, job in enumerate(jobs) if job.estimated]
        if wanting:
            prompts = [jobs[i].row.prompt for i in wanting]
            for i, answer in zip(wanting, self._estimated(prompts, scores[wanting]), strict=True):
                answers[i] = answer
        return answers

    def grouped(self, rows: Sequence[Row], answers: Sequence[Answer]) -> list[Answer]:
        """Estimate a request's rows by anchors that are each prompt's own mean row.

        Args:
            answers: with the rows' raw scores.
        """
        scored = [i for i, answer in enumerate(answers) if answer.raw is not None]
        if not scored:
            return list(answers)
        scores = torch.tensor([answers[i].raw for i in scored])
        numbers: dict[str, int] = {}
        groups = torch.tensor([numbers.setdefault(prompt_digest(rows[i].prompt), len(numbers)) for i in scored])
        estimated = self._answers(scores, [group_anchors(scores, groups)])
        given = dict(zip(scored, estimated, strict=True))
        return [given.get(i, answer) for i, answer in enumerate(answers)]

    def _estimated(self, prompts: Sequence[Text], scores: Float[Tensor, "batch columns"]) -> list[Answer]:
        choices = []
        if self._anchors is not None:
            choices.append(self._anchors.where_known(prompts, scores.shape[1]))
        if self.memory is not None:
            choices.append(self.memory.where_known(prompts))
        return self._answers(scores, choices)

    def _answers(self, scores: Float[Tensor, "batch columns"], choices: Sequence[Anchors]) -> list[Answer]:
        if self._refusal is not None:
            return [Answer(raw=row, error=self._refusal) for row in scores.tolist()]
        try:
            return self._read(scores, estimate_anchored(self.source, scores, choices))
        except Exception as error:
            if len(scores) == 1:
                return [replace(failed(error), raw=scores[0].tolist())]
        parts = [(i, [_part(choice, i) for choice in choices]) for i in range(len(scores))]
        return [self._answers(scores[i : i + 1], part)[0] for i, part in parts]

    def _read(self, scores: Float[Tensor, "batch columns"], estimate: RewardEstimate) -> list[Answer]:
        columns: dict[str, list[Any]] = {"raw": scores.tolist(), "mean": _known(estimate.mean)}
        if estimate.has_variance:
            columns["variance"] = _known(estimate.variance)
            if self.reference_variance:
                columns["weight"] = _known(weights(estimate.variance, self.reference_variance))
        if estimate.members is not None:
            columns["members"] = _known(estimate.members)
        columns["anchor"] = list(estimate.anchor_kinds)
        rows = [Answer(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]
        return [x if x.mean is not None else Answer(raw=x.raw, error="the source left it unscored") for x in rows]


def failed(error: Exception) -> Answer:
    """The answer of a row that raised; only what we say of a row is passed on, no message of a library."""
    if isinstance(error, RowError):
        return Answer(error=error.problem)
    if isinstance(error, DataError):
        return Answer(error=str(error))
    return Answer(error=f"the source failed on it ({type(error).__name__})", fault="model")


def answer_of(result: Answer | Failure) -> Answer:
    """An answer, also where scoring failed."""
    return failed(result.error) if isinstance(result, Failure) else result


def describe(source: RewardSource) -> dict[str, Any]:
    """What a client needs to know of the source to do arithmetic on its rows; plain JSON values."""
    own, kind = source._calibration_anchor(), type(source)
    plain = isinstance(source, MemberSource) and all(
        getattr(kind, name) is getattr(MemberSource, name) for name in ("_estimate", "_margins", "_constants")
    )
    return {
        "name": source.name,
        "kind": source.kind,
        "columns": source.num_columns,
        "num_members": source.num_members,
        "centred": source.centred,
        "calibration": None if source.calibration is None else source.calibration.to_dict(),
        "calibration_anchor": None if own is None else own.tolist(),
        "variance_factor": source.variance_factor,
        "variance_kind": getattr(source, "variance_kind", None),
        "scale_members": getattr(source, "scale_members", False),
        "arithmetic": "members" if plain else "server",
    }


def _part(anchors: Anchors, row: int) -> Anchors:
    return replace(anchors, rows=anchors.rows[row : row + 1], count=anchors.count[row : row + 1])


def _known(values: Float[Tensor, "batch *columns"]) -> list[Any]:
    """Plain numbers, None where they aren't finite."""
    return [_plain(value) for value in values.tolist()]


def _plain(value: Any) -> Any:
    if isinstance(value, list):
        return [_plain(part) for part in value]
    return value if math.isfinite(value) else None


def _length(text: Text) -> int:
    if isinstance(text, str):
        return len(text)
    return sum(len(str(value)) for message in text for value in message.values())
