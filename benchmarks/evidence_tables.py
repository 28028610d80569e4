"""The tables of the evidence study, from what `reward_evidence.py` measured; figures are means over repetitions."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from evidence_sources import LABELS
from surefoot.data.preferences import load_preferences
from surefoot.diagnosis.out_of_distribution import FAR_KINDS
from surefoot.diagnosis.sections import known_truth, margin_calibration
from surefoot.files import write_text
from surefoot.metrics.calibration import choice_probabilities, negative_log_likelihood
from surefoot.metrics.intervals import auroc, kendall_tau, pairwise_agreement, wilson
from surefoot.metrics.variance import auroc_difference, effective_members
from surefoot.reports.axes import padded
from surefoot.reports.drawing import COLOURS, Drawing
from surefoot.reports.figures import listed, name_rows

__all__ = ["tables", "variability_rows"]

KLS = (0, 5, 10, 20)
Row = dict[str, Any]


def tables(folder: Path, settings: list[str], sources: list[str], repetitions: int) -> dict[str, Any]:
    """One row a source and setting; prints them, and returns them as plain values."""
    found: dict[str, Any] = {"repetitions": repetitions, "settings": {}}
    for setting in settings:
        rows = {}
        base = _base_seconds(folder / setting, repetitions)
        for source in sources:
            paths = [folder / setting / "measured" / f"{source}-{r}.npz" for r in range(repetitions)]
            cells = [_figures(np.load(path), base) for path in paths if path.exists()]
            if cells:
                rows[source] = {name: _mean([cell[name] for cell in cells]) for name in cells[0]}
                rows[source]["most_train_ratio"] = _mean([max(cell["train_ratio"] for cell in cells)])
        _without_cache(rows)
        found["settings"][setting] = rows
        _print(setting, rows)
    return found


def _base_seconds(folder: Path, repetitions: int) -> float:
    """CPU seconds of training one plain model: the median over repetitions (one that was interrupted counts less)."""
    seconds = []
    paths = [folder / "measured" / f"independent_seed-{repetition}.npz" for repetition in range(repetitions)]
    for path in paths:
        if path.exists():
            with np.load(path) as held:
                seconds.append(float(held["train_seconds"]) / held["members"].shape[1])
    return float(np.median(seconds))


def _without_cache(rows: dict[str, dict[str, Row]]) -> None:
    """Heads share cached features: the costliest kind of them is the one that paid for these."""
    costs = [row["most_train_ratio"]["value"] for name, row in rows.items() if "heads" in name]
    for name, row in rows.items():
        if "heads" in name:
            row["train_ratio"] = {"value": max(costs), "low": None, "high": None, "n": 1}


def _figures(held: Any, base_seconds: float) -> dict[str, float]:
    margin, variance = held["margin"].astype(float), held["margin_variance"].astype(float)
    members = held["members"].astype(float) if "members" in held.files else None
    wrong, sd, size = margin <= 0, np.sqrt(variance), np.abs(margin)
    ratio = sd / np.maximum(size, 1e-12)
    calibration = margin_calibration(margin, variance, members, np.arange(len(margin)))
    baseline = auroc(-size, wrong)
    found = {
        "accuracy": float((margin > 0).mean()),
        "nll": calibration.fitted.nll.value,
        "nll_margin_alone": negative_log_likelihood(choice_probabilities(margin)).value,
        "variance_factor": calibration.factor,
        "tau": math.nan if members is None else kendall_tau(members),
        "agreement": math.nan if members is None else pairwise_agreement(members),
        "effective_members": math.nan if members is None else effective_members(members <= 0),
        "auroc_variance": auroc(variance, wrong).value,
        "auroc_margin": baseline.value,
        "auroc_half_width": (baseline.high - baseline.low) / 2,
        "above_sd_over_margin": auroc_difference(ratio, -size, wrong).value,
        "above_variance": auroc_difference(variance, -size, wrong).value,
        "score_ratio": float(held["score_ratio"]),
        "train_ratio": float(held["train_seconds"]) / base_seconds,
    }
    kinds = {kind: _far(held, kind) for kind in FAR_KINDS}
    found |= {f"far_{kind}": value for kind, value in kinds.items()}
    found["far"] = float(np.mean(list(kinds.values())))
    found["far_lone"] = float(np.mean([_far(held, kind, "lone_") for kind in FAR_KINDS]))
    found |= {
        f"liked_{kind}": float((held[f"far_mean_{kind}"] > held[f"near_mean_{kind}"]).mean()) for kind in FAR_KINDS
    }
    for kl in KLS:
        if f"policy_mean_{kl}" in held.files:
            found[f"spearman_{kl}"] = known_truth(
                held[f"policy_mean_{kl}"], held[f"policy_variance_{kl}"], held[f"policy_truth_{kl}"], held["groups"]
            ).spearman.value
    return found


def _far(held: Any, kind: str, how: str = "") -> float:
    near, far = held[f"{how}near_variance_{kind}"], held[f"{how}far_variance_{kind}"]
    return auroc(np.concatenate([near, far]), np.repeat([False, True], [len(near), len(far)])).value


def _mean(values: list[float]) -> Row:
    """Mean over repetitions with Student's 95% interval; None where it is unknown."""
    known = np.array([value for value in values if not math.isnan(value)])
    if len(known) == 0:
        return {"value": None, "low": None, "high": None, "n": 0}
    middle = float(known.mean())
    if len(known) < 2:
        return {"value": middle, "low": None, "high": None, "n": 1}
    half = float(stats.t.ppf(0.975, len(known) - 1) * known.std(ddof=1) / math.sqrt(len(known)))
    return {"value": middle, "low": middle - half, "high": middle + half, "n": len(known)}


