"""What a study sums up to, by hand: risks, differences by seed, equal KL, prices, and the rows on disk."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest

from surefoot.errors import RunError
from surefoot.files import read_json, write_json
from surefoot.metrics.intervals import brown_forsythe, sign_test
from surefoot.reports.paths import gains_at, level_of, path_of
from surefoot.reports.records import read_study
from surefoot.reports.study import build_report, summary_table
from surefoot.reports.study_figures import frontier_figure, overview_figure, path_figures, trajectory_figure
from surefoot.reports.summary import MethodSummary, summarise, summarise_group, summary_rows
from tests.reports.synthetic import as_an_earlier_version_wrote_it, cell_of, edit_cell, place_of, write_study

GAINS = {"vanilla": [-0.5, 0.25, 0.25], "mean": [0.5, 0.5, 0.5], "variance_aware": [0.5, 0.75, 1.0]}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    return write_study(tmp_path, gains=GAINS, seeds=3)


def by_name(folder: Path) -> dict[str, MethodSummary]:
    return {one.method: one for one in summarise(read_study(folder))}


def test_where_runs_ended(study: Path) -> None:
    found = by_name(study)
    assert found["vanilla"].risk.value == pytest.approx(1 / 3)
    assert found["variance_aware"].spread == pytest.approx(0.25)
    assert found["mean"].spread == 0.0
    assert found["vanilla"].worst == -0.5
    assert math.isnan(found["vanilla"].spread_p)
    assert found["mean"].spread_p == brown_forsythe(GAINS["mean"], GAINS["vanilla"])
    assert found["variance_aware"].risk_p == 1.0  # one discordant seed


def test_differences_by_seed(study: Path) -> None:
    found = by_name(study)
    paired, to_mean = found["variance_aware"].paired, found["variance_aware"].to_mean
    assert paired.difference.value == pytest.approx((1 + 0.5 + 0.75) / 3)
    assert paired.difference.low == pytest.approx(0.5)
    assert (paired.wins, paired.losses, paired.p) == (3, 0, 0.25)
    assert paired.p_holm == 0.5  # two methods are compared with the baseline
    assert to_mean.difference.value == pytest.approx(0.25)
    assert (to_mean.wins, to_mean.losses) == (2, 0)  # one tie
    assert to_mean.p == sign_test([0.0, 0.25, 0.5])
    assert math.isnan(found["vanilla"].paired.difference.value)
    assert math.isnan(found["mean"].to_mean.p_holm)


def test_pairs_are_made_by_seed_and_not_by_place(study: Path) -> None:
    """Without the baseline's first seed, the method's first seed has no partner."""
    (study / "cells" / f"{place_of('uneven', 'heads', 'vanilla', 6.0, 0)['key']}.json").unlink()
    paired = by_name(study)["variance_aware"].paired
    assert paired.difference.n == 2
    assert paired.difference.value == pytest.approx((0.5 + 0.75) / 2)


def test_the_order_of_files_changes_nothing(study: Path) -> None:
    before = summary_rows(summarise(read_study(study)))
    grid = read_json(study / "study.json")
    write_json(study / "study.json", grid | {"cells": grid["cells"][::-1]})
    assert summary_rows(summarise(read_study(study))) == before


def test_a_constant_moves_no_difference(study: Path) -> None:
    before = by_name(study)
    for path in (study / "cells").glob("*.json"):
        cell = read_json(path)
        cell["metrics"]["gold_gain"] += 10.0
        write_json(path, cell)
    after = by_name(study)
    assert after["vanilla"].risk.value == 0.0
    assert after["mean"].paired.difference.value == pytest.approx(before["mean"].paired.difference.value, abs=1e-12)
    assert after["mean"].spread_p == pytest.approx(before["mean"].spread_p, abs=1e-9)


def set_prompt_gains(folder: Path, method: str, *rows: list[float | None]) -> None:
    """Of the method's first seeds, one row each."""
    for seed, gains in enumerate(rows):
        path = folder / "cells" / f"{place_of('uneven', 'heads', method, 6.0, seed)['key']}.json"
        write_json(path, read_json(path) | {"prompt_gains": gains})


