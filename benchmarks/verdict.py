"""Can anything that is measured without gold tell whether weighting by the variance will help?

    python benchmarks/verdict.py --out runs/verdict --json docs/results/verdict.json

`SETTINGS` was fixed before any of them was run, and so were the number of pipelines, the budget, the predictors and
which settings are held out for a check. A pipeline is a fresh draw of preferences and the source fitted to it. Its
exact policies, plain and weighted, are found on candidates of the reference policy that all settings of a policy
share; gold judges them. A setting *helps* where the 95% bootstrap interval of the paired gain of weighting over its
pipelines lies above 0. AUROC: how well a predictor, its mean over pipelines or that of one pipeline, ranks settings
that help above the others; its interval resamples settings (`auroc`) or the draws that settings share (`by_draw`).
A finished setting is kept in `--out`, and the same call goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import itertools
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray

from surefoot.data.comparisons import Comparisons
from surefoot.diagnosis import diagnose, score_comparisons
from surefoot.diagnosis.verdict import EVEN, NOISY
from surefoot.files import read_json, write_json
from surefoot.forecast.candidates import Texts, group_texts
from surefoot.forecast.draws import draw_errors
from surefoot.forecast.evaluate import gains_of, judge_by_draws, objective_policies
from surefoot.forecast.objectives import named_objectives
from surefoot.forecast.scored import Candidates, source_candidates
from surefoot.maths.objectives import weights
from surefoot.metrics.intervals import auroc, bootstrap_mean, spearman
from surefoot.quiet import quieten
from surefoot.rewards.source import RewardSource
from verdict_worlds import Reader, Room, first_heads, fit_head_source, fit_linear_source, open_reader, open_room

TABLE = """
even          200 400 1000 3000   linear heads_5 heads_50   words    evidence
uneven        200 400 1000 3000   linear heads_5 heads_50   words    evidence
shared_bias   200 400 1000 3000   linear heads_5 heads_50   words    evidence
even          400 1000            linear                    last     evidence
uneven        400 1000            linear                    last     evidence
shared_bias   400 1000            linear                    last     evidence
even          400 1000            linear                    words    30
uneven        400 1000            linear                    words    30
shared_bias   400 1000            linear                    words    30
stories       200 600             linear heads_5 heads_50   own      evidence
stories       200 600             linear heads_5 heads_50   minilm   evidence
"""
"""World, numbers of pairs, sources, features, penalty of the linear head. Heads have the studies' settings."""
PIPELINES = 8
BUDGET = 3.0
FIRST_SEED = 88_000
RUNS = 16
"""Draws that make a policy of the forecast without gold."""
HELD_OUT, FAR = 400, 60
"""Held-out pairs of a diagnosis, and those of them that far texts are made of."""
GRADES = ("nothing", "unlikely", "possible", "likely")
PREDICTORS = {
    "reliability": "of the variance",
    "variation": "coefficient of variation of the weights over all candidates, as the verdict reads it",
    "variation_within": "the same within prompts",
    "forecast": "weighted less plain, judged by draws of the source, in its own reward",
    "verdict": "by the rule until then, which asked for seeing mistakes and distance: nothing 0 … likely 3",
    "forecast_scaled": "forecast in standard deviations of the source's reward within a prompt",
    "noise": "mean variance over the variance of the reward within a prompt",
    "reach": "mean weight under the plain policy",
    "held_out_judge": "weighted less plain by a linear head fitted to the held-out pairs, in its standard deviations",
    "far_seen": "share of the kinds of far text on which the variance is larger",
    "mistakes": "AUROC of the variance for the mean's mistakes on held-out pairs",
    "rule": "the verdict's rule of today, chosen on the settings that aren't held out",
}
"""All are said to be larger where weighting helps. The first five were asked for; the others are further tries, and
the last was added when the settings that aren't held out had been looked at."""
LARGE = 0.1
"""Gain of weighting, in true reward, that counts as large; this label was added afterwards too."""


