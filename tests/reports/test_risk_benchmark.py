"""The tables of our own risk studies: methods of several sources compared at the same seeds, by hand."""

import csv
import io
import sys
from collections.abc import Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from benchmarks.risk import main

from surefoot.files import read_json, write_json
from tests.reports.synthetic import as_an_earlier_version_wrote_it, write_study

GAINS: dict[str, Sequence[float]] = {
    "vanilla": [-0.5, 0.25, 0.25],
    "mean": [0.5, 0.5, 0.5],
    "variance_aware": [0.5, 0.75, 1.0],
}
METHODS = {
    "linear": ("vanilla", "variance_aware"),
    "linear_plain": ("vanilla",),
    "heads_50": ("mean", "variance_aware"),
}


def several_sources(folder: Path) -> Path:
    """A study whose sources name their own methods; the plain head's gains are those of one model less .25."""
    write_study(folder, sources=tuple(METHODS), gains=GAINS, seeds=3, steps=20)
    grid = read_json(folder / "study.json")
    cells = [cell for cell in grid["cells"] if cell["method"] in METHODS[cell["source"]]]
    write_json(folder / "study.json", grid | {"cells": cells})
    for seed in range(3):
        path = folder / "cells" / f"uneven-linear_plain-vanilla-6.0-{seed}.json"
        cell = read_json(path)
        cell["metrics"]["gold_gain"] -= 0.25
        write_json(path, cell)
    return folder


def run(*arguments: Path | str) -> str:
    """What the script prints; it runs in this process, which has imported everything."""
    with patch.object(sys, "argv", ["risk.py", *map(str, arguments)]), redirect_stdout(io.StringIO()) as printed:
        main()
    return printed.getvalue()


def row_of(rows: list[dict[str, Any]], source: str, method: str) -> dict[str, Any]:
    (found,) = [row for row in rows if (row["source"], row["method"]) == (source, method)]
    return found


def test_all_sources_are_compared_with_one_model_and_one_mean(tmp_path: Path) -> None:
    text = run(several_sources(tmp_path / "uneven"), "--json", tmp_path / "risk.json")
    rows = read_json(tmp_path / "risk.json")
    assert len(rows) == 5
    heads = row_of(rows, "heads_50", "variance_aware")
    assert heads["baseline"] == "linear_plain vanilla"
    assert heads["paired_gain"] == pytest.approx((1.25 + 0.75 + 1.0) / 3)
    assert heads["gain_over_mean"] == pytest.approx((0.0 + 0.25 + 0.5) / 3)
    assert row_of(rows, "linear", "variance_aware")["gain_over_mean"] == pytest.approx(0.25)  # of the same heads
    assert row_of(rows, "linear", "vanilla")["paired_gain"] == pytest.approx(0.25)
    assert row_of(rows, "linear_plain", "vanilla")["paired_gain"] is None
    for name in ("setting", "kl_budget", "n", "risk", "risk_low", "risk_high", "spread", "gain", "gain_low",
                 "gain_high", "kl", "prompt_risk", "prompt_risk_low", "prompt_risk_high"):  # fmt: skip
        assert heads[name] is not None, name
    assert (heads["setting"], heads["anchor"], heads["anchor_completions"]) == ("uneven", "reference", 4)
    assert row_of(rows, "linear", "vanilla")["prompt_risk"] == pytest.approx(7 / 15)
    assert "| `variance_aware` | `heads_50` | reference, 4 | 3 | 0% [0, 56] | 0% [0, " in text
    assert "  reliability: 0.53 [0.50, 0.60], N = 3" in text


def test_sources_with_a_model_of_their_own_stay_apart_and_unfinished_seeds_are_left_out(tmp_path: Path) -> None:
    folder = write_study(
        tmp_path / "stories", settings=("stories",), sources=("linear", "linear_own"), gains=GAINS, seeds=3
    )
    (folder / "cells" / "stories-linear-mean-6.0-0.json").unlink()
    run(folder, "--json", tmp_path / "risk.json")
    rows = read_json(tmp_path / "risk.json")
    assert {row["setting"] for row in rows} == {"stories"}
    assert row_of(rows, "linear_own", "mean")["baseline"] == "linear_own vanilla"
    assert [row_of(rows, source, "variance_aware")["n"] for source in ("linear", "linear_own")] == [2, 3]


def test_other_studies_rows_are_kept_and_the_order_is_fixed(tmp_path: Path) -> None:
    own = {"study": "even_and_shared", "setting": "even"}
    write_json(tmp_path / "risk.json", [{"study": "corrections"}, own, {"study": "uneven", "setting": "old"}])
    run(several_sources(tmp_path / "uneven"), "--json", tmp_path / "risk.json")
    rows = read_json(tmp_path / "risk.json")
    assert [row["study"] for row in rows] == ["uneven"] * 5 + ["even_and_shared", "corrections"]
    assert rows[5] == own
    assert "old" not in {row.get("setting") for row in rows}


def test_a_line_for_each_run_and_a_picture(tmp_path: Path) -> None:
    folder = several_sources(tmp_path / "uneven")
    as_an_earlier_version_wrote_it(folder)
    run(folder, "--cells", tmp_path / "runs.csv", "--picture", tmp_path / "risk.svg")
    with (tmp_path / "runs.csv").open() as file:
        runs = list(csv.DictReader(file))
    assert len(runs) == 15
    assert (runs[0]["gold_gain"], runs[0]["prompt_risk"], runs[0]["seed"]) == ("-0.5", "", "0")
    assert (tmp_path / "risk.svg").read_text().startswith("<svg")
