"""Turn the figures of a diagnosis into a verdict and advice by fixed rules (docs/diagnose.md states them)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

__all__ = ["RULES", "Verdict", "judge", "named"]

EVEN = 0.1
"""A coefficient of variation of the weights below this is nothing to work with."""
ALIKE = 0.8
"""Members whose Kendall's τ is above this differ too little."""
NOISY = 0.6
"""Weights made of a variance whose reliability is below this are mostly noise."""
MOSTLY = 0.5
"""A source sees distance if its variance is larger on more than this share of the kinds of far text."""

RULES = {
    "no_work": f"weights vary by less than {EVEN:.0%} (coefficient of variation), or d₀ is infinite",
    "noisy": f"the reliability of the variance (correlation of ln s² between two halves of the members, stepped up to "
    f"all of them; 1 for a closed form) is known and below {NOISY:.2f}",
    "predicts_mistakes": "the AUROC for mistakes of sd over |margin| is above that of −|margin| alone, or that of the "
    "variance is above .5, with its whole 95% interval",
    "detects_far_texts": f"on more than {MOSTLY:.0%} of the kinds of far text the AUROC of the variance is above .5 "
    "with its whole interval",
    "fooled": "far texts of a kind score above the texts they were made of more often than not (whole interval above "
    ".5), and the AUROC of the variance for that kind isn't above .5",
    "likely": f"the weights differ, and the reliability is known and at least {NOISY:.2f}",
    "possible": "the weights differ, and the reliability is unknown",
    "unlikely": "the weights differ, but the variance is noisy",
    "nothing": "no_work applies",
}
"""The rules, as the page shows them."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """How much weighting by this variance has to work with, and what to change.

    Args:
        weighting: "likely", "possible", "unlikely" or "nothing".
        lines: what was measured of the source, one sentence each.
        advice: what to change; may be empty.
    """

    weighting: str
    lines: list[str]
    advice: list[str]


def judge(diagnosis: dict[str, Any]) -> Verdict:
    """Judge a diagnosis by the fixed rules (`RULES`), and advise what to change.

    Args:
        diagnosis: the sections of a diagnosis as plain values (`surefoot.diagnosis.diagnose`).
    """
    even = _is_even(diagnosis["heterogeneity"])
    mistakes = _predicts_mistakes(diagnosis["usefulness"])
    seen = [kind for kind, each in diagnosis["far"].items() if _above_half(each["auroc"])]
    fooled = [kind for kind, each in diagnosis["far"].items() if kind not in seen and _above_half(each["preferred"])]
    distance = len(seen) > MOSTLY * len(diagnosis["far"]) if diagnosis["far"] else None
    reliability = diagnosis["heterogeneity"].get("reliability")
    noisy = reliability is not None and reliability < NOISY
    weighting = _grade(even, reliability)
    lines = [
        _on_accuracy(diagnosis["accuracy"]["overall"]),
        _on_weighting(weighting, diagnosis["heterogeneity"]),
        _on_reliability(reliability),
        _on_mistakes(mistakes, diagnosis["usefulness"]),
        *_on_distance(diagnosis["far"], seen, fooled),
        *_on_offsets(diagnosis["disagreement"]),
    ]
    return Verdict(weighting, lines, _advice(diagnosis, even, noisy, mistakes, distance, fooled))


def _grade(even: bool, reliability: float | None) -> str:
    """How much weighting has to work with; mistakes and far texts don't count, as neither predicted a gain.

    Measured over sixty settings in docs/results/forecast.md.
    """
    if even:
        return "nothing"
    if reliability is None:
        return "possible"
    return "unlikely" if reliability < NOISY else "likely"


def _is_even(figures: dict[str, Any]) -> bool:
    infinite = figures["has_prior"] and figures["prior_freedom"] is None
    return infinite or figures["variation"] is None or figures["variation"] < EVEN


def _above_half(interval: dict[str, Any]) -> bool:
    return interval["low"] is not None and interval["low"] > 0.5


def _predicts_mistakes(figures: dict[str, Any]) -> bool | None:
    """None if that is unknown, since the mean made no mistake, or only mistakes."""
    if figures["auroc"]["margin"]["value"] is None:
        return None
    return _adds_to_margin(figures) or _above_half(figures["auroc"]["variance"])


def _adds_to_margin(figures: dict[str, Any]) -> bool:
    above = figures["above_baseline"]["sd_over_margin"]
    return above["low"] is not None and above["low"] > 0


def _shown(interval: dict[str, Any]) -> str:
    if interval["value"] is None:
        return "unknown"
    if interval["low"] is None:
        return f"{interval['value']:.2f}"
    return f"{interval['value']:.2f} [{interval['low']:.2f}, {interval['high']:.2f}]"


def _on_accuracy(overall: dict[str, Any]) -> str:
    chance = overall["low"] <= 0.5 <= overall["high"]
    tail = "; the interval includes chance, 0.50" if chance else ""
    return f"It ranks {_shown(overall)} of {overall['n']} pairs as the annotators did{tail}."


_ANSWERS = {
    "likely": "Weighting by this variance may well help: it differs between completions ({variation}) and is precise. "
    "No measurement here predicts it surely, so compare with preset='mean' at the same KL budget.",
    "possible": "Weighting by this variance may help: it differs between completions ({variation}), but its precision "
    "is unknown.",
    "unlikely": "Weighting by this variance is unlikely to give much: it differs between completions ({variation}), "
    "but weights made of it are mostly noise.",
    "nothing": "Weighting by this variance is much like preset='mean': the variance hardly differs between these "
    "completions ({variation}).",
}


def _on_weighting(weighting: str, figures: dict[str, Any]) -> str:
    value = figures["variation"]
    variation = f"coefficient of variation of the weights {'unknown' if value is None else f'{value:.2f}'}"
    return _ANSWERS[weighting].format(variation=variation)


def _on_reliability(value: float | None) -> str:
    if value is None:
        return "The reliability of the variance is unknown: it takes four members or more, or a closed form."
    told = f"The reliability of the variance is {value:.2f} (1 at most)"
    if value < NOISY:
        return f"{told}, below {NOISY:.2f}: two halves of the members don't agree on which completions are uncertain."
    return f"{told}; below {NOISY:.2f} weights made of it would be mostly noise."


def _on_mistakes(sees: bool | None, figures: dict[str, Any]) -> str:
    auroc = figures["auroc"]
    if auroc["margin"]["value"] is None:
        return "Whether the variance predicts mistakes is unknown: the mean ranked all pairs rightly, or all wrongly."
    if _adds_to_margin(figures):
        what = "The variance predicts mistakes that the size of the margin doesn't"
    elif sees:
        what = "The variance predicts mistakes, but not beyond what the size of the margin predicts"
    else:
        what = "The variance doesn't predict mistakes beyond chance on these pairs"
    return (
        f"{what}: AUROC of sd over |margin| {_shown(auroc['sd_over_margin'])}, of −|margin| alone "
        f"{_shown(auroc['margin'])}, of the variance alone {_shown(auroc['variance'])}."
    )


def _on_distance(far: dict[str, Any], seen: list[str], fooled: list[str]) -> list[str]:
    if not far:
        return ["Far texts were not scored, so whether the variance is larger on them is unknown."]
    lines = [
        f"Its variance is larger, beyond chance, on {len(seen)} of {len(far)} kinds of far text"
        + (f" ({', '.join(named(kind) for kind in seen)})." if seen else ".")
    ]
    if fooled:
        lines.append(
            f"It prefers {', '.join(named(kind) for kind in fooled)} to the ordinary replies that they replace, and "
            "its variance isn't larger on them beyond chance; weighting and pessimism may not keep a policy away."
        )
    return lines


def _on_offsets(figures: dict[str, Any] | None) -> list[str]:
    if figures is None or figures["offset_per_prompt"] is None:
        return []
    share = max(0.0, figures["offset_per_prompt"])  # an estimate, which may fall below 0
    return [
        f"{share:.0%} of the members' raw variance is a constant per member and prompt. Preferences don't determine "
        "it, so surefoot subtracts it before the variance is taken."
    ]


def named(kind: str) -> str:
    """A kind of far text in words."""
    return {
        "shuffled": "shuffled words",
        "repeated": "one phrase repeated",
        "constant": "one constant answer",
        "other_prompt": "replies to other prompts",
        "short": "one-word replies",
        "long": "six replies in one",
        "foreign": "other languages",
    }.get(kind, kind)


def _advice(
    diagnosis: dict[str, Any],
    even: bool,
    noisy: bool,
    mistakes: bool | None,
    distance: bool | None,
    fooled: list[str],
) -> list[str]:
    advice = []
    members = diagnosis["disagreement"]
    if diagnosis["accuracy"]["overall"]["low"] <= 0.5:
        advice.append("Get more or better preferences, or a larger base model, before you train a policy.")
    if members is not None and members["tau"] is not None and members["tau"] > ALIKE:
        advice.append(
            f"The members are nearly one model (τ {members['tau']:.2f}): give each its own bootstrap or its own data, "
            "or fine-tune whole models (kind: independent)."
        )
    if noisy:
        advice.append(
            "For a variance that is more than noise: a linear head with its posterior (kind: linear), fifty heads "
            "(kind: heads, members: 50), or a smoothed variance (variance: smoothed)."
        )
    if even and members is not None:
        advice.append("For a variance that differs: bootstrap, prior functions, disjoint data, more members.")
    if distance is False:
        advice.append("For texts unlike the data: a distance-aware term (kind: laplace, distance: 1), other features.")
    if not mistakes and not even:
        advice.append("Compare with preset='mean' at the same KL budget before relying on the weights.")
    if fooled:
        advice.append("Add texts of the kinds that it wrongly prefers as rejected sides of training pairs.")
    factor = diagnosis["calibration"]["factor"]
    if not 0.2 <= factor <= 5:
        advice.append(
            f"The variance is off by a factor of {factor:.2g}. Weights are not affected, but LCB and UWO are: train "
            "with `surefoot reward`, which fits the factor, or scale κ."
        )
    return advice
