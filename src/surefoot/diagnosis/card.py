"""Set the figures of a diagnosis beside those of the source's card, and say why they differ."""

from __future__ import annotations

import math
from typing import Any

from surefoot.types import Calibration

__all__ = ["compare_with_card"]

Row = dict[str, Any]


def compare_with_card(
    calibration: Calibration | None, diagnosis: dict[str, Any], *, sampled: bool = False
) -> list[Row]:
    """One row for each figure of the variance that both have: `figure`, `card`, `here` and `why` they differ.

    `why` holds the known differences in how they were measured; it is empty where the figures are equal to two
    decimals, or no such difference is known.

    Args:
        calibration: that the source was loaded with; None gives no rows.
        diagnosis: sections as plain values, `data` and `heterogeneity` among them.
        sampled: whether `heterogeneity` is of a policy's completions instead of the pairs'.
    """
    if calibration is None:
        return []
    here = diagnosis["heterogeneity"]
    prior = None if calibration.prior is None else calibration.prior.degrees_of_freedom
    found = [
        ("reliability of the variance", calibration.notes.get("reliability"), here["reliability"], False),
        ("coefficient of variation", calibration.notes.get("weight_cv"), here["variation"], True),
        ("prior degrees of freedom d₀", prior, here["prior_freedom"], False),
    ]
    reasons, clipped = _reasons(calibration, diagnosis, sampled), here["at_floor"] + here["at_ceiling"] > 0
    rows = []
    for figure, card, value, of_weights in found:
        if card is not None and value is not None and math.isfinite(card):
            why = [*reasons, *(["here the weights are clipped as in training"] if of_weights and clipped else [])]
            same = math.isclose(card, value, abs_tol=0.005)
            rows.append({"figure": figure, "card": card, "here": value, "why": [] if same else why})
    return [*rows, _of_factor(calibration, diagnosis)]


def _of_factor(held: Calibration, diagnosis: dict[str, Any]) -> Row:
    """The factor here is fitted to a variance that the card's factor has multiplied already."""
    return {
        "figure": "variance factor",
        "card": held.variance_factor,
        "here": diagnosis["calibration"]["factor"],
        "why": ["the one here is fitted on top of the card's: 1 means that the card's fits these pairs too"],
    }


def _reasons(held: Calibration, diagnosis: dict[str, Any], sampled: bool) -> list[str]:
    reasons = ["here on completions of a policy, in the card on held-out pairs"] if sampled else []
    data, weights = diagnosis["data"], diagnosis["heterogeneity"]
    if not reasons and data["same_as_card"] is False:
        reasons.append(
            f"other pairs: the card's are {data['recorded_held_out']} held-out pairs, here are {data['pairs']}, "
            f"{data['held_out']} of them the same"
        )
    elif data["same_as_card"] is None and held.rows != weights["completions"]:
        reasons.append(f"other completions: {held.rows} in the card, {weights['completions']} here")
    if data["held_out"] is not None and weights["anchors"] and set(weights["anchors"]) != {"dataset"}:
        reasons.append("another centring: the card subtracts the mean of each pair")
    return reasons