COLUMNS = {
    "accuracy": "accuracy",
    "nll": "NLL",
    "tau": "τ",
    "auroc_variance": "AUROC variance",
    "above_sd_over_margin": "sd/|m| above |m|",
    "far": "far AUROC",
    "spearman_0": "ρ at KL 0",
    "spearman_5": "5",
    "spearman_10": "10",
    "spearman_20": "20",
    "score_ratio": "scoring",
    "train_ratio": "training",
}


def _print(setting: str, rows: dict[str, dict[str, Row]]) -> None:
    names = [name for name in COLUMNS if name in next(iter(rows.values()))]
    print(f"\n{setting}: means over N repetitions ± half of Student's 95% interval")
    print("| source | N | " + " | ".join(COLUMNS[name] for name in names) + " |")
    print("|---|---|" + "---|" * len(names))
    for source, row in rows.items():
        count = row["accuracy"]["n"]
        print(f"| {LABELS[source]} | {count} | " + " | ".join(_shown(row[name]) for name in names) + " |")
    print("\nfar texts, AUROC of the variance")
    print("| source | " + " | ".join(FAR_KINDS) + " |")
    print("|---|" + "---|" * len(FAR_KINDS))
    for source, row in rows.items():
        print(f"| {LABELS[source]} | " + " | ".join(_shown(row[f"far_{kind}"]) for kind in FAR_KINDS) + " |")


def _shown(one: Row) -> str:
    if one["value"] is None:
        return "–"
    half = "" if one["high"] is None else f" ± {(one['high'] - one['low']) / 2:.2f}"
    return f"{one['value']:.2f}{half}"


def variability_rows(
    folder: Path, shares: tuple[float, ...], dataset: str, count: int, picture: Path | None
) -> dict[str, Any]:
    """The paper's first experiment: models that differ by seed alone, at growing amounts of data."""
    held_out = load_preferences(dataset, split="test", bad_rows="drop")
    turns = np.array([str(prompt).count("Human:") for prompt in held_out["prompt"]])
    pools = {f"{share:g}": np.load(folder / "hh" / "measured" / f"variability-{share}.npz") for share in shares}
    scores = {share: (pool["chosen"], pool["rejected"]) for share, pool in pools.items()}
    seeds = [np.load(path) for path in sorted((folder / "hh" / "measured").glob("independent_seed-*.npz"))]
    everything = [np.concatenate([held[side] for held in seeds], axis=1) for side in ("chosen", "rejected")]
    scores["1"] = (everything[0][:, :count], everything[1][:, :count])
    rows = {share: _of_models(*sides, turns) for share, sides in scores.items()}
    place = int(np.argmax(_centred(*scores["1"])[: len(turns)].std(axis=1, ddof=1)))
    for share, sides in scores.items():
        rows[share]["one_completion"] = _of_completion(*sides, place)
    _print_variability(rows)
    if picture is not None:
        write_text(picture, first_figure(rows).svg(standalone=True))
    return rows


def _centred(chosen: Any, rejected: Any) -> Any:
    texts = np.concatenate([chosen, rejected])
    return texts - texts.mean(axis=0)