def test_prompt_risk_by_hand(study: Path) -> None:
    """Over runs and prompts that are known; the difference over seeds and prompts that both know."""
    set_prompt_gains(study, "vanilla", [-0.5, 0.1, 0.2, -0.1], [-0.1, 0.1, None, 0.0], [-0.2, -0.1, -0.1, 0.3])
    set_prompt_gains(study, "mean", [0.5, 0.1, 0.2, -0.1], [0.1, None, 0.2, 0.0], [0.2, 0.1, -0.1, 0.3])
    found = by_name(study)
    assert found["vanilla"].prompt_risk.value == pytest.approx(6 / 11)
    assert found["mean"].prompt_risk.value == pytest.approx(2 / 11)
    assert found["mean"].prompt_risk.low < 2 / 11 < found["mean"].prompt_risk.high
    assert found["mean"].paired_prompt_risk.value == pytest.approx(-4 / 10)
    assert (found["mean"].prompt_risk.n, found["mean"].paired_prompt_risk.n) == (3, 3)
    assert math.isnan(found["vanilla"].paired_prompt_risk.value)  # itself
    assert found["mean"].prompt_completions == 10
    row = summary_rows([found["mean"]])[0]
    assert row["prompt_risk"] == pytest.approx(2 / 11)
    assert row["prompt_risk_low"] < row["prompt_risk"] < row["prompt_risk_high"]
    assert row["paired_prompt_risk"] == pytest.approx(-4 / 10)


def test_prompts_are_paired_by_seed(study: Path) -> None:
    """Without the baseline's first seed, the method's first row has no partner."""
    set_prompt_gains(study, "vanilla", [1.0, 1.0], [-1.0, 1.0], [1.0, 1.0])
    set_prompt_gains(study, "mean", [-1.0, -1.0], [-1.0, 1.0], [1.0, 1.0])
    assert by_name(study)["mean"].paired_prompt_risk.value == pytest.approx(2 / 6)
    (study / "cells" / f"{place_of('uneven', 'heads', 'vanilla', 6.0, 0)['key']}.json").unlink()
    assert by_name(study)["mean"].paired_prompt_risk.value == 0.0
    assert by_name(study)["mean"].prompt_risk.value == pytest.approx(3 / 6)


def test_records_without_the_prompts_leave_the_prompt_risk_unknown(study: Path) -> None:
    before = by_name(study)["mean"]
    set_prompt_gains(study, "mean", [])
    assert by_name(study)["mean"].prompt_risk.n == 2  # the other two runs still count
    as_an_earlier_version_wrote_it(study)
    found = by_name(study)["mean"]
    assert math.isnan(found.prompt_risk.value)
    assert (found.prompt_risk.n, found.anchor, found.prompt_completions) == (0, None, None)
    row = summary_rows([found])[0]
    for name in ("prompt_risk", "prompt_risk_low", "prompt_risk_high", "paired_prompt_risk", "anchor"):
        assert row[name] is None
    assert found.gain == before.gain  # and nothing else is


def test_the_anchor_of_a_method(study: Path) -> None:
    group = {"anchor": "group", "anchor_completions": 4}
    for seed in range(3):
        path = study / "cells" / f"{place_of('uneven', 'heads', 'mean', 6.0, seed)['key']}.json"
        write_json(path, read_json(path) | group)
    path = study / "cells" / f"{place_of('uneven', 'heads', 'variance_aware', 6.0, 0)['key']}.json"
    write_json(path, read_json(path) | group)
    found = by_name(study)
    assert (found["vanilla"].anchor, found["vanilla"].anchor_completions) == ("reference", 4)
    assert (found["mean"].anchor, found["mean"].anchor_completions) == ("group", None)  # nothing was drawn for it
    assert found["variance_aware"].anchor == "mixed"


def test_a_source_that_names_its_own_methods_is_compared_with_the_first_of_them(tmp_path: Path) -> None:
    """One source runs all methods, the other one model's baseline not: nothing is missing there."""
    write_study(tmp_path, sources=("linear", "heads"), seeds=3)
    grid = read_json(tmp_path / "study.json")
    kept = [cell for cell in grid["cells"] if (cell["source"], cell["method"]) != ("heads", "vanilla")]
    write_json(tmp_path / "study.json", grid | {"cells": kept})
    linear, heads = read_study(tmp_path).groups
    assert (linear.baseline, linear.planned_methods) == ("vanilla", ["vanilla", "mean", "variance_aware"])
    assert (heads.baseline, heads.planned_methods) == ("mean", ["mean", "variance_aware"])
    table = summary_table(tmp_path)
    assert "3 runs each" in str(table.title)
    assert "over the baseline" in [str(column.header) for column in table.columns]
    _, best = summarise_group(heads)
    assert best.paired.difference == best.to_mean.difference


