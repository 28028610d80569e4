"""An LLM judge as a reward source: it rates completions, or compares them with a reference answer."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, DataError, VarianceError
from surefoot.files import read_json, whole_directory, write_json
from surefoot.maths import ensemble
from surefoot.rewards.kinds.judge import estimate as arithmetic
from surefoot.rewards.kinds.judge.access import access_of
from surefoot.rewards.kinds.judge.config import JudgeConfig
from surefoot.rewards.kinds.judge.costs import Totals, totals_of
from surefoot.rewards.kinds.judge.estimate import Components, Priors, Readings
from surefoot.rewards.kinds.judge.packages import check_packages
from surefoot.rewards.kinds.judge.prompts import Questions
from surefoot.rewards.kinds.judge.reference_answers import load_references
from surefoot.rewards.kinds.judge.reply_counts import ReplyCounts, unscored_reasons
from surefoot.rewards.kinds.judge.reply_rows import Reader, Reading, copies, missing
from surefoot.rewards.kinds.judge.rubrics import Rubric, load_rubric
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, save_calibration
from surefoot.rewards.source import FitJob, RewardSource
from surefoot.rewards.trunk.text_encoder import check_rows, prompt_keys
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

if TYPE_CHECKING:
    from surefoot.rewards.kinds.judge.client import Answers
    from surefoot.rewards.kinds.judge.messages import Call, Outcome

__all__ = ["JudgeSource"]

_REFERENCES = "references.json"
_OF_THE_CALLER = {"endpoint", "key_variable", "cache", "rubric", "references"}
"""Settings that a saved judge leaves out: hosts, variables and paths. Rubric and references are saved whole."""


@register("judge")
class JudgeSource(RewardSource):
    """A reward source that asks an LLM judge.

    Columns of a scored row: the mean over wordings of their mean ratings; then for each wording the mean, the sample
    variance and the number of its valid replicates (infinite where a distribution was read). A row with fewer than
    `min_valid` valid replicates is NaN throughout. See `judge.estimate` for what is made of them.

    Args:
        model: the judge's name at its endpoint.
        config: everything else.
        name: shown in logs; model and rubric if None.
        rubric: instead of the one that the settings name.
        references: reference answers by prompt, instead of the file that the settings name; completions are then
            compared with them.

    Raises:
        ConfigError: the settings contradict each other, or the extra `judge` isn't installed.
    """

    settings = JudgeConfig
    made_from = "served model"
    loading_example = (
        "from surefoot.rewards.kinds.judge.access import JudgeAccess",
        ', judge=JudgeAccess(endpoint="https://…/v1", key_variable="…")',
    )

    def __init__(
        self,
        model: str,
        config: JudgeConfig | None = None,
        *,
        name: str | None = None,
        rubric: Rubric | None = None,
        references: Mapping[str, Text] | None = None,
    ) -> None:
        check_packages()
        self.model, self.config = model, config or JudgeConfig()
        self.rubric = rubric or load_rubric(self.config.rubric)
        if references is None and self.config.references is not None:
            references = load_references(self.config.references)
        self.references = references
        self.name = name or f"{model} on {self.rubric.name}"
        # The files are read: a saved judge names none, and its account is the same wherever it is loaded.
        self.config = replace(self.config, rubric=self.rubric.name, references=None)
        self.heard = ReplyCounts(self.name)
        self._check()
        self.centred = self.has_variance  # one reply has no variance, so nothing needs an anchor

    def _check(self) -> None:
        count, config = len(self.rubric.wordings), self.config
        if config.wordings is not None and config.wordings > count:
            raise ConfigError(f"rubric '{self.rubric.name}' has {count} wordings, not {config.wordings}")
        most = self.num_wordings * config.calls_per_wording
        if config.min_valid is not None and config.min_valid > most:
            raise ConfigError(f"min_valid is {config.min_valid}, but {most} replies are asked for each completion")
        if config.reading == "logprobs":
            if self.references is None and not (self.rubric.lowest >= 0 and self.rubric.highest <= 9):
                raise ConfigError("reading: logprobs needs a scale of one-digit ratings, such as [1, 9]")
            if config.variance_of == "mean" and self.num_wordings == 1:
                raise ConfigError(
                    "a distribution that was read has no error of its own: variance_of: mean needs at least two "
                    "wordings, or use variance_of: reply"
                )

    @property
    def num_wordings(self) -> int:
        return self.config.wordings or len(self.rubric.wordings)

    @property
    def has_variance(self) -> bool:
        """Whether more than one reply of one wording is asked for, or its distribution read."""
        return self.num_wordings > 1 or self.config.reading == "logprobs" or self.config.samples > 1

    @property
    def num_columns(self) -> int:
        """Columns of a scored row."""
        return 1 + 3 * self.num_wordings

    @property
    def description(self) -> str:
        return "an LLM judge"

    @property
    def max_pairs(self) -> int:
        """Held-out pairs that `surefoot reward` measures it on."""
        return self.config.max_pairs

    @property
    def min_valid(self) -> int:
        usual = 1 if self.config.reading == "logprobs" else min(2, self.num_wordings * self.config.samples)
        return self.config.min_valid or usual

    @cached_property
    def questions(self) -> Questions:
        """Makes the calls for a completion."""
        return Questions(self.model, self.config, self.rubric, self.num_wordings, paired=self.references is not None)

    @cached_property
    def reader(self) -> Reader:
        """Reads the replies."""
        asked = self.questions
        return Reader(asked.scale, paired=asked.paired, distribution=asked.bare)

    # --- scoring ------------------------------------------------------------------------------------------------

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """Ask the judge; replies that are in the cache are taken from there.

        Warns of completions that stay unscored, with the reasons.

        Raises:
            RunError: the budget is spent, or the endpoint asks to wait longer than the deadline. ModelError: the
                endpoint refuses the key or the model, or none of the first replies gives a rating. DataError: a prompt
                has no reference answer.
        """
        answers = self.read(self.calls(prompts, completions))
        scores = self.rows(answers.read)
        self.warn_unscored(scores, answers.read, answers.refusal, self.min_valid)
        return scores

    def read(self, calls: Iterable[Sequence[Call]]) -> Answers[list[Reading]]:
        """Ask the calls of each completion, or take their replies from the cache; raises as `score` does."""
        from surefoot.rewards.kinds.judge.client import ask

        def read(calls: Sequence[Call], outcomes: Sequence[Outcome]) -> list[Reading]:
            readings = self.reader.read(calls, outcomes)
            self.heard.add(readings, outcomes)
            return readings

        return ask(self.model, self.config, calls, read)

    def warn_unscored(
        self,
        scores: Float[Tensor, "batch columns"],
        read: Sequence[Sequence[Reading]],
        refusal: str | None,
        min_valid: int,
    ) -> None:
        """Warn of completions that stay unscored, with the reasons.

        Args:
            read: the readings of each completion.
            refusal: what the server said when it last refused a request.
            min_valid: fewest valid replies of a scored completion.
        """
        unscored = int(scores[:, 0].isnan().sum())
        if unscored:
            readings = list(chain.from_iterable(read))
            gone = missing(readings, copies(readings))
            why = unscored_reasons(gone, refusal, self.heard.example, self.config.reading)
            few = f"unscored, with fewer than {min_valid} valid replies"
            warnings.warn(f"'{self.name}' left {unscored} of {len(scores)} completions {few} {why}", stacklevel=3)

    def calls(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Iterator[list[Call]]:
        """Make the requests for each completion, in order; nothing is sent.

        Raises:
            DataError: a prompt has no reference answer, or there isn't one completion for each prompt.
        """
        check_rows(prompts, completions)
        rows = zip(prompts, completions, self._references_of(prompts), strict=True)
        return (self.questions.calls(*row) for row in rows)

    def rows(
        self, readings: Sequence[Sequence[Reading]], min_valid: int | None = None
    ) -> Float[Tensor, "batch columns"]:
        """Make scored rows of the readings of each completion's calls; copies of other replies are left out.

        Args:
            readings: of each completion, equally many of each wording, wording by wording.
            min_valid: fewest valid replies of a scored completion; the judge's own if None.
        """
        copied, least = copies(chain.from_iterable(readings)), min_valid or self.min_valid
        scored = [self.reader.row(some, self.num_wordings, copied, least) for some in readings]
        return torch.tensor(scored, dtype=torch.float32).reshape(len(scored), self.num_columns)

    def _references_of(self, prompts: Sequence[Text]) -> list[Text | None]:
        if self.references is None:
            return [None] * len(prompts)
        keys = prompt_keys(prompts)
        for row, key in enumerate(keys):
            if key not in self.references:
                raise DataError(f"row {row}: there is no reference answer to its prompt; '{self.name}' compares")
        return [self.references[key] for key in keys]

    def report(self, scores: Float[Tensor, "batch columns"], anchors: Anchors) -> dict[str, float | None]:
        """Replies and those with a rating, so far in this process; raw mean variances of these rows, None if unknown.

        Args:
            scores: rows as `score` gave them.
            anchors: one for each row.
        """
        parts = self.components(scores, anchors)
        means = {"variance_within": parts.within.nanmean(), "variance_between": parts.between.nanmean()}
        known = {name: None if bool(value.isnan()) else float(value) for name, value in means.items()}
        return {"replies": self.heard.replies, "replies_read": self.heard.read, **known}

    def totals(self, since: float = 0.0) -> Totals:
        """Sum what this judge has cost in all processes that share its cache."""
        return totals_of(self.model, self.config, since)

    # --- arithmetic ---------------------------------------------------------------------------------------------

    def components(
        self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None = None, *, moderated: bool = False
    ) -> Components:
        """Variance within and between wordings, s² and s²/n; raw and unbiased if not `moderated`.

        Args:
            scores: rows as `score` gave them.
            anchors: one for each row; None, or a NaN row of theirs, takes the mean over the calibration set.

        Raises:
            DataError: an anchor is missing and the source isn't calibrated; or the shapes disagree.
        """
        x = self._checked(scores)
        return self._components(x, self._complete(x, anchors), moderated)

    def _components(self, x: Float[Tensor, "batch columns"], anchors: Anchors, moderated: bool) -> Components:
        readings = self._readings(x)
        priors = self._priors(readings, anchors) if moderated else None
        return arithmetic.components(readings, anchors, priors, self._floor)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        if anchors is None:
            return RewardEstimate(mean=scores[:, 0])
        parts = self._components(scores, anchors, self.config.variance == "moderated")
        return RewardEstimate(
            mean=parts.wordings.nanmean(dim=1),
            members=parts.wordings if self.num_wordings > 1 else None,
            epistemic=self._asked(parts),
            degrees_of_freedom=parts.freedom.clamp(min=0),
        )

    def _asked(self, parts: Components) -> Float[Tensor, "batch"]:
        """The variance that `variance_of` names."""
        return parts.reply if self.config.variance_of == "reply" else parts.mean

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """Margins, paired wording by wording: what a wording adds to both sides cancels; their noise adds up.

        Raises:
            VarianceError: one reply of one wording was asked for.
        """
        if not self.has_variance:
            raise VarianceError(f"'{self.name}' asks for one reply, which has no variance; raise samples or wordings")
        known = None if self.calibration is None else Priors.of_calibration(self.calibration, self.num_wordings)
        priors = Priors(known.within if known is not None and self.config.variance == "moderated" else None, None)
        # A margin is a reward that is centred by the other side: an anchor of one completion.
        other = Anchors(rejected, "dataset", rejected.new_ones(len(rejected)))
        parts = arithmetic.components(self._readings(chosen), other, priors, self._floor)
        difference = self._readings(chosen).means - self._readings(rejected).means
        members = difference if self.num_wordings > 1 else None
        return MarginEstimate(difference.nanmean(dim=1), self._asked(parts), members)

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        readings = self._readings(scores)
        offsets = readings.means.nanmean(dim=0)
        if bool(offsets.isnan().any()):
            raise DataError(
                f"wording {int(offsets.isnan().nonzero()[0])} of '{self.name}' rated none of the {len(scores)} "
                "calibration rows"
            )
        fitted = Calibration(
            offsets=tuple(offsets.tolist()),
            scales=(1.0,) * len(offsets),
            prior=None,
            reference_variance=None,
            rows=len(scores),
            variance_kind=self.config.variance,
        )
        if not self.has_variance:
            return fitted
        self.calibration = fitted  # `_complete` takes its offsets for rows without an anchor
        priors = arithmetic.fit_priors(readings, self._complete(scores, anchors), self._floor)
        return replace(fitted, prior=priors.between or priors.within, notes=priors.notes)

    def _reliability(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> float | None:
        """Reliability of the variance between wordings; None for fewer than four, whose halves have no variance."""
        if self.num_wordings < 4:
            return None
        anchor = self._readings(self._complete(scores, anchors).rows)
        reliability = ensemble.reliability(ensemble.centre(self._readings(scores).means, anchor.means))
        return None if math.isnan(reliability) else reliability

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        """An anchor row of the wordings' means over the calibration set, taken as free of noise."""
        if self.calibration is None:
            return None
        return arithmetic.exact_row(torch.tensor(self.calibration.offsets, dtype=torch.float64))

    def _unknown(self, anchors: Anchors) -> "torch.Tensor":
        """Which anchors have no wording with a mean; their counts of replies may be known all the same."""
        return self._readings(anchors.rows).means.isnan().all(dim=1)

    def _readings(self, scores: Float[Tensor, "batch columns"]) -> Readings:
        return Readings.of(scores, self.num_wordings)

    @property
    def _floor(self) -> float:
        """Variance of rounding to whole numbers, 1/12, or 1/24 for a mean of two; equal ratings show no less."""
        if self.config.reading == "logprobs":
            return 0.0
        return 1 / 12 if self.references is None else 1 / 24

    def _priors(self, readings: Readings, anchors: Anchors) -> Priors:
        if self.calibration is not None and self.calibration.prior is not None:
            return Priors.of_calibration(self.calibration, self.num_wordings)
        return arithmetic.fit_priors(readings, anchors, self._floor)

    # --- on disk ------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write model, rubric, settings, references and calibration; no endpoint, key variable, cache or replies."""
        kept = {name: value for name, value in self.config.to_dict().items() if name not in _OF_THE_CALLER}
        values = {"kind": "judge", "name": self.name, "model": self.model, "config": kept}
        with whole_directory(directory) as folder:
            write_json(folder / SOURCE, values | {"rubric": asdict(self.rubric)})
            if self.references is not None:
                write_json(folder / _REFERENCES, dict(self.references))
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return cls(job.model, job.settings)

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device | None = None) -> JudgeSource:
        """Read what `save` wrote; endpoint and key come from the caller (`judge.access`). `device` is ignored."""
        folder = Path(directory)
        values = read_json(folder / SOURCE)
        rubric = Rubric(**{**values["rubric"], "wordings": tuple(values["rubric"]["wordings"])})
        references = read_json(folder / _REFERENCES) if (folder / _REFERENCES).exists() else None
        kept = {name: value for name, value in values["config"].items() if name not in _OF_THE_CALLER}
        config = JudgeConfig.from_dict(kept | access_of(values["model"], folder).of_calls)
        return cls(values["model"], config, name=values["name"], rubric=rubric, references=references)