@dataclass(frozen=True)
class Setting:
    world: str
    pairs: int
    source: str
    features: str
    penalty: float | None

    @property
    def name(self) -> str:
        return "-".join(map(str, (self.world, self.pairs, self.source, self.features, self.penalty or "evidence")))

    @property
    def draw(self) -> tuple[str, int]:
        """Settings with the same draw share their pairs."""
        return self.world, self.pairs


def settings() -> list[Setting]:
    found = []
    for line in TABLE.strip().splitlines():
        world, *words = line.split()
        sizes = [int(word) for word in words if word.isdigit() and int(word) >= 100]
        penalty = None if words[-1] == "evidence" else float(words[-1])
        sources = [word for word in words if word.startswith(("linear", "heads"))]
        found += [Setting(world, n, source, words[-2], penalty) for n in sizes for source in sources]
    return found


SETTINGS = settings()
DRAWS = list(dict.fromkeys(setting.draw for setting in SETTINGS))
_SIZES = {world: [pairs for other, pairs in DRAWS if other == world] for world, _ in DRAWS}


def is_held_out(setting: Setting) -> bool:
    """A chequerboard of worlds and numbers of pairs: a rule is chosen on its white squares, checked on the black."""
    return (list(_SIZES).index(setting.world) + _SIZES[setting.world].index(setting.pairs)) % 2 == 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/verdict"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    for world, pairs in DRAWS:
        some = [one for one in SETTINGS if one.draw == (world, pairs) and not kept(options.out, one).exists()]
        if some:
            start = time.process_time()
            run_draw(some, options.out)
            print(f"{world}, {pairs} pairs: {len(some)} settings, {time.process_time() - start:.0f} CPU s", flush=True)
    rows = [row_of(one, read_json(kept(options.out, one))["pipelines"]) for one in SETTINGS]
    show_settings(rows)
    predictors = [predictor_row(name, rows) for name in PREDICTORS]
    show_predictors(predictors)
    grades = grade_rows(rows)
    for grade in grades:
        print("| " + " | ".join(f"{v:.2f}" if isinstance(v, float) else str(v) for v in grade.values()) + " |")
    if options.json is not None:
        held = {"pipelines": PIPELINES, "budget": BUDGET, "predictors": predictors, "grades": grades, "settings": rows}
        write_json(options.json, held)


def kept(folder: Path, setting: Setting) -> Path:
    return folder / "settings" / f"{setting.name}.json"


def run_draw(some: list[Setting], folder: Path, first_seed: int = FIRST_SEED, pipelines: int = PIPELINES) -> None:
    """The settings of one draw, pipeline by pipeline; their files are written at the end."""
    room = open_room(some[0].world, folder)
    texts = group_texts(room.prompts, room.completions)
    readers = {name: open_reader(name, room.policy) for name in {one.features for one in some}}
    for reader in readers.values():
        reader(room.prompts, room.completions)
    number = DRAWS.index(some[0].draw)
    found: dict[Setting, list[dict[str, Any]]] = {one: [] for one in some}
    for seed in range(first_seed + 100 * number, first_seed + 100 * number + pipelines):
        for one, figures in run_pipeline(some, room, texts, readers, seed).items():
            found[one].append(figures)
        for reader in readers.values():
            reader.forget(room.reread)
    for one, figures in found.items():
        write_json(kept(folder, one), {"pipelines": figures})


def run_pipeline(
    some: list[Setting], room: Room, texts: Texts, readers: dict[str, Reader], seed: int
) -> dict[Setting, dict[str, Any]]:
    table, held = room.pairs(some[0].pairs, seed), room.held_out(HELD_OUT, seed)
    gold = torch.tensor(room.truth, dtype=torch.float64)[texts.order]
    found = {}
    for features, group in itertools.groupby(sorted(some, key=lambda one: one.features), lambda one: one.features):
        reader, members = readers[features], list(group)
        judge = fit_linear_source(held, None, reader).score(texts.prompts, texts.completions)[:, 0].double()
        fifty = None
        if any(one.source.startswith("heads") for one in members):
            fifty = fit_head_source(table, 50, reader, seed)
        for one in members:
            source: RewardSource
            if one.source == "linear":
                source = fit_linear_source(table, one.penalty, reader)
            else:
                assert fifty is not None
                source = fifty if one.source == "heads_50" else first_heads(fifty, int(one.source[6:]))
            found[one] = measure(source, texts, gold, judge, held)
    return found


