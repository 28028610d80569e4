"""`trainer: exact`: a cell without training, whose record is read like any other."""

import json
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import ConfigError
from surefoot.reports.records import read_study
from surefoot.studies.config import StudyConfig, method_settings
from surefoot.studies.run import run_study
from tests.studies.test_run import SMALL


def exact(methods: list[str], **changes: Any) -> StudyConfig:
    settings = {"trainer": "exact", "policy": {"candidates": 24}, "kl_budgets": (1.0,), "seeds": (0,)} | changes
    return StudyConfig(**SMALL | {"methods": method_settings(methods)} | settings)


@pytest.mark.slow
def test_an_exact_cell_is_the_optimum_on_its_candidates(study_folder: Path) -> None:
    outcome = run_study(exact(["vanilla", "variance_aware"]), study_folder, title="exact")
    assert (outcome.finished, outcome.failed) == (2, 0)
    records = [json.loads(path.read_text()) for path in (study_folder / "cells").glob("*.json")]
    for cell in records:
        metrics = cell["metrics"]
        assert metrics["kl_final"] == pytest.approx(1.0, abs=1e-4)
        assert sum(cell["prompt_gains"]) / 24 == pytest.approx(metrics["gold_gain"])
        assert metrics["gold_final"] == pytest.approx(metrics["gold_reference"] + metrics["gold_gain"])
        kl = [row["kl"] for row in cell["trajectory"]]
        assert kl[0] == 0.0
        assert kl == sorted(kl)
        assert cell["trajectory"][-1]["gold"] == pytest.approx(metrics["gold_final"])
        proxies = [row["proxy"] for row in cell["trajectory"]]
        assert proxies == sorted(proxies)  # the optimum of a larger budget has more of what it maximises
        assert len(cell["samples"]) == 2
    (weighted,) = [cell for cell in records if cell["method"] == "variance_aware"]
    assert weighted["anchor"] == "group"
    assert weighted["trajectory"][0]["weight"] == pytest.approx(1.0, abs=1e-6)  # the reference's mean weight
    assert len(read_study(study_folder).groups) == 1


def test_what_exact_policies_cannot_do_is_refused_before_any_work(study_folder: Path) -> None:
    for changes, words in (
        ({"kl_budgets": (6.0,)}, r"24 candidates carries budgets up to ln n − 1 = 2.18 nats, not 6"),
        ({"kl_budgets": (None,)}, "give kl_budgets"),
        ({"policy": {"candidates": 3}}, "at least 8, got 3"),
    ):
        with pytest.raises(ConfigError, match=words):
            run_study(exact(["vanilla"], **changes), study_folder, title="exact")
