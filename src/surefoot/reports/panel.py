"""A panel's section of a diagnosis, as rows of text."""

from __future__ import annotations

from typing import Any

from surefoot.reports.wording import interval, interval_of, number, significant

__all__ = ["panel_tables"]

Row = tuple[str, ...]


def panel_tables(panel: dict[str, Any] | None) -> dict[str, tuple[str, Row, list[Row]]]:
    """Title, headings and rows of each table; none for a source that is no panel.

    Args:
        panel: `surefoot.diagnosis.panel.Panel` as JSON.
    """
    if panel is None:
        return {}
    return {
        "panel": (
            "Judges of the panel",
            ("judge", "family", "weight", "reliability [95%]", "scale", "mean rating"),
            [_judge(each) for each in panel["judges"]],
        ),
        "panel_agreement": (
            "Agreement of the judges",
            ("", "pairs", "κ of the preferred side [95%]", "κ of mistakes [95%]"),
            [*(_agreement(each) for each in panel["pairs_of_judges"]), *_together(panel)],
        ),
        "panel_variance": (
            "Where the panel's variance comes from",
            ("", "figure"),
            [
                ("families that differ, of their weighted mean", significant(panel["between"], 3)),
                ("noise of replies and wordings", significant(panel["within"], 3)),
                ("share between families [95%]", _known(panel["between_share"], 2)),
            ],
        ),
    }


def _judge(figures: dict[str, Any]) -> Row:
    return (
        figures["name"],
        figures["family"],
        number(figures["weight"]),
        _known(figures["reliability"], 2),
        significant(figures["scale"]),
        number(figures["offset"]),
    )


def _agreement(figures: dict[str, Any]) -> Row:
    name = " and ".join(figures["judges"]) + (" (one family)" if figures["same_family"] else "")
    return (name, str(figures["sides"]["n"]), _known(figures["sides"], 3), _known(figures["mistakes"], 3))


def _together(panel: dict[str, Any]) -> list[Row]:
    """The row of all judges, where there are more than two."""
    together = panel["together"]
    if len(together["judges"]) < 3:
        return []
    return [("all (Fleiss)", *_agreement(together)[1:])]


def _known(figure: dict[str, Any], digits: int) -> str:
    return "unknown" if figure["value"] is None else interval(interval_of(figure), digits)
