"""The benchmark of the rules at a reduced size: every rule runs, and D-optimal choice looks at few rows."""

import argparse
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from benchmarks.selection import measure

from surefoot.feedback import rules
from surefoot.feedback.select import RULES


@pytest.mark.parametrize("rule", RULES)
def test_every_rule_chooses_from_four_thousand_pairs(rule: str) -> None:
    row = measure(argparse.Namespace(pairs=4000, features=48, count=200, completions=8), rule)
    assert row["rule"] == rule
    assert row["seconds"] < 20  # a hundredth of the full size; generous, since machines are shared


def test_greedy_choice_looks_at_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A naive greedy would look at 200 × 20,000 gains; lazily it is a few percent of that."""
    looked = 0
    whole = rules._highest_gain

    def counted(x: torch.Tensor, order: torch.Tensor, inverse: torch.Tensor, bounds: torch.Tensor,
                updated: torch.Tensor, step: int) -> int:  # fmt: skip
        nonlocal looked
        before = updated.clone()
        place = whole(x, order, inverse, bounds, updated, step)
        looked += int((updated != before).sum())
        return place

    monkeypatch.setattr(rules, "_highest_gain", counted)
    rows = torch.randn(20_000, 32, generator=torch.Generator().manual_seed(0))
    rules.greedy_log_det(rows, 200, seed=0)
    assert 0 < looked < 0.05 * 200 * 20_000


@pytest.mark.slow
def test_the_benchmark_prints_a_table_and_writes_json(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "benchmarks" / "selection.py"
    words = [
        "--pairs=500",
        "--features=8",
        "--count=20",
        "--rules",
        "random",
        "d_optimal",
        f"--json={tmp_path / 'x.json'}",
    ]
    done = subprocess.run([sys.executable, script, *words], check=True, capture_output=True, text=True)
    assert done.stdout.count("\n|") == 3
    held = json.loads((tmp_path / "x.json").read_text())
    assert [row["rule"] for row in held["rules"]] == ["random", "d_optimal"]
    assert (held["pairs"], held["count"]) == (500, 20)
