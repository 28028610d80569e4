"""Read a study's records into groups of comparable runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from surefoot.errors import RunError
from surefoot.run_records import (
    CellMetrics,
    CellPlace,
    CellRecord,
    DisagreementRecord,
    FailureRecord,
    StudyRecord,
    cell_path,
    failure_path,
    known,
    read_cell,
    read_disagreements,
    read_failure,
    read_study_record,
)

__all__ = ["LABELS", "Group", "Study", "label_of", "read_study"]

BASELINE = "vanilla"
LABELS = {
    "vanilla": "one reward model",
    "mean": "mean of members",
    "variance_aware": "variance-aware",
    "variance_aware_lcb": "variance-aware + LCB",
    "variance_aware_one": "one model, variance-aware",
    "literal": "literal penalty",
    "lcb": "LCB",
    "uwo": "UWO",
    "wco": "WCO",
    "cvar": "CVaR",
    "kl_robust": "KL-robust",
    "brme": "BRME",
    "rvpo": "RVPO",
    "shrunken": "shrunk by reliability",
    "shrunken_scaled": "shrunk and scaled by group",
}
Place = tuple[str, str, float | None]
"""Setting, source and KL budget."""


def label_of(method: str) -> str:
    """The method's name for readers; a name that the user chose stands for itself."""
    return LABELS.get(method, method)


@dataclass(frozen=True, slots=True)
class Group:
    """The finished cells of one setting, source and KL budget: what may be compared, seed by seed.

    Args:
        methods: of the whole study, in its order; some may have no finished cell here.
        baseline: the method that the others are compared with.
        planned: how many cells the grid has here.
        planned_methods: those that the grid has here; a source may name its own.
    """

    setting: str
    source: str
    kl_budget: float | None
    methods: list[str]
    baseline: str
    cells: list[CellRecord]
    planned: int
    planned_methods: list[str]

    @property
    def place(self) -> Place:
        return self.setting, self.source, self.kl_budget

    @property
    def finished_methods(self) -> list[str]:
        finished = {cell.place.method for cell in self.cells}
        return [method for method in self.methods if method in finished]

    def of(self, method: str) -> list[CellRecord]:
        """The method's finished cells by seed."""
        return sorted((cell for cell in self.cells if cell.place.method == method), key=lambda cell: cell.place.seed)

    def by_seed(self, method: str, figure: Callable[[CellMetrics], float | None]) -> dict[int, float]:
        """Seed to one figure of the method's cells; NaN where it is unknown."""
        return {cell.place.seed: known(figure(cell.metrics)) for cell in self.of(method)}


@dataclass(frozen=True, slots=True)
class Study:
    """Everything a study left on disk that belongs to its present grid.

    Args:
        grid: `study.json`.
        cells: finished cells, each under its place in the grid.
        failed: cells whose last try ended in an error, and that never finished.
        disagreement: one record for each reward source and seed.
    """

    grid: StudyRecord
    cells: list[CellRecord]
    failed: list[FailureRecord]
    disagreement: list[DisagreementRecord]

    @property
    def methods(self) -> list[str]:
        return list(self.grid.methods)

    @property
    def baseline(self) -> str:
        return BASELINE if BASELINE in self.methods else self.methods[0]

    @property
    def planned(self) -> int:
        return len(self.grid.cells)

    @property
    def groups(self) -> list[Group]:
        """By setting, source and budget in the grid's order; groups without any finished cell are left out."""
        planned: dict[Place, list[CellPlace]] = {}
        for place in self.grid.cells:
            planned.setdefault(_group_of(place), []).append(place)
        finished: dict[Place, list[CellRecord]] = {group: [] for group in planned}
        for cell in self.cells:
            finished[_group_of(cell.place)].append(cell)
        return [self._group(group, planned[group], cells) for group, cells in finished.items() if cells]

    def _group(self, group: Place, planned: list[CellPlace], cells: list[CellRecord]) -> Group:
        here = {place.method for place in planned}
        methods = [method for method in self.methods if method in here]
        baseline = self.baseline if self.baseline in here else methods[0]
        return Group(*group, self.methods, baseline, cells, len(planned), methods)


def read_study(directory: str | Path) -> Study:
    """Read `study.json` and, of `cells/`, `failed/` and `disagreement/`, what belongs to its grid.

    Raises:
        RunError: there is no study in the directory, none of its cells is finished, or a record is broken (its file
            is named).
    """
    folder = Path(directory)
    grid = read_study_record(folder)
    finished = [place for place in grid.cells if cell_path(folder, place.key).exists()]
    cells = [read_cell(cell_path(folder, place.key), place) for place in finished]
    failed = [
        read_failure(failure_path(folder, place.key), place)
        for place in grid.cells
        if failure_path(folder, place.key).exists() and not cell_path(folder, place.key).exists()
    ]
    if not cells:
        hint = f"; {len(failed)} failed, see {folder / 'failed'}" if failed else "; start it, or let it go on"
        raise RunError(f"{folder} holds a study without any finished cell{hint}")
    return Study(grid, cells, failed, read_disagreements(folder, grid))


def _group_of(place: CellPlace) -> Place:
    return place.setting, place.source, place.kl_budget
