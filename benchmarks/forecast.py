"""Does the forecast foretell what training then gives? Exact policies on candidates against the runs of a risk study.

    surefoot study --config benchmarks/studies/uneven.yaml
    python benchmarks/forecast.py runs/risk/uneven --json docs/results/forecast.json

For every finished seed the study's own reward sources score candidates of the reference policy for the evaluation
prompts, and each method's exact policy is found at the budgets that the candidates carry; gold judges it. This is set
against the trained runs of the same seeds: at the study's budgets (which are larger), and where a run's trajectory
first reaches the forecast's budget. rho: Spearman's over methods, of the means over seeds; its interval resamples
seeds. Wrong: pairs of methods whose trained gains differ beyond chance (paired over seeds) and whose forecast has the
other sign. With a source's name: the same over the methods of that source. *draws*: without gold, with the source's
own draws as the judge.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import stats
from transformers import AutoModelForCausalLM, AutoTokenizer

from surefoot.files import write_json
from surefoot.forecast.candidates import Texts, group_texts
from surefoot.forecast.draws import draw_errors
from surefoot.forecast.evaluate import judge_by_draws, judge_by_gold, objective_policies
from surefoot.forecast.objectives import served_by
from surefoot.forecast.policies import largest_budget
from surefoot.forecast.scored import source_candidates
from surefoot.metrics.intervals import bootstrap_mean
from surefoot.metrics.runs import values_at
from surefoot.quiet import quieten
from surefoot.reports.paths import path_of
from surefoot.run_records import CellRecord, read_cell
from surefoot.studies.config import objective_of
from surefoot.studies.evaluation import judge_policy
from surefoot.studies.reward_sources import load_sources
from surefoot.studies.settings import build_setting

Method = tuple[str, str]
"""(source, method)."""
Gains = dict[Method, dict[int, float]]
"""By seed."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="of a study on one setting")
    parser.add_argument("--candidates", type=int, default=448)
    parser.add_argument("--budgets", type=float, nargs="+", default=[1.0, 3.0, 5.0])
    parser.add_argument("--seeds", type=int, default=12, help="the first so many")
    parser.add_argument("--runs", type=int, default=8, help="draws that make a policy")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if max(options.budgets) > largest_budget(options.candidates):
        raise SystemExit(
            f"{options.candidates} candidates carry at most {largest_budget(options.candidates):.2f} nats"
        )
    quieten()
    torch.set_num_threads(1)
    cells = whole_seeds([read_cell(path) for path in sorted((options.folder / "cells").glob("*.json"))], options.seeds)
    told, drawn = foretell(options, cells)
    trained = {budget: final_gains(cells, budget) for budget in sorted({cell.place.kl_budget for cell in cells})}
    reached = {budget: gains_on_the_way(cells, budget) for budget in options.budgets}
    rows = [
        compared("gold", budget, f"trained, {other:g} nats", told[budget], gains)
        for budget, (other, gains) in itertools.product(options.budgets, trained.items())
    ]
    rows += [compared("gold", b, f"on the way, {b:g} nats", told[b], reached[b]) for b in options.budgets]
    rows += [
        compared(
            f"{judge}, {source}", budget, f"trained, {other:g} nats", of_source(gains_told[budget], source), gains
        )
        for judge, gains_told in (("gold", told), ("draws", drawn))
        for source in sorted({source for source, _ in gains_told[options.budgets[0]]})
        for budget, (other, gains) in itertools.product(options.budgets, trained.items())
    ]
    for row in rows:
        show(row)
    methods = [gains_of_method(method, options, told, drawn, trained, reached) for method in told[options.budgets[0]]]
    if options.json is not None:
        held = {"candidates": options.candidates, "runs": options.runs, "agreement": rows, "methods": methods}
        write_json(options.json, held)


def whole_seeds(cells: list[CellRecord], most: int) -> list[CellRecord]:
    """The cells of the first seeds at which all methods are finished."""
    places = {(cell.place.source, cell.place.method, cell.place.kl_budget) for cell in cells}
    counts: dict[int, int] = {}
    for cell in cells:
        counts[cell.place.seed] = counts.get(cell.place.seed, 0) + 1
    whole = sorted(seed for seed, count in counts.items() if count == len(places))[:most]
    return [cell for cell in cells if cell.place.seed in whole]


def foretell(options: Any, cells: list[CellRecord]) -> tuple[dict[float, Gains], dict[float, Gains]]:
    """Gains of the exact policies by budget: judged by gold, and by the source's draws."""
    setting = build_setting(cells[0].config["setting"], options.folder)
    model = AutoModelForCausalLM.from_pretrained(setting.policy)
    tokenizer = AutoTokenizer.from_pretrained(setting.policy)
    count = options.candidates * len(setting.evaluation_prompts)
    longest = cells[0].config["policy"]["max_completion_length"]
    judged = judge_policy(setting, model, tokenizer, setting.evaluation_prompts, count, longest)
    texts = group_texts(judged["prompts"], judged["completions"])
    gold = torch.tensor(judged["gold"], dtype=torch.float64)[texts.order]
    told: dict[float, Gains] = {budget: {} for budget in options.budgets}
    drawn: dict[float, Gains] = {budget: {} for budget in options.budgets}
    groups: dict[str, list[CellRecord]] = {}
    for cell in cells:
        groups.setdefault(f"{cell.place.seed} {cell.config['sources']}", []).append(cell)
    for some in groups.values():
        one_source(options, some, texts, gold, told, drawn)
    return told, drawn


