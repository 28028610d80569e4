"""Weighted criteria of each prompt as a reward source: an LLM judges some, verifiers decide others."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from surefoot.errors import ConfigError, DataError, ModelError, VarianceError
from surefoot.files import fingerprint, read_json, whole_directory, write_json
from surefoot.rewards.kinds.criteria.answers import Answers, answer_table, read_answers
from surefoot.rewards.kinds.criteria.config import CriteriaConfig
from surefoot.rewards.kinds.criteria.counts import CriteriaCounts
from surefoot.rewards.kinds.criteria.criteria_by_prompt import ByPrompt, load_criteria, saved_criteria
from surefoot.rewards.kinds.criteria.criterion import Criterion
from surefoot.rewards.kinds.criteria.questions import calls_for
from surefoot.rewards.kinds.criteria.row_variance import RowVariance
from surefoot.rewards.kinds.criteria.rows import FIRST, is_decided, row_of
from surefoot.rewards.kinds.criteria.verifiers import Function, Verifiers
from surefoot.rewards.kinds.judge.access import VERIFIERS, access_of, verifiers_of
from surefoot.rewards.kinds.judge.costs import Totals, totals_of
from surefoot.rewards.kinds.judge.packages import check_packages
from surefoot.rewards.kinds.judge.reply_counts import unscored_reasons
from surefoot.rewards.kinds.judge.reply_rows import copies, missing
from surefoot.rewards.registry import register
from surefoot.rewards.saved import SOURCE, check_finite, save_calibration
from surefoot.rewards.source import FitJob, RewardSource, plain_constants
from surefoot.rewards.trunk.text_encoder import check_rows, prompt_keys
from surefoot.types import Anchors, Calibration, MarginEstimate, RewardEstimate, Text

if TYPE_CHECKING:
    from surefoot.rewards.kinds.judge.messages import Call, Outcome

__all__ = ["CriteriaSource"]

_CRITERIA = "criteria.json"
_OF_THE_CALLER = {"endpoint", "key_variable", "cache", "criteria", *VERIFIERS}
"""Settings that a saved source leaves out: hosts, variables, paths, and what may be run. Criteria are saved whole."""
_TOKENS_OF_A_RATING = 8


@register("criteria")
class CriteriaSource(RewardSource):
    """A reward source whose reward is the weighted sum of a prompt's criteria.

    The reward is Σwx / (sum of the positive w), as HealthBench has it, with x in [0, 1] the answer to a criterion; it
    is 1 at most. Where a required criterion isn't met it is the least possible one, that of a completion which meets
    nothing but what counts against it. See `weighted_sum` for its variance, and `rows` for the columns of a scored row
    and for missing answers.

    With `variance_from: replies` the variance is that of the judge's replies: rewards are absolute and their noise is
    independent, so nothing is centred and no anchor is needed. With `criteria` it is that of which criteria were
    drawn: contributions are paired, criterion by criterion, with those of the anchor.

    Args:
        model: the judge's name at its endpoint; anything where no criterion is judged.
        config: everything else.
        name: shown in logs; model and a hash of the criteria if None.
        criteria: by `prompt_keys`, instead of the file that the settings name.
        functions: (prompt, completion) to a number in [0, 1] or None, by name, besides those of the settings.

    Raises:
        ConfigError: the settings contradict each other or the criteria, or the extra `judge` isn't installed.
        DataError: the file of criteria can't be read.
    """

    settings = CriteriaConfig
    made_from = "served model"
    loading_example = (
        "from surefoot.rewards.kinds.judge.access import JudgeAccess",
        ', judge=JudgeAccess(endpoint="https://…/v1", key_variable="…")',
    )

    def __init__(
        self,
        model: str,
        config: CriteriaConfig | None = None,
        *,
        name: str | None = None,
        criteria: ByPrompt | None = None,
        functions: Mapping[str, Function] | None = None,
    ) -> None:
        config = config or CriteriaConfig()
        if criteria is None:
            if config.criteria is None:
                raise ConfigError(
                    "criteria must name a file or hub dataset of prompts and criteria (docs/criteria.md)"
                )
            criteria = load_criteria(config.criteria)
        self.model, self.criteria = model, dict(criteria)
        # The file is read: a saved source names none, and its account is the same wherever it is loaded.
        self.config = replace(config, criteria=None)
        held = {key: [one.to_dict() for one in some] for key, some in self.criteria.items()}
        self.name = name or f"criteria {fingerprint(held)[:6]} by {model}"
        self.heard = CriteriaCounts(self.name)
        self.judged = any(one.judged for some in self.criteria.values() for one in some)
        self.centred = config.variance_from == "criteria"
        self.verifiers = Verifiers(self.config, functions)
        self._check()

    def _check(self) -> None:
        self.verifiers.check(chain.from_iterable(self.criteria.values()))
        if self.judged:
            check_packages()
        for key, some in self.criteria.items():
            judged = sum(one.judged for one in some)
            if self.config.asking == "together" and self.config.max_tokens < _TOKENS_OF_A_RATING * judged:
                raise ConfigError(
                    f"asking: together wants {judged} ratings in one reply about '{key[:60]}', which "
                    f"{self.config.max_tokens} tokens can't hold; raise max_tokens to {_TOKENS_OF_A_RATING * judged}"
                )
            if self.centred and (len(some) < 2 or any(one.required for one in some)):
                raise ConfigError(
                    "variance_from: criteria takes the criteria for a sample, so each prompt needs at least two, none "
                    f"of them required; not so of '{key[:60]}'. Set variance_from: replies"
                )

    @property
    def has_variance(self) -> bool:
        """Whether the variance can be told: from criteria, from several replies, or because no reply is needed."""
        return self.centred or self.config.samples > 1 or not self.judged

    @property
    def num_columns(self) -> int:
        """Columns of a scored row."""
        return FIRST + (max(map(len, self.criteria.values())) if self.centred else 0)

    @property
    def description(self) -> str:
        return "weighted criteria of each prompt"

    @property
    def max_pairs(self) -> int | None:
        """Held-out pairs that `surefoot reward` measures it on; all where no criterion is judged."""
        return self.config.max_pairs if self.judged else None

    # --- scoring ------------------------------------------------------------------------------------------------

    def score(self, prompts: Sequence[Text], completions: Sequence[Text]) -> Float[Tensor, "batch columns"]:
        """Decide the criteria; replies that are in the cache are taken from there.

        Warns of completions that stay unscored, with the reasons.

        Raises:
            DataError: a prompt has no criteria, or a function of a criterion fails. RunError: the budget is spent, or
                the endpoint asks to wait longer than the deadline. ModelError: the endpoint refuses the key or the
                model, or none of the first replies gives a rating.
        """
        check_rows(prompts, completions)
        verified = self.verifiers.answers(prompts, completions, self.criteria_of(prompts))
        return self.score_verified(prompts, completions, verified)

    def score_verified(
        self, prompts: Sequence[Text], completions: Sequence[Text], verified: Sequence[Sequence[float]]
    ) -> Float[Tensor, "batch columns"]:
        """Ask the judge and make the scored rows; see `score`.

        Args:
            verified: what `Verifiers.answers` gives for these completions.
        """
        criteria = self.criteria_of(prompts)
        asked = [self.asked(*row) for row in zip(criteria, verified, strict=True)]
        answers, refusal = self._answers(prompts, completions, asked)
        scores = torch.full((len(prompts), self.num_columns), torch.nan)
        for row, (some, table) in enumerate(zip(criteria, self.tables(criteria, verified, answers), strict=True)):
            made = row_of(some, table, self.config)
            self.heard.criteria += made.criteria
            self.heard.answered += made.answered
            scores[row, : len(made.columns)] = torch.tensor(made.columns, dtype=torch.float32)
        self._warn(scores, answers, refusal)
        return scores

    def tables(
        self,
        criteria: Sequence[Sequence[Criterion]],
        verified: Sequence[Sequence[float]],
        answers: Sequence[Sequence[Answers]],
    ) -> list[Float[Tensor, "replies criteria"]]:
        """The `answer_table` of each completion; copies of other replies are left out."""
        copied, config = copies(chain.from_iterable(answers)), self.config
        rows = zip(criteria, verified, answers, strict=True)
        return [answer_table(*row, copied, samples=config.samples, together=self.together) for row in rows]

    def criteria_of(self, prompts: Sequence[Text]) -> list[tuple[Criterion, ...]]:
        """The criteria of each prompt, found by its content.

        Raises:
            DataError: a prompt has none.
        """
        keys = prompt_keys(prompts)
        for row, key in enumerate(keys):
            if key not in self.criteria:
                raise DataError(
                    f"row {row}: '{self.name}' has no criteria for the prompt '{key[:60]}' among those of "
                    f"{len(self.criteria)}; add a row for it to the file of criteria, with the same text or messages"
                )
        return [self.criteria[key] for key in keys]

    def calls(self, prompts: Sequence[Text], completions: Sequence[Text]) -> list[list[Call]]:
        """Make the requests for each completion, in order; nothing is sent. Verifiers aren't run.

        Raises:
            DataError: a prompt has no criteria, or there isn't one completion for each prompt.
        """
        check_rows(prompts, completions)
        rows = zip(prompts, completions, self.criteria_of(prompts), strict=True)
        return [self.calls_about(prompt, text, [one for one in some if one.judged]) for prompt, text, some in rows]

    @property
    def together(self) -> bool:
        """Whether one request is about all criteria of a completion."""
        return self.config.asking == "together"

    def asked(self, criteria: Sequence[Criterion], verified: Sequence[float]) -> list[Criterion]:
        """The judged ones; none if a required verifier has decided the reward already."""
        return [] if is_decided(criteria, verified) else [one for one in criteria if one.judged]

    def calls_about(self, prompt: Text, completion: Text, judged: Sequence[Criterion]) -> list[Call]:
        """The requests about these criteria of one completion."""
        return calls_for(self.model, self.config, prompt, completion, judged)

    def read(self, calls: Sequence[Call], outcomes: Sequence[Outcome], judged: Sequence[Criterion]) -> list[Answers]:
        """Read the outcomes of `calls_about` these criteria."""
        about = [judged if self.together else [judged[place // self.config.samples]] for place in range(len(calls))]
        rows = zip(calls, outcomes, about, strict=True)
        return [read_answers(*row, together=self.together) for row in rows]

    def _answers(
        self, prompts: Sequence[Text], completions: Sequence[Text], asked: Sequence[Sequence[Criterion]]
    ) -> tuple[list[list[Answers]], str | None]:
        """What was read of each completion's calls, and what the server said when it last refused one."""
        if not any(asked):
            return [[] for _ in asked], None
        from surefoot.rewards.kinds.judge.client import ask

        about: dict[str, Sequence[Criterion]] = {}

        def calls(prompt: Text, completion: Text, judged: Sequence[Criterion]) -> list[Call]:
            made = self.calls_about(prompt, completion, judged)
            about.update({call.question: judged for call in made})
            return made

        def read(calls: Sequence[Call], outcomes: Sequence[Outcome]) -> list[Answers]:
            found = self.read(calls, outcomes, about[calls[0].question] if calls else ())
            self.heard.add(found, outcomes)
            return found

        rows = zip(prompts, completions, asked, strict=True)
        answers = ask(self.model, self.config, (calls(*row) for row in rows), read)
        return answers.read, answers.refusal

    def _warn(
        self,
        scores: Float[Tensor, "batch columns"],
        answers: Sequence[Sequence[Answers]],
        refusal: str | None,
    ) -> None:
        unscored = int(scores[:, 0].isnan().sum())
        if unscored:
            every = list(chain.from_iterable(answers))
            gone = missing(every, copies(every))
            why = "(a function gave none)"
            if gone:
                replies = unscored_reasons(gone, refusal, self.heard.example, "samples")
                why = f"with at least {self.config.valid} valid replies {replies}"
            text = f"left {unscored} of {len(scores)} completions unscored, since criteria have no answer {why}"
            warnings.warn(f"'{self.name}' {text}", stacklevel=4)

    def report(self, scores: Float[Tensor, "batch columns"], anchors: Anchors) -> dict[str, float | str | None]:
        """Replies and criteria so far in this process; raw mean variance of these rows, None if unknown.

        Args:
            scores: rows as `score` gave them.
            anchors: one for each row.
        """
        variance = self.raw_variance(scores, anchors).nanmean()
        return {
            "replies": self.heard.replies,
            "replies_read": self.heard.read,
            "criteria": self.heard.criteria,
            "criteria_answered": self.heard.answered,
            "variance_from": self.config.variance_from,
            "variance_raw": None if bool(variance.isnan()) else float(variance),
        }

    def totals(self, since: float = 0.0) -> Totals:
        """Sum what the judge has cost in all processes that share its cache."""
        return totals_of(self.model, self.config, since)

    # --- arithmetic ---------------------------------------------------------------------------------------------

    def raw_variance(
        self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None = None
    ) -> Float[Tensor, "batch"]:
        """Variance that `variance_from` and `variance_of` name, unbiased and not moderated; NaN where unknown.

        Args:
            scores: rows as `score` gave them.
            anchors: with `variance_from: criteria`, one for each row; None is the variance of the reward itself.
        """
        x = self._checked(scores)
        if not self.centred:
            return self._row_variance(x, None).raw
        if anchors is None:
            anchors = Anchors(torch.zeros_like(x), "calibration", x.new_full((len(x),), torch.inf))
        return self._row_variance(x, self._complete(x, anchors)).raw

    def _row_variance(self, x: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RowVariance:
        return RowVariance.of_replies(x) if anchors is None else RowVariance.of_criteria(x, anchors)

    def _variance(self, found: RowVariance) -> Float[Tensor, "batch"]:
        if self.config.variance == "raw":
            return found.raw
        return found.moderated(found.prior() if self.calibration is None else self.calibration.prior)

    def _estimate(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> RewardEstimate:
        if not self.has_variance:
            return RewardEstimate(mean=scores[:, 0])
        found = self._row_variance(scores, anchors)
        return RewardEstimate(mean=scores[:, 0], epistemic=self._variance(found), degrees_of_freedom=found.freedom)

    def _margins(
        self, chosen: Float[Tensor, "pairs columns"], rejected: Float[Tensor, "pairs columns"]
    ) -> MarginEstimate:
        """Margins: the noise of both sides' replies adds up; contributions are paired criterion by criterion.

        Raises:
            VarianceError: one reply is asked for.
        """
        if not self.has_variance:
            raise VarianceError(f"'{self.name}' asks for one reply, which has no variance; raise samples")
        margin = chosen[:, 0] - rejected[:, 0]
        if self.centred:
            other = Anchors(rejected, "dataset", rejected.new_ones(len(rejected)))
            return MarginEstimate(
                margin, torch.where(margin.isnan(), torch.nan, self._row_variance(chosen, other).raw)
            )
        prior = None if self.calibration is None or self.config.variance == "raw" else self.calibration.prior
        sides = [RowVariance.of_replies(side).moderated(prior) for side in (chosen, rejected)]
        return MarginEstimate(margin, sides[0] + sides[1])

    def _constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        known = scores[~scores[:, 0].isnan(), 0]
        if not len(known):
            raise DataError(f"'{self.name}' scored none of the {len(scores)} calibration rows")
        fitted = Calibration(
            (float(known.mean()),), (1.0,), None, None, len(scores), variance_kind=self.config.variance
        )
        if not self.has_variance:
            return fitted
        self.calibration = fitted  # `_complete` takes its offset for rows without an anchor
        found = self._row_variance(scores, self._complete(scores, anchors) if self.centred else None)
        return replace(fitted, prior=found.prior())

    def _lenient_constants(self, scores: Float[Tensor, "batch columns"], anchors: Anchors | None) -> Calibration:
        try:
            return self._constants(scores, anchors)
        except VarianceError:  # too few rows for a prior, or all alike
            return plain_constants(scores[:, 0])

    def _calibration_anchor(self) -> Float[Tensor, "columns"] | None:
        """An anchor without contributions, since other prompts have other criteria: the spread is the reward's own."""
        if self.calibration is None:
            return None
        row = torch.zeros(self.num_columns, dtype=torch.float64)
        row[0] = self.calibration.offsets[0]
        return row

    def _unknown(self, anchors: Anchors) -> "torch.Tensor":
        return anchors.rows[:, FIRST:].isnan().all(dim=1)

    # --- on disk ------------------------------------------------------------------------------------------------

    def save(self, directory: str | Path) -> None:
        """Write model, settings, criteria and calibration; no endpoint, key variable, cache, and nothing to run."""
        kept = {name: value for name, value in self.config.to_dict().items() if name not in _OF_THE_CALLER}
        held = {key: [one.to_dict() for one in some] for key, some in self.criteria.items()}
        with whole_directory(directory) as folder:
            write_json(folder / SOURCE, {"kind": "criteria", "name": self.name, "model": self.model, "config": kept})
            write_json(folder / _CRITERIA, held)
            save_calibration(folder, self.calibration)

    @classmethod
    def fit(cls, job: FitJob) -> RewardSource:
        return cls(job.model, job.settings)

    @classmethod
    def load(cls, directory: str | Path, device: str | torch.device | None = None) -> CriteriaSource:
        """Read what `save` wrote; endpoint, key and what may be run come from the caller (`judge.access`)."""
        folder = Path(directory)
        values = read_json(folder / SOURCE)
        path = folder / _CRITERIA
        if not path.exists():
            raise ModelError(f"{folder} has no {_CRITERIA}; make the source again with `surefoot reward`")
        criteria = saved_criteria(check_finite(path), str(path))
        kept = {name: value for name, value in values["config"].items() if name not in _OF_THE_CALLER}
        judged = any(one.judged for some in criteria.values() for one in some)
        of_calls = access_of(values["model"], folder).of_calls if judged else {}
        config = CriteriaConfig.from_dict({**kept, **of_calls, **verifiers_of(values["model"])})
        return cls(values["model"], config, name=values["name"], criteria=criteria)
