"""From a forecast to what to train: one objective, one budget, or the advice not to train against this reward."""

from __future__ import annotations

from typing import Any

__all__ = ["RULES", "recommend"]

MAX_RISK = 0.05
MAX_PROMPT_RISK = 0.10
ALIKE = 0.95
"""A gain of this share of the largest counts as the same."""
FEW = 4.0
"""Effective candidates, below which the forecast leans on too few of them."""
RULES = {
    "acceptable": f"the gain's interval is above 0, the risk at most {MAX_RISK:.0%}, the prompt risk at most "
    f"{MAX_PROMPT_RISK:.0%}, and at least {FEW:g} candidates of a prompt still count",
    "choice": f"of the acceptable policies, those with at least {ALIKE:.0%} of the largest gain; of these the one "
    "with the smallest prompt risk, then the smallest budget, then the simplest objective",
    "judge": "the true reward where it is given, otherwise the draws",
    "none": "without an acceptable policy: don't train against this reward",
}


def recommend(rows: list[dict[str, Any]], judge: str) -> dict[str, Any]:
    """The row to train by, by `RULES`, and the reason in words.

    Args:
        rows: of a forecast, objectives in the order of their simplicity.
        judge: "gold" or "draws", whose figures count.

    Returns:
        `row` (None: don't train) and `reasons`.
    """
    known = [row for row in rows if row[judge] is not None and row[judge]["gain"]["value"] is not None]
    acceptable = [row for row in known if _is_acceptable(row, judge)]
    if not acceptable:
        return {"row": None, "judge": judge, "reasons": _why_not(known, judge)}
    best = max(row[judge]["gain"]["value"] for row in acceptable)
    alike = [row for row in acceptable if row[judge]["gain"]["value"] >= ALIKE * best]
    order = list(dict.fromkeys(row["objective"] for row in rows))
    row = min(alike, key=lambda r: (r[judge]["prompt_risk"]["value"], r["kl_budget"], order.index(r["objective"])))
    return {"row": row, "judge": judge, "reasons": _why(row, known, judge)}


def _is_acceptable(row: dict[str, Any], judge: str) -> bool:
    judged = row[judge]
    return (
        judged["gain"]["low"] > 0
        and judged["risk"]["value"] <= MAX_RISK
        and judged["prompt_risk"]["value"] <= MAX_PROMPT_RISK
        and row["effective"] >= FEW
    )


def _why_not(known: list[dict[str, Any]], judge: str) -> list[str]:
    if not known:
        return ["No policy could be judged."]
    best = max(known, key=lambda row: row[judge]["gain"]["value"])[judge]
    return [
        "No objective is forecast to be acceptable, by the rules below, at any budget: the largest gain is "
        f"{best['gain']['value']:.2f} [{best['gain']['low']:.2f}, {best['gain']['high']:.2f}], with a risk of "
        f"{best['risk']['value']:.0%} and {best['prompt_risk']['value']:.0%} of prompts worse off.",
        "Don't train against this reward as it is; get more preference data, or another reward.",
    ]


def _why(row: dict[str, Any], known: list[dict[str, Any]], judge: str) -> list[str]:
    judged = row[judge]
    reasons = [
        f"{row['objective']} at {row['kl_budget']:.2f} nats: a gain of {judged['gain']['value']:.2f} "
        f"[{judged['gain']['low']:.2f}, {judged['gain']['high']:.2f}] over the reference, a risk of "
        f"{judged['risk']['value']:.0%}, {judged['prompt_risk']['value']:.0%} of prompts worse off."
    ]
    versus = judged["versus"]
    if versus is not None and versus["value"] is not None:
        beyond = versus["low"] > 0 or versus["high"] < 0
        words = "beyond chance" if beyond else "which may be chance"
        reasons.append(
            f"Against the plain reward at the same budget this is {versus['value']:+.2f} "
            f"[{versus['low']:.2f}, {versus['high']:.2f}], {words}."
        )
    carried = [r["kl_budget"] for r in known if r["objective"] == row["objective"] and r["effective"] >= FEW]
    largest = max(carried)
    if row["kl_budget"] == largest:
        reasons.append(
            f"At larger budgets fewer than {FEW:g} candidates of a prompt count; draw more (n) to look beyond."
        )
    return reasons