def straight(place: dict[str, Any], slope: float, reach: float, steps: int = 40) -> dict[str, Any]:
    """A cell whose true reward grows by `slope` per nat up to `reach` nats, without noise."""
    cell = cell_of(place, slope * reach)
    cell["trajectory"] = [
        {"step": t, "kl": reach * t / steps, "proxy": 0.0, "gold": 1.02 + slope * reach * t / steps, "variance": None,
         "weight": None, "beta": 0.2} for t in range(1, steps + 1)
    ]  # fmt: skip
    return cell


def test_at_equal_kl_the_faster_run_has_no_head_start(tmp_path: Path) -> None:
    """Two methods of the same slope, one of which goes twice as far: it gains more, and nothing at equal KL."""
    write_study(tmp_path, methods=("vanilla", "mean"), seeds=3, budgets=(None,))
    for seed in range(3):
        for method, reach in (("vanilla", 3.0), ("mean", 6.0)):
            place = place_of("uneven", "heads", method, None, seed)
            write_json(tmp_path / "cells" / f"{place['key']}.json", straight(place, 0.1, reach))
    found = by_name(tmp_path)
    assert found["mean"].paired.difference.value == pytest.approx(0.3)
    assert found["mean"].level == pytest.approx(2.77)  # 3 nats less half a window, rounded down
    assert found["mean"].matched.value == pytest.approx(0.277, abs=1e-9)
    assert found["mean"].matched_paired.difference.value == pytest.approx(0.0, abs=1e-9)
    assert found["mean"].gap.value == 0.0


def test_settled_gains_are_of_the_second_half_near_the_budget(tmp_path: Path) -> None:
    """Both methods end at .8 of the budget; one was there from the start and had gained less, which doesn't count."""
    write_study(tmp_path, methods=("vanilla", "mean"), seeds=2, budgets=(5.0,))
    for seed in range(2):
        for method, late in (("vanilla", 0.5), ("mean", 0.7)):
            place = place_of("uneven", "heads", method, 5.0, seed)
            cell = straight(place, late, 4.0)
            for t, row in enumerate(cell["trajectory"]):
                row |= {"kl": 4.0 if t > 10 else 1.0, "gold": 1.02 + (late if t >= 20 else -3.0)}
            write_json(tmp_path / "cells" / f"{place['key']}.json", cell)
    found = by_name(tmp_path)
    assert (found["vanilla"].settled.value, found["mean"].settled.value) == pytest.approx((0.5, 0.7))
    assert found["mean"].settled_paired.difference.value == pytest.approx(0.2)
    assert "Settled at about 80% of the budget" in build_report(tmp_path).read_text()
    for seed in range(2):  # too far from its budget to compare
        place = place_of("uneven", "heads", "mean", 5.0, seed)
        write_json(tmp_path / "cells" / f"{place['key']}.json", straight(place, 0.1, 3.0))
    assert math.isnan(by_name(tmp_path)["mean"].settled.value)
    assert by_name(tmp_path)["mean"].settled_paired.difference.n == 0


def test_a_path_begins_at_the_reference_and_no_level_is_beyond_the_budget(tmp_path: Path) -> None:
    write_study(tmp_path, methods=("vanilla",), seeds=2, budgets=(2.0,))
    for seed in range(2):
        place = place_of("uneven", "heads", "vanilla", 2.0, seed)
        write_json(tmp_path / "cells" / f"{place['key']}.json", straight(place, 0.1, 6.0))
    (group,) = read_study(tmp_path).groups
    kl, gain = path_of(group.cells[0])
    assert (kl[0], gain[0]) == (0.0, 0.0)
    assert kl[1] == pytest.approx(6.0 * 4 / 40)  # the middle of the first seven updates
    assert list(gains_at(group, "vanilla", 0.3).values()) == pytest.approx([0.03, 0.03])
    assert level_of(group) == 2.0


def test_ending_level_is_no_loss(tmp_path: Path) -> None:
    write_study(tmp_path, methods=("vanilla", "mean"), gains={"vanilla": [0.0] * 6, "mean": [0.1] * 6}, seeds=6)
    assert by_name(tmp_path)["vanilla"].risk.value == 0.0
    assert by_name(tmp_path)["mean"].risk_p == 1.0


def test_the_level_is_within_the_budget_and_outlives_one_short_run(tmp_path: Path) -> None:
    write_study(tmp_path, methods=("vanilla", "mean"), seeds=12)
    study = read_study(tmp_path)
    before = level_of(study.groups[0])
    assert 4.0 < before <= 6.0
    place = place_of("uneven", "heads", "mean", 6.0, 4)
    write_json(tmp_path / "cells" / f"{place['key']}.json", straight(place, 0.1, 0.5))
    group = read_study(tmp_path).groups[0]
    assert level_of(group) > 4.0
    mean = by_name(tmp_path)["mean"]
    assert mean.matched.n == len([1 for cell in group.of("mean") if path_of(cell)[0].max() >= level_of(group)])
    assert mean.matched.n < 12


