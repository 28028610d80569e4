"""Criteria that are decided without a judge: exact answers, Python functions, unit tests.

What runs is the user's choice alone: a criterion names functions and patterns of the settings, and unit tests run
where the settings say so. A dataset or a saved source can't bring functions, or a regular expression that never ends.
"""

from __future__ import annotations

import math
import os
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal, InvalidOperation
from typing import Any

from surefoot.data.messages import plain_text
from surefoot.errors import ConfigError, DataError
from surefoot.rewards.kinds.criteria.config import CriteriaConfig
from surefoot.rewards.kinds.criteria.criterion import Criterion
from surefoot.rewards.kinds.criteria.unit_tests import check_platform, passes
from surefoot.rewards.python_functions import load_function
from surefoot.types import Text

__all__ = ["Verifiers"]

Function = Callable[[Text, Text], Any]

_PATTERNS = {
    "boxed": r"\\boxed\{((?:[^{}]|\{[^{}]*\})*)\}",
    "last_number": r"([-+−]?(?:\d[\d,]*(?:\.\d+)?|\.\d+))",
    "last_line": r"(?m)^[ \t]*(\S.*)$",
    "after_answer": r"(?i)\banswer(?: is)?[ \t]*:?[ \t]*([^\n]+)",
}
"""Names that `extract` knows without settings; none of them backtracks far."""
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")


class Verifiers:
    """The verifiers that the settings allow.

    Args:
        functions: besides those that the settings name.

    Raises:
        ConfigError: a function can't be loaded, a pattern is no regular expression, or code can't be run here.
    """

    def __init__(self, config: CriteriaConfig, functions: Mapping[str, Function] | None = None) -> None:
        self.config = config
        named = {name: load_function(place, "function of a criterion") for name, place in config.functions.items()}
        self.functions: dict[str, Function] = {**named, **(functions or {})}
        self.patterns = {name: _compiled(name, text) for name, text in {**_PATTERNS, **config.patterns}.items()}
        if config.run_code:
            check_platform()

    def check(self, criteria: Iterable[Criterion]) -> None:
        """Refuse criteria that need what the settings don't allow.

        Raises:
            ConfigError: what is missing, and how to give it.
        """
        for criterion in criteria:
            for what, name, known in (
                ("functions", criterion.function, self.functions),
                ("patterns", criterion.extract, self.patterns),
            ):
                if name is not None and name not in known:
                    raise ConfigError(
                        f"the criterion '{criterion.text}' names '{name}', but {what} of the settings are "
                        f"{', '.join(sorted(known)) or 'none'}; add it there (of a saved source: --judge_verifiers)"
                    )
            if criterion.kind == "unit_tests" and not self.config.run_code:
                raise ConfigError(
                    f"the criterion '{criterion.text}' is of kind: unit_tests, which runs code of completions on this "
                    "machine, outside of any sandbox; set run_code: true if you want that (of a saved source: "
                    "--judge_verifiers)"
                )

    def answers(
        self, prompts: Sequence[Text], completions: Sequence[Text], criteria: Sequence[Sequence[Criterion]]
    ) -> list[list[float]]:
        """Decide the verifiers' criteria.

        Returns:
            Of each completion, a number in [0, 1] in the place of each criterion; NaN for a judged one, and where a
            function can't tell.

        Raises:
            DataError: a function raised an error, or gave something else than a number from 0 to 1.
        """
        rows = list(zip(prompts, completions, criteria, strict=True))
        held = [[self._now(row, one, prompt, text) for one in some] for row, (prompt, text, some) in enumerate(rows)]
        runs = [
            (row, place, plain_text(text), str(criterion.tests))
            for row, (_, text, some) in enumerate(rows)
            for place, criterion in enumerate(some)
            if criterion.kind == "unit_tests"
        ]
        if runs:
            limits = (self.config.code_seconds, self.config.code_memory_mib)
            with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as threads:
                found = threads.map(lambda run: passes(run[2], run[3], *limits), runs)
                for (row, place, _, _), passed in zip(runs, found, strict=True):
                    held[row][place] = float(passed)
        return held

    def _now(self, row: int, criterion: Criterion, prompt: Text, completion: Text) -> float:
        if criterion.kind == "function":
            return self._called(row, str(criterion.function), prompt, completion)
        if criterion.kind == "exact_match":
            return float(self._matches(criterion, plain_text(completion)))
        return math.nan

    def _matches(self, criterion: Criterion, text: str) -> bool:
        if criterion.extract is not None:
            found = list(self.patterns[criterion.extract].finditer(text))
            if not found:
                return False
            text = found[-1][1] if found[-1].re.groups else found[-1][0]
        return _normal(text) in {_normal(answer) for answer in criterion.answers}

    def _called(self, row: int, name: str, prompt: Text, completion: Text) -> float:
        try:
            given = self.functions[name](prompt, completion)
            value = math.nan if given is None else float(given)
        except Exception as error:  # a user's function may raise anything
            raise DataError(f"row {row}: function '{name}' of a criterion failed: {type(error).__name__}") from error
        if not (math.isnan(value) or 0 <= value <= 1):
            raise DataError(f"row {row}: function '{name}' of a criterion gave {value:g}; give a number from 0 to 1")
        return value


def _compiled(name: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise ConfigError(f"patterns: '{name}' is no regular expression: {error}") from None


def _normal(text: str) -> str:
    """Text without differences that don't count: case, spaces, marks around it, thousands' commas, trailing zeros."""
    text = " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(" .,;:!?\"'`*$")
    try:
        value = Decimal(_THOUSANDS.sub("", text).replace("−", "-"))
    except InvalidOperation:
        return text
    exact = value.is_finite() and len(value.as_tuple().digits) <= 25 and abs(value.adjusted()) <= 25
    return f"{value.normalize() + 0:f}" if exact else text