def measure(
    source: RewardSource, texts: Texts, gold: torch.Tensor, judge: torch.Tensor, held: Dataset
) -> dict[str, Any]:
    """Gains of one pipeline by gold, and every predictor."""
    rows = source.score(texts.prompts, texts.completions)
    seen = source_candidates(source, texts, rows, gold)
    candidates = seen.candidates
    plain, weighted = named_objectives(candidates.estimate, ["mean", "variance_aware"]).values()
    policies = [objective_policies(candidates, one, [BUDGET]) for one in (plain, weighted)]
    assert seen.truth is not None
    true, other = (
        [gains_of(one.policy, values[..., None], candidates.log_reference)[0, :, 0] for one in policies]
        for values in (seen.truth, judge.view(seen.truth.shape))
    )
    draws = draw_errors(source, seen.rows, candidates.estimate, 64)
    drawn = [float(judge_by_draws(candidates, one, [BUDGET], draws, RUNS).gains.mean()) for one in (plain, weighted)]
    return {
        "gain": [float(gain.mean()) for gain in true],
        "prompt_risk": [float((gain < 0).double().mean()) for gain in true],
        "kl": [float(one.kl[0]) for one in policies],
        "effective": [float(one.effective[0]) for one in policies],
        **shape_of(candidates, policies[0].policy[0]),
        "forecast": drawn[1] - drawn[0],
        "forecast_scaled": (drawn[1] - drawn[0]) / within(candidates.table(candidates.estimate.mean)),
        "held_out_judge": float((other[1] - other[0]).mean()) / within(judge.view(seen.truth.shape)),
        **diagnosed(source, comparisons_of(held), rows, texts),
    }


def shape_of(candidates: Candidates, plain: torch.Tensor) -> dict[str, float]:
    """How large the variance is beside the reward, and how uncertain what the plain policy likes is."""
    variance, mean = candidates.estimate.variance, candidates.reference_variance
    assert mean is not None
    reward = candidates.table(candidates.estimate.mean)
    w = candidates.table(weights(variance, mean))
    return {"noise": mean / within(reward) ** 2, "reach": float((plain * w).sum(dim=1).mean())}


def within(reward: torch.Tensor) -> float:
    """Standard deviation within a prompt, its mean square over prompts."""
    return math.sqrt(float(reward.var(dim=1, correction=0).mean()))


def comparisons_of(held: Dataset) -> Comparisons:
    count = len(held)
    sides = zip(held["chosen"], held["rejected"], strict=True)
    return Comparisons(
        name="held out",
        format="pairs",
        prompts=[prompt for prompt in held["prompt"] for _ in range(2)],
        completions=[text for pair in sides for text in pair],
        items=np.repeat(np.arange(count), 2),
        correct=np.tile([True, False], count),
        subsets=[""] * count,
        ids=[str(i) for i in range(count)],
    )


def diagnosed(source: RewardSource, comparisons: Comparisons, rows: torch.Tensor, texts: Texts) -> dict[str, Any]:
    """What `surefoot diagnose --completions` says: today's verdict, and the figures that it is made of.

    The section on disagreement, which takes longest and which the verdict's grade doesn't read, is left out.
    """
    scored = score_comparisons(source, comparisons, far_items=FAR)
    with mock.patch("surefoot.diagnosis.run._disagreement", return_value=None):
        found = diagnose(source, comparisons, scored, samples=(rows, texts.prompts, None))
    spread = found["heterogeneity"]
    kinds = found["far"].values()
    return {
        "verdict": GRADES.index(former_grade(found)),
        "reliability": spread["reliability"],
        "variation": spread["variation"],
        "variation_within": spread["variation_within"],
        "prior_freedom": spread["prior_freedom"],
        "far_seen": float(np.mean([(one["auroc"]["low"] or 0.0) > 0.5 for one in kinds])),
        "mistakes": found["usefulness"]["auroc"]["variance"]["value"],
        "accuracy": found["accuracy"]["overall"]["value"],
    }