def test_without_the_true_reward_along_the_way(study: Path) -> None:
    for path in (study / "cells").glob("*.json"):
        cell = read_json(path)
        cell["trajectory"] = [row | {"gold": None} for row in cell["trajectory"]]
        cell["metrics"]["gold_reference_train"] = None
        write_json(path, cell)
    group = read_study(study).groups[0]
    assert math.isnan(by_name(study)["mean"].level)
    assert math.isnan(by_name(study)["mean"].gap.value)
    assert frontier_figure(group, None) is None
    assert path_figures(group) == []
    with pytest.raises(RunError, match="monitor_gold"):
        trajectory_figure(group)
    assert "was not measured along these runs" in build_report(study).read_text()


def test_the_price_is_of_policy_and_source_at_equal_seeds(study: Path) -> None:
    for seed, (mine, theirs) in enumerate([(30.0, 10.0), (50.0, 20.0), (70.0, 40.0)]):
        edit_cell(study, place_of("uneven", "heads", "mean", 6.0, seed), cpu_seconds=mine, source_cpu_seconds=10.0)
        edit_cell(study, place_of("uneven", "heads", "vanilla", 6.0, seed), cpu_seconds=theirs, source_cpu_seconds=2.0)
    assert by_name(study)["mean"].cost.ratio == pytest.approx(180 / 76)
    edit_cell(study, place_of("uneven", "heads", "vanilla", 6.0, 2), cpu_seconds=None)
    assert by_name(study)["mean"].cost.ratio == pytest.approx(100 / 34)


def test_without_vanilla_the_first_method_is_the_baseline(tmp_path: Path) -> None:
    write_study(tmp_path, methods=("mean", "lcb"), seeds=3)
    found = by_name(tmp_path)
    assert found["mean"].is_baseline
    assert found["lcb"].paired.difference == found["lcb"].to_mean.difference


def test_groups_are_kept_apart(tmp_path: Path) -> None:
    write_study(tmp_path, settings=("uneven", "even"), sources=("heads", "laplace"), budgets=(4.0, None), seeds=2)
    study = read_study(tmp_path)
    assert [group.place for group in study.groups][:3] == [
        ("uneven", "heads", 4.0), ("uneven", "heads", None), ("uneven", "laplace", 4.0)
    ]  # fmt: skip
    assert [len(group.cells) for group in study.groups] == [6] * 8
    assert len(summarise(study)) == 24
    with pytest.raises(RunError, match="8 groups"):
        trajectory_figure(study)
    drawn = overview_figure(study, [(group, summarise_group(group)) for group in study.groups])
    for shape in ("<circle", "H3.9V3.9"):  # two methods against the baseline, circles and squares, and the legend
        assert "".join(drawn.parts).count(shape) == 8 + 1
    assert "even · laplace · β constant" in drawn.svg()


def test_the_rows_on_disk(study: Path) -> None:
    edit_cell(study, place_of("uneven", "heads", "mean", 6.0, 1), gold_gain=None, peak_memory_mb=None)
    build_report(study)
    summary = json.loads((study / "summary.json").read_text(), parse_constant=pytest.fail)  # no NaN
    vanilla, mean, _ = summary["rows"]
    assert (summary["baseline"], summary["planned"], summary["finished"]) == ("vanilla", 9, 9)
    assert (vanilla["method"], vanilla["n"], vanilla["paired_gain"], vanilla["spread_p"]) == ("vanilla", 3, None, None)
    assert (mean["n"], mean["runs"], mean["gain"], mean["kl_budget"]) == (2, 3, 0.5, 6.0)
    for name in ("setting", "source", "risk", "risk_low", "risk_high", "spread", "gain_low", "gain_high", "kl",
                 "prompt_risk", "prompt_risk_low", "prompt_risk_high", "anchor",
                 "worst", "paired_gain_low", "paired_gain_p_holm", "gain_at_matched_kl", "cpu_ratio"):  # fmt: skip
        assert name in mean
    with (study / "summary.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[1]) == list(mean)
    assert rows[1] == {name: "" if value is None else str(value) for name, value in mean.items()}
    with (study / "cells.csv").open() as file:
        cells = list(csv.DictReader(file))
    assert len(cells) == 9
    assert [(c["method"], c["seed"], c["gold_gain"]) for c in cells][3:5] == [("mean", "0", "0.5"), ("mean", "1", "")]
