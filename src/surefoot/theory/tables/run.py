"""Compute the five tables of `surefoot theory` as one record; docs/theory.md explains them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from surefoot.records import make_record
from surefoot.theory.tables.closed_form import closed_form_table
from surefoot.theory.tables.correlated import correlated_table
from surefoot.theory.tables.estimated_variance import estimated_variance_table, smallest_members
from surefoot.theory.tables.frontier import frontier_table, pessimism_table
from surefoot.theory.tables.theorem import theorem_table

__all__ = ["TABLES", "run_theory"]

TABLES = ("closed form", "theorem", "estimated variance", "frontier", "correlated errors")


def run_theory(seed: int, on_table: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Compute all tables; the same seed gives the same numbers.

    Args:
        on_table: called with the name of each table before it is begun.
    """
    begin = on_table or (lambda name: None)
    begin(TABLES[0])
    closed_form = closed_form_table(seed)
    begin(TABLES[1])
    theorem, theorem_rows = theorem_table(seed)
    begin(TABLES[2])
    estimated = estimated_variance_table(seed)
    begin(TABLES[3])
    frontier = frontier_table(seed)
    begin(TABLES[4])
    correlated = correlated_table(seed)
    return make_record("theory", {}, seed=seed, data_hash=None, metrics={}) | {
        "closed_form": closed_form,
        "theorem": theorem,
        "theorem_by_kind": theorem_rows,
        "estimated_variance": estimated,
        "smallest_members": smallest_members(estimated),
        "frontier": frontier,
        "pessimism": pessimism_table(frontier),
        "correlated": correlated,
    }
