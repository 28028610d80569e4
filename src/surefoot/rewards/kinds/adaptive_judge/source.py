"""A judge that reads every completion once, and again only where the comparison that matters is still open."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, DataError, ModelError, VarianceError
from surefoot.files import whole_directory, write_json
from surefoot.rewards.kinds.adaptive_judge.config import AdaptiveJudgeConfig
from surefoot.rewards.kinds.adaptive_judge.posterior import margin_posterior, posterior
from surefoot.rewards.kinds.judge.estimate import Readings, components
from surefoot.rewards.kinds.judge.source import JudgeSource
from surefoot.rewards.registry import load_source, register
from surefoot.rewards.saved import SOURCE, inner_folders, read_source, save_calibration
from surefoot.rewards.source import FitJob, RewardSource, given_estimate
from surefoot.rewards.trunk.text_encoder import prompt_keys
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

if TYPE_CHECKING:
    from surefoot.rewards.kinds.judge.messages import Call
    from surefoot.rewards.kinds.judge.reply_rows import Reading

__all__ = ["AdaptiveJudge"]

_LEAST_SPREAD = 0.01
"""Least variance of true ratings within a prompt, as a share of one reading's noise."""


@register("adaptive_judge")
class AdaptiveJudge(RewardSource):
    """A judge whose readings go where a prompt's completions are not yet told apart.

    A reading is one reply in each of the judge's wordings. Every completion has one. Then further readings go, in as
    many rounds as the judge has `samples` beyond the first, to the completions whose comparison (`compare`) is most
    likely wrong, until all are `sure`, have `samples` readings, or `mean_samples` are spent on average over the
    completions of one `score`. Only completions of the same `score` are compared; one that is alone with its prompt
    has `mean_samples` readings, and equal ones are read as one.

    Until it is calibrated it asks everything. The first calibration keeps how noisy a reading is and how much true
    ratings differ within a prompt; later ones leave these as they are, since readings that were stopped would bias
    them.

    Columns of a scored row: posterior mean and variance of the true rating (`adaptive_judge.posterior`; the judge's
    plain mean and NaN before calibration), then the judge's own columns. The variance is that of the readings: what
    the judge is wrong about in all its replies is no part of it, and no factor is fitted to labels.

    Args:
        judge: asked for `samples` replies in each wording at most.
        config: how its readings are spent.
        name: shown in logs; the judge's if None.

    Attributes:
        readings_asked, completions_read: in this process, since it was calibrated.

    Raises:
        ConfigError: the judge has fewer than two samples, or reads distributions; or `mean_samples` exceeds `samples`.
    """

    settings = AdaptiveJudgeConfig
    made_from = "source"
    loading_example = JudgeSource.loading_example
    centred = False

    def __init__(self, judge: JudgeSource, config: AdaptiveJudgeConfig | None = None, name: str | None = None) -> None:
        self.judge, self.config = judge, config or AdaptiveJudgeConfig()
        self.name = name or f"{judge.name}, read adaptively"
        if judge.config.reading != "samples" or judge.config.samples < 2:
            raise ConfigError(f"'{judge.name}' needs reading: samples and at least two samples to be read adaptively")
        if self.config.mean_samples > judge.config.samples:
            raise ConfigError(
                f"mean_samples is {self.config.mean_samples:g}, but '{judge.name}' has only samples: "
                f"{judge.config.samples}"
            )
        self.readings_asked, self.completions_read = 0, 0

    @property
    def num_columns(self) -> int:
        return 2 + self.judge.num_columns

    @property
    def description(self) -> str:
        return "an LLM judge that is read adaptively"

    @property
    def max_pairs(self) -> int:
        """Held-out pairs that `surefoot reward` measures it on."""
        return self.judge.max_pairs

    # --- scoring ------------------------------------------------------------------------------------------------

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """Ask the judge in rounds; `JudgeSource.score` says what it warns of and raises."""
        if self.calibration is None:
            rows = self.judge.score(prompts, completions)
            return torch.cat([rows[:, :1], torch.full_like(rows[:, :1], torch.nan), rows], dim=1)
        calls = list(self.judge.calls(prompts, completions))
        # Equal completions of a prompt have the same replies: they are one, and nothing is to be told between them.
        numbers: dict[str, int] = {}
        places = torch.tensor([numbers.setdefault(some[0].key, len(numbers)) for some in calls], dtype=torch.long)
        keys = dict(zip(places.tolist(), prompt_keys(prompts), strict=True))
        asked = _Asked(self.judge, list({some[0].key: some for some in calls}.values()))
        return self._read_in_rounds(asked, [keys[place] for place in range(len(keys))])[places]

    def _read_in_rounds(self, asked: _Asked, keys: Sequence[str]) -> Float[Tensor, "distinct columns"]:
        """Read each completion once, then those whose comparison is open.

        Args:
            keys: of the prompt of each completion.
        """
        numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
        groups = torch.tensor([numbers[key] for key in keys], dtype=torch.long)
        counts = torch.zeros(len(groups), dtype=torch.long)
        spare = round(self.config.mean_samples * len(groups))
        more = torch.arange(len(groups))
        for left in reversed(range(self.judge.config.samples)):  # rounds after this one
            if len(more):
                asked.ask(more.tolist(), counts)
                counts[more] += 1
                spare -= len(more)
            if left:
                more = self._most_open(asked.rows(), groups, counts)[: spare // left]
        rows = asked.rows()
        asked.warn(rows)
        self.readings_asked += int(counts.sum())
        self.completions_read += len(counts)
        known = posterior(*self._read(rows), groups, self._spread)
        return torch.cat([torch.stack([known.mean, known.variance], dim=1), rows], dim=1).float()

    def score_pairs(
        self, prompts: Sequence[Text], chosen: Sequence[Text], rejected: Sequence[Text]
    ) -> tuple[Float[Tensor, "pairs columns"], Float[Tensor, "pairs columns"]]:
        """Both sides together, since it is they that are compared."""
        rows = self.score([*prompts, *prompts], [*chosen, *rejected])
        return rows[: len(prompts)], rows[len(prompts) :]

    def _most_open(self, rows: Float[Tensor, "batch columns"], groups: Tensor, counts: Tensor) -> "torch.Tensor":
        """Places of the completions that may be read again, the least sure ones first."""
        known = posterior(*self._read(rows), groups, self._spread)
        wrong = known.wrong_about_best() if self.config.compare == "best" else known.wrong_about_others()
        alone = wrong.isnan()
        wrong = torch.where(alone, torch.where(counts < self.config.mean_samples, 0.5, 0.0), wrong)
        allowed = ((counts < self.judge.config.samples) & (wrong > 1 - self.config.sure)).nonzero()[:, 0]
        # Both of a pair are equally open: the one that was read less goes first.
        by_count = allowed[counts[allowed].argsort(stable=True)]
        return by_count[wrong[by_count].argsort(descending=True, stable=True)]

    def report(self, scores: Float[Tensor, "batch columns"], anchors: Anchors) -> dict[str, float | None]:
        """Replies and those with a rating, so far in this process; the variances that the calibration holds."""
        heard, notes = self.judge.heard, self._fitted.notes
        reply, wording, spread = (notes[name] for name in _NOTES)
        between = wording if self.judge.num_wordings > 1 else None
        found = {"variance_within": reply, "variance_between": between, "spread_within_prompts": spread}
        return {"replies": heard.replies, "replies_read": heard.read, **found}

    # --- arithmetic ---------------------------------------------------------------------------------------------

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        # Rows of the time before calibration have no posterior, and were read in full: no rule stopped them.
        means, noise = self._read(scores[:, 2:])
        early = scores[:, 1].isnan()
        return given_estimate(torch.where(early, means, scores[:, 0]), torch.where(early, noise, scores[:, 1]))

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """The posterior of each pair's difference.

        Raises:
            DataError: it isn't calibrated.
        """
        (ours, of_ours), (theirs, of_theirs) = (self._read(side[:, 2:]) for side in (chosen, rejected))
        return MarginEstimate(*margin_posterior(ours - theirs, of_ours + of_theirs, self._spread))

    def fit_variance_factor(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> float:
        """1: the variance is that of the readings, which labels say nothing of."""
        return self.variance_factor

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        if self.calibration is not None:
            return replace(self.calibration, rows=len(scores))
        readings = Readings.of(scores[:, 2:], self.judge.num_wordings)
        offsets = readings.means.nanmean(dim=0)
        if bool(offsets.isnan().any()):
            raise DataError(f"a wording of '{self.judge.name}' rated none of the {len(scores)} calibration rows")
        freedom = (readings.counts - 1).clamp(min=0)
        if not bool(freedom.sum() > 0):
            raise VarianceError(f"'{self.judge.name}' gave no completion two replies in one wording")
        reply = float((freedom * readings.variances.nan_to_num(0.0)).sum() / freedom.sum())
        if anchors is None:
            anchors = Anchors(
                scores.nanmean(dim=0).expand_as(scores), "calibration", torch.full_like(scores[:, 0], torch.inf)
            )
        beside = anchors.columns(2)
        parts = components(readings, beside)
        wording = max(float(parts.between.nanmean()), 0.0) if self.judge.num_wordings > 1 else 0.0
        level = Readings.of(beside.rows, self.judge.num_wordings).means.nanmean(dim=1)
        expected = 1 - 1 / anchors.count if anchors.holds_own else 1 + 1 / anchors.count
        squared = (parts.wordings.nanmean(dim=1) - level).square() / expected
        noise = _noise(readings, reply, wording)
        spread = float(squared[expected > 0].nanmean() - noise[expected > 0].nanmean())
        least = _LEAST_SPREAD * (reply + wording) / self.judge.num_wordings
        if not spread > least:
            warnings.warn(
                f"'{self.judge.name}' tells completions of a prompt apart no better than its noise does; adaptive "
                "reading of it decides little",
                stacklevel=4,
            )
        ones = (1.0,) * len(offsets)
        notes = dict(zip(_NOTES, (reply, wording, max(spread, least)), strict=True))
        return Calibration(tuple(offsets.tolist()), ones, None, None, len(scores), notes, variance_kind="raw")

    def _read(self, rows: Float[Tensor, "batch columns"]) -> tuple[Float[Tensor, "batch"], Float[Tensor, "batch"]]:
        """Mean rating of the judge's rows, with the wordings' offsets taken out, and the variance of its noise."""
        readings = Readings.of(rows, self.judge.num_wordings)
        offsets = torch.tensor(self._fitted.offsets, dtype=torch.float64)
        reply, wording, _ = (self._fitted.notes[name] for name in _NOTES)
        means = (readings.means - offsets).nanmean(dim=1) + offsets.mean()
        return means, _noise(readings, reply, wording)

    @property
    def _spread(self) -> float:
        """τ², variance of true ratings within a prompt."""
        return self._fitted.notes[_NOTES[2]]

    @property
    def _fitted(self) -> Calibration:
        if self.calibration is None:
            raise DataError(f"'{self.name}' doesn't know the judge's noise yet; calibrate it first")
        return self.calibration

    # --- on disk ------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """The judge in a directory of its own, and how it is read."""
        with whole_directory(directory) as folder:
            self.judge.save(folder / "judge")
            values = {"kind": self.kind, "name": self.name, "sources": ["judge"], "config": vars(self.config)}
            write_json(folder / SOURCE, values)
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return cls(_judge_of(load_source(job.model)), job.settings)

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device | None = None) -> AdaptiveJudge:
        """Read what `save` wrote; endpoint and key come from the caller (`judge.access`). `device` is ignored."""
        folder = Path(directory)
        values = read_source(folder)
        [inner] = inner_folders(folder, values["sources"], "sources")
        return cls(_judge_of(load_source(inner)), AdaptiveJudgeConfig(**values["config"]), values["name"])


_NOTES = ("reply_variance", "wording_variance", "spread_within_prompts")
"""A calibration's notes: noise of one reply, what wordings differ about a completion, τ²; all in rating²."""


class _Asked:
    """What a judge was asked of some completions so far, and what was read.

    Args:
        calls: of each completion, all that there might be.
    """

    def __init__(self, judge: JudgeSource, calls: Sequence[Sequence[Call]]) -> None:
        self.judge = judge
        self.rounds = [self._by_round(some) for some in calls]
        self.read: list[list[list[Reading]]] = [[[] for _ in range(judge.num_wordings)] for _ in self.rounds]
        self.refusal: str | None = None

    def _by_round(self, calls: Sequence[Call]) -> list[list[list[Call]]]:
        """The calls of one completion: of each reading, those in each wording."""
        size, step = len(calls) // self.judge.num_wordings, 1 if self.judge.references is None else 2
        wordings = [calls[start : start + size] for start in range(0, len(calls), size)]
        return [[list(some[at : at + step]) for some in wordings] for at in range(0, size, step)]

    def ask(self, places: Sequence[int], counts: "torch.Tensor") -> None:
        """Read each of these completions once more."""
        some = [self.rounds[place][int(counts[place])] for place in places]
        answers = self.judge.read([list(chain.from_iterable(wordings)) for wordings in some])
        self.refusal = answers.refusal or self.refusal
        for place, wordings, readings in zip(places, some, answers.read, strict=True):
            left = iter(readings)
            for held, calls in zip(self.read[place], wordings, strict=True):
                held += [next(left) for _ in calls]

    def rows(self) -> Float[Tensor, "batch columns"]:
        """The judge's rows; one valid reply is enough."""
        return self.judge.rows([list(chain.from_iterable(wordings)) for wordings in self.read], min_valid=1).double()

    def warn(self, rows: Float[Tensor, "batch columns"]) -> None:
        readings = [list(chain.from_iterable(wordings)) for wordings in self.read]
        self.judge.warn_unscored(rows, readings, self.refusal, 1)


def _noise(readings: Readings, reply: float, wording: float) -> Float[Tensor, "batch"]:
    """Variance of the mean over wordings about the true rating."""
    read = (~readings.means.isnan()).sum(dim=1)
    return (wording + reply * readings.noise_share) / read


def _judge_of(source: RewardSource) -> JudgeSource:
    if not isinstance(source, JudgeSource):
        raise ModelError(f"kind: adaptive_judge reads a judge, and '{source.name}' is of kind {source.kind}")
    return source