def former_grade(found: dict[str, Any]) -> str:
    """The verdict's grade by the rule that these settings were run to check."""
    if found["verdict"]["weighting"] == "nothing":
        return "nothing"
    reliability, useful = found["heterogeneity"]["reliability"], found["usefulness"]
    above, auroc_of = useful["above_baseline"]["sd_over_margin"]["low"], useful["auroc"]["variance"]["low"]
    mistakes = (above or 0.0) > 0 or (auroc_of or 0.0) > 0.5
    distance = np.mean([(one["auroc"]["low"] or 0.0) > 0.5 for one in found["far"].values()]) > 0.5
    noisy = reliability is not None and reliability < NOISY
    return GRADES[1 + (0 if noisy else int(mistakes) + int(distance))]


def present_grade(setting: Setting, figures: dict[str, Any]) -> int:
    """The verdict's grade by today's rule, from the figures kept."""
    reliability, has_prior = figures["reliability"], setting.source != "linear"
    if figures["variation"] < EVEN or (has_prior and figures["prior_freedom"] is None):
        return 0
    return 2 if reliability is None else 1 if reliability < NOISY else 3


def row_of(setting: Setting, pipelines: list[dict[str, Any]]) -> dict[str, Any]:
    """A setting with its label, and each predictor's value in every pipeline."""
    difference = [one["gain"][1] - one["gain"][0] for one in pipelines]
    found = bootstrap_mean(difference, np.random.default_rng(0))
    gains = np.array([one["gain"] for one in pipelines])
    pipelines = [one | {"rule": present_grade(setting, one)} for one in pipelines]
    return {
        **{name: getattr(setting, name) for name in ("world", "pairs", "source", "features")},
        "penalty": setting.penalty or "evidence",
        "held_out": is_held_out(setting),
        "n": found.n,
        "plain": float(gains[:, 0].mean()),
        "weighted": float(gains[:, 1].mean()),
        "difference": [found.value, found.low, found.high],
        "helps": found.low > 0,
        "harms": found.high < 0,
        "prompt_risk": np.mean([one["prompt_risk"] for one in pipelines], axis=0).tolist(),
        "effective": np.mean([one["effective"] for one in pipelines], axis=0).tolist(),
        "predictors": {name: [one[name] for one in pipelines] for name in (*PREDICTORS, "accuracy")},
    }


def mean_of(row: dict[str, Any], name: str) -> float:
    """A predictor's mean over pipelines, NaN where none knows it."""
    known = [value for value in row["predictors"][name] if value is not None]
    return float(np.mean(known)) if known else math.nan