def one_source(options: Any, cells: list[CellRecord], texts: Texts, gold: torch.Tensor, told: Any, drawn: Any) -> None:
    """Score the candidates once, then every method of this source and seed."""
    source = load_sources(cells[0].config, options.folder)
    found = source_candidates(source, texts, source.score(texts.prompts, texts.completions), gold)
    draws = None
    if found.candidates.estimate.has_variance:
        draws = draw_errors(source, found.rows, found.candidates.estimate, 64)
    assert found.truth is not None
    for name in sorted({cell.place.method for cell in cells}):
        cell = next(cell for cell in cells if cell.place.method == name)
        objective = served_by(objective_of(cell.config["method"]), found.candidates.estimate)
        policies = objective_policies(found.candidates, objective, options.budgets)
        outcomes = {"gold": judge_by_gold(found.candidates, policies, found.truth)}
        if draws is not None:
            outcomes["draws"] = judge_by_draws(found.candidates, objective, options.budgets, draws, options.runs)
        for judge, held in (("gold", told), ("draws", drawn)):
            if judge in outcomes:
                for place, budget in enumerate(options.budgets):
                    gain = float(outcomes[judge].gains[:, place].mean())
                    held[budget].setdefault((cell.place.source, name), {})[cell.place.seed] = gain


def final_gains(cells: list[CellRecord], budget: float) -> Gains:
    """Where runs of a budget ended."""
    return collected(cells, budget, lambda cell: float(cell.metrics.gold_gain))


def gains_on_the_way(cells: list[CellRecord], level: float) -> Gains:
    """Where runs of the largest budget first reach a KL."""
    largest = max(cell.place.kl_budget for cell in cells)
    return collected(cells, largest, lambda cell: float(values_at(*path_of(cell), [level])[0]))


def collected(cells: list[CellRecord], budget: float, value: Callable[[CellRecord], float]) -> Gains:
    found: Gains = {}
    for cell in cells:
        if cell.place.kl_budget == budget:
            found.setdefault((cell.place.source, cell.place.method), {})[cell.place.seed] = value(cell)
    return found


def of_source(gains: Gains, source: str) -> Gains:
    return {method: values for method, values in gains.items() if method[0] == source}


def compared(judge: str, budget: float, what: str, told: Gains, trained: Gains) -> dict[str, Any]:
    """Agreement of forecast and trained gains over methods."""
    methods = [method for method in told if method in trained]
    seeds = sorted(set.intersection(*(set(trained[m]) & set(told[m]) for m in methods)))
    x = np.array([[told[method][seed] for seed in seeds] for method in methods])
    y = np.array([[trained[method][seed] for seed in seeds] for method in methods])
    row: dict[str, Any] = {"judge": judge, "budget": budget, "against": what, "methods": len(methods), "n": len(seeds)}
    known = ~np.isnan(y).any(axis=0)
    x, y = x[:, known], y[:, known]
    row["n"] = int(known.sum())
    if len(methods) > 2 and row["n"] > 1:
        rng = np.random.default_rng(0)
        picks = rng.integers(0, x.shape[1], (2000, x.shape[1]))
        rhos = [spearman(x[:, pick].mean(axis=1), y[:, pick].mean(axis=1)) for pick in picks]
        row["rho"] = spearman(x.mean(axis=1), y.mean(axis=1))
        row["rho_low"], row["rho_high"] = np.quantile(rhos, [0.025, 0.975]).tolist()
    row["bias"] = float((x.mean(axis=1) - y.mean(axis=1)).mean())
    row["error"] = float(np.abs(x.mean(axis=1) - y.mean(axis=1)).mean())
    row["told_apart"], row["wrong"] = signs(methods, x, y)
    return row


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    return float(stats.spearmanr(x, y).statistic)


def signs(methods: list[Method], x: np.ndarray, y: np.ndarray) -> tuple[int, list[str]]:
    """How many pairs of methods differ beyond chance when trained, and those that were forecast the other way."""
    told_apart, wrong = 0, []
    for i, j in itertools.combinations(range(len(methods)), 2):
        found = bootstrap_mean((y[i] - y[j]).tolist(), np.random.default_rng(0))
        if found.low > 0 or found.high < 0:
            told_apart += 1
            if (x[i].mean() - x[j].mean()) * found.value < 0:
                first, second = (methods[i], methods[j]) if found.value > 0 else (methods[j], methods[i])
                wrong.append(f"{' '.join(first)} > {' '.join(second)}")
    return told_apart, wrong


def gains_of_method(
    method: Method, options: Any, told: Any, drawn: Any, trained: dict[float, Gains], reached: dict[float, Gains]
) -> dict[str, Any]:
    def mean(gains: Gains) -> float | None:
        values = [value for value in gains.get(method, {}).values() if math.isfinite(value)]
        return sum(values) / len(values) if values else None

    return {
        "source": method[0],
        "method": method[1],
        "gold": {f"{budget:g}": mean(told[budget]) for budget in options.budgets},
        "draws": {f"{budget:g}": mean(drawn[budget]) for budget in options.budgets},
        "trained": {f"{budget:g}": mean(gains) for budget, gains in trained.items()},
        "on_the_way": {f"{budget:g}": mean(gains) for budget, gains in reached.items()},
    }


def show(row: dict[str, Any]) -> None:
    rho = "" if "rho" not in row else f"{row['rho']:.2f} [{row['rho_low']:.2f}, {row['rho_high']:.2f}]"
    wrong = f"{len(row['wrong'])} of {row['told_apart']}"
    cells = [row["judge"], f"{row['budget']:g}", row["against"], row["methods"], row["n"], rho, f"{row['bias']:.2f}",
             f"{row['error']:.2f}", wrong]  # fmt: skip
    print("| " + " | ".join(map(str, cells)) + " |")


if __name__ == "__main__":
    main()