def _of_models(chosen: Any, rejected: Any, turns: Any) -> dict[str, Any]:
    """Disagreement of the models (columns), overall and by the number of human turns."""
    kinds = {"all": turns >= 0, "one turn": turns <= 1, "two turns": turns == 2, "three and more": turns >= 3}
    texts, centred = np.concatenate([chosen, rejected]), _centred(chosen, rejected)
    right = (chosen > rejected).mean(axis=0)
    return {
        "models": int(chosen.shape[1]),
        "accuracy_of_models": [float(value) for value in right],
        "sd_over_spread": float(np.sqrt(centred.var(axis=1, ddof=1).mean()) / centred.mean(axis=1).std(ddof=1)),
        "raw_sd_over_spread": float(np.sqrt(texts.var(axis=1, ddof=1).mean()) / texts.mean(axis=1).std(ddof=1)),
        "subsets": {name: _of_pairs((chosen - rejected)[rows]) for name, rows in kinds.items() if rows.sum() > 2},
    }


def _of_pairs(margins: Any) -> dict[str, Any]:
    """Figures of a set of pairs with 95% intervals: Wilson's, DeLong's, or a bootstrap over pairs."""
    wins = (margins > 0).mean(axis=1)
    mean = margins.mean(axis=1)
    return {
        "pairs": len(margins),
        "accuracy_of_mean": wilson(int((mean > 0).sum()), len(margins)).to_dict(),
        "split": wilson(int(((wins > 0) & (wins < 1)).sum()), len(margins)).to_dict(),
        "agreement": _over_pairs(margins, pairwise_agreement),
        "tau": _over_pairs(margins, kendall_tau),
        "auroc_variance": auroc(margins.var(axis=1, ddof=1), mean <= 0).to_dict(),
    }


def _over_pairs(margins: Any, figure: Any, draws: int = 200) -> dict[str, float]:
    rng = np.random.default_rng(0)
    found = [figure(margins[rng.integers(len(margins), size=len(margins))]) for _ in range(draws)]
    low, high = np.quantile(found, [0.025, 0.975])
    return {"value": float(figure(margins)), "low": float(low), "high": float(high), "n": len(margins)}


def _of_completion(chosen: Any, rejected: Any, place: int) -> dict[str, Any]:
    centred = _centred(chosen, rejected)
    return {
        "pair": place,
        "raw": [float(value) for value in chosen[place]],
        "centred": [float(value) for value in centred[place]],
        "spread_over_texts": float(centred.mean(axis=1).std(ddof=1)),
    }


def _print_variability(rows: dict[str, Any]) -> None:
    print("\nvariability: models that differ by seed alone\n")
    print(
        "| share of data | models | pairs | accuracy of one | of the mean | split | agreement | τ | AUROC variance |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    names = ("accuracy_of_mean", "split", "agreement", "tau", "auroc_variance")
    for share, row in rows.items():
        for kind, found in row["subsets"].items():
            right = row["accuracy_of_models"]
            alone = f"{np.mean(right):.2f} ({min(right):.2f} to {max(right):.2f})" if kind == "all" else ""
            cells = " | ".join(
                f"{one['value']:.2f} [{one['low']:.2f}, {one['high']:.2f}]" for one in map(found.get, names)
            )
            print(f"| {share}, {kind} | {row['models']} | {found['pairs']} | {alone} | {cells} |")
    for share, row in rows.items():
        one = row["one_completion"]
        scores = ", ".join(f"{value:.2f}" for value in sorted(one["centred"]))
        print(f"share {share}, pair {one['pair']}: centred scores {scores}")
        print(f"  spread over texts {one['spread_over_texts']:.2f}")
        print(f"  sd over spread {row['sd_over_spread']:.2f}, raw {row['raw_sd_over_spread']:.2f}")


def first_figure(rows: dict[str, Any]) -> Drawing:
    """The paper's first figure: one completion's score by every model, at each amount of data."""
    names = [f"{row['models']} models, {'all' if share == '1' else share} of the data" for share, row in rows.items()]
    completions = [row["one_completion"] for row in rows.values()]
    scores = [np.array(one["centred"]) / one["spread_over_texts"] for one in completions]
    label = "score of one reply, in standard deviations over all texts"
    (axes,), middles = name_rows(names, [padded(np.concatenate(scores), include=0.0)], [label], 0.0, row=36.0)
    for y, values in zip(middles, scores, strict=True):
        for value in values:
            x, _ = axes.at(value, 0)
            axes.drawing.line([(x, y - 9), (x, y + 9)], COLOURS[1], 1.4)
        axes.drawing.dot(axes.at(values.mean(), 0)[0], y, 4.2, COLOURS[0])
    axes.drawing.words = listed("Mean score of one reply", [f"{values.mean():.2f}" for values in scores])
    return axes.drawing