def predictor_row(name: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """AUROCs of a predictor: of its mean over pipelines, and of a single pipeline; over all and by part."""
    parts = {
        "all": rows,
        "chosen": [row for row in rows if not row["held_out"]],
        "check": [row for row in rows if row["held_out"]],
        "without five heads": [row for row in rows if row["source"] != "heads_5"],
        "large gain": [row | {"helps": row["helps"] and row["difference"][0] >= LARGE} for row in rows],
    }
    values = [(mean_of(row, name), row["difference"][0]) for row in rows]
    order = spearman(*zip(*values, strict=True))
    found: dict[str, Any] = {"predictor": name, "meaning": PREDICTORS[name], "rho": order.to_dict()}
    for part, some in parts.items():
        found[part] = ranked([(row, [mean_of(row, name)]) for row in some])
        found[f"{part}, one pipeline"] = ranked([(row, row["predictors"][name]) for row in some])
    return found


def grade_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each grade, by the former and by today's rule: pipelines, and how their settings fared."""
    found = []
    for rule, part, grade in itertools.product(("verdict", "rule"), ("chosen", "check"), range(len(GRADES))):
        some = [row for row in rows if row["held_out"] == (part == "check")]
        hits = [(row, row["predictors"][rule].count(grade)) for row in some if grade in row["predictors"][rule]]
        count = sum(times for _, times in hits)
        if count:
            share = sum(times for row, times in hits if row["helps"]) / count
            harm = sum(times for row, times in hits if row["harms"]) / count
            gain = sum(times * row["difference"][0] for row, times in hits) / count
            found.append({"rule": rule, "part": part, "grade": GRADES[grade], "pipelines": count,
                          "settings": len(hits), "helps": share, "harms": harm, "difference": gain})  # fmt: skip
    return found


def ranked(values: list[tuple[dict[str, Any], Sequence[float | None]]]) -> dict[str, Any]:
    """AUROC for settings that help, with intervals that resample settings, and draws with all their settings."""
    places = [i for i, (_, some) in enumerate(values) for value in some if value is not None and value == value]
    x = np.array([value for _, some in values for value in some if value is not None and value == value])
    helps = np.array([values[i][0]["helps"] for i in places])
    draws = [f"{values[i][0]['world']} {values[i][0]['pairs']}" for i in places]
    return {
        "settings": len(set(places)),
        "helping": len({i for i, yes in zip(places, helps, strict=True) if yes}),
        "auroc": [auroc(x, helps).value, *resampled(x, helps, np.array(places))],
        "by_draw": resampled(x, helps, np.unique(draws, return_inverse=True)[1]),
    }


def resampled(x: NDArray[np.float64], helps: NDArray[np.bool_], groups: NDArray[np.int64]) -> list[float]:
    """95% interval of the AUROC when whole groups are drawn anew."""
    groups = np.unique(groups, return_inverse=True)[1]
    count = int(groups.max()) + 1
    times = np.random.default_rng(0).multinomial(count, np.full(count, 1 / count), 2000)[:, groups]
    above = (x[helps][:, None] > x[~helps]) + 0.5 * (x[helps][:, None] == x[~helps])
    hits, misses = times[:, helps], times[:, ~helps]
    pairs = hits.sum(axis=1) * misses.sum(axis=1)
    known = pairs > 0
    areas = ((hits @ above) * misses).sum(axis=1)[known] / pairs[known]
    return np.quantile(areas, [0.025, 0.975]).tolist() if known.any() else [math.nan, math.nan]


def show_settings(rows: list[dict[str, Any]]) -> None:
    print(
        f"\n{len(rows)} settings, {PIPELINES} pipelines each, {BUDGET:g} nats; " + "gain: plain, weighted, difference"
    )
    for row in rows:
        value, low, high = row["difference"]
        label = "helps" if row["helps"] else "harms" if row["harms"] else ""
        cells = [row["world"], row["pairs"], row["source"], row["features"], row["penalty"], f"{row['plain']:.2f}",
                 f"{row['weighted']:.2f}", f"{value:+.2f} [{low:+.2f}, {high:+.2f}]", label]  # fmt: skip
        print("| " + " | ".join(map(str, cells)) + " |")


def show_predictors(rows: list[dict[str, Any]]) -> None:
    parts = ("all", "all, one pipeline", "chosen", "check", "without five heads", "large gain")
    print("\nAUROC for settings that help: " + "; ".join(parts) + "; ρ with the gain")
    for row in rows:
        print("| " + " | ".join([row["predictor"], *(shown(row[part]) for part in parts), rho(row)]) + " |")


def rho(row: dict[str, Any]) -> str:
    return "{value:.2f} [{low:.2f}, {high:.2f}]".format(**row["rho"])


def shown(found: dict[str, Any]) -> str:
    value, low, high = found["auroc"]
    return f"{value:.2f} [{low:.2f}, {high:.2f}]"


if __name__ == "__main__":
    main()
