"""Read a study's records into groups of comparable runs; unknown figures stay None, or become NaN in arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from surefoot.errors import RunError
from surefoot.files import read_json

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
}
_PLACE = ("key", "setting", "source", "method", "kl_budget", "seed")
_PARTS = {"metrics": dict, "trajectory": list, "samples": list}
_LATER_PARTS = {"prompt_gains": list, "prompt_completions": list}
"""What records of earlier versions lack."""
_ROWS = {
    "trajectory": {"kl", "gold"},
    "samples": {"prompt", "reference", "completion", "proxy", "variance", "gold", "gold_reference"},
}
_GRID = ("title", "config", "settings", "sources", "methods", "kl_budgets", "seeds", "cells", "versions", "commit")

Record = dict[str, Any]
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
    cells: list[Record]
    planned: int
    planned_methods: list[str]

    @property
    def place(self) -> Place:
        return self.setting, self.source, self.kl_budget

    @property
    def finished_methods(self) -> list[str]:
        found = {cell["method"] for cell in self.cells}
        return [method for method in self.methods if method in found]

    def of(self, method: str) -> list[Record]:
        """The method's finished cells by seed."""
        return sorted((c for c in self.cells if c["method"] == method), key=lambda c: int(c["seed"]))

    def metric(self, method: str, name: str) -> dict[int, float]:
        """Seed to one figure of the method's cells; None becomes NaN."""
        return {int(cell["seed"]): known(cell["metrics"].get(name)) for cell in self.of(method)}


@dataclass(frozen=True, slots=True)
class Study:
    """Everything a study left on disk that belongs to its present grid.

    Args:
        grid: `study.json`.
        cells: finished cells, each under its place in the grid.
        failed: cells whose last try ended in an error, and that never finished.
        disagreement: one record for each reward source and seed.
    """

    grid: Record
    cells: list[Record]
    failed: list[Record]
    disagreement: list[Record]

    @property
    def methods(self) -> list[str]:
        return list(self.grid["methods"])

    @property
    def baseline(self) -> str:
        return BASELINE if BASELINE in self.methods else self.methods[0]

    @property
    def planned(self) -> int:
        return len(self.grid["cells"])

    @property
    def groups(self) -> list[Group]:
        """By setting, source and budget in the grid's order; groups without any finished cell are left out."""
        planned: dict[Place, list[Record]] = {}
        for cell in self.grid["cells"]:
            planned.setdefault(_group(cell), []).append(cell)
        finished: dict[Place, list[Record]] = {place: [] for place in planned}
        for cell in self.cells:
            finished[_group(cell)].append(cell)
        return [self._group(place, planned[place], cells) for place, cells in finished.items() if cells]

    def _group(self, place: Place, planned: list[Record], cells: list[Record]) -> Group:
        here = {cell["method"] for cell in planned}
        methods = [method for method in self.methods if method in here]
        baseline = self.baseline if self.baseline in here else methods[0]
        return Group(*place, self.methods, baseline, cells, len(planned), methods)


def read_study(directory: str | Path) -> Study:
    """Read `study.json` and, of `cells/`, `failed/` and `disagreement/`, what belongs to its grid.

    Raises:
        RunError: there is no study in the directory, none of its cells is finished, or a record is broken (its file
            is named).
    """
    folder = Path(directory)
    grid = _read_grid(folder)
    cells = [cell | place for place in grid["cells"] if (cell := _read_cell(folder, place["key"])) is not None]
    failed = [one | place for place in grid["cells"] if (one := _read_failure(folder, place["key"])) is not None]
    if not cells:
        hint = f"; {len(failed)} failed, see {folder / 'failed'}" if failed else "; start it, or let it go on"
        raise RunError(f"{folder} holds a study without any finished cell{hint}")
    return Study(grid, cells, failed, _read_disagreement(folder, grid))


def known(value: float | None) -> float:
    """A figure of a record as a number; None is unknown: NaN."""
    return math.nan if value is None else float(value)


def _group(cell: Record) -> Place:
    return cell["setting"], cell["source"], cell["kl_budget"]


def _read_grid(folder: Path) -> Record:
    path = folder / "study.json"
    if not path.exists():
        raise RunError(f"{folder} holds no study (no study.json); give the output directory of `surefoot study`")
    grid = _dict(read_json(path), path)
    missing = [name for name in _GRID if name not in grid]
    if missing or not grid["methods"]:
        raise RunError(f"{path} is no study that this version reads (missing: {', '.join(missing) or 'methods'})")
    for place in grid["cells"]:
        if absent := [name for name in _PLACE if name not in place]:
            raise RunError(f"{path} lists a cell without {', '.join(absent)}; start the study again to write it anew")
    return grid


def _read_cell(folder: Path, key: str) -> Record | None:
    path = folder / "cells" / f"{key}.json"
    if not path.exists():
        return None
    cell = _dict(read_json(path), path)
    for name, kind in _PARTS.items():
        if not isinstance(cell.get(name), kind):
            _refuse_cell(path, f"'{name}' is missing or no {kind.__name__}")
    for name, kind in _LATER_PARTS.items():
        if not isinstance(cell.get(name, kind()), kind):
            _refuse_cell(path, f"'{name}' is no {kind.__name__}")
    for name, needed in _ROWS.items():
        for number, row in enumerate(cell[name]):
            if not isinstance(row, dict) or not needed <= row.keys():
                _refuse_cell(path, f"{name}[{number}] lacks some of {', '.join(sorted(needed))}")
    return cell


def _refuse_cell(path: Path, why: str) -> NoReturn:
    raise RunError(f"{path} is not a cell's record: {why}; delete it and run the study again")


def _read_failure(folder: Path, key: str) -> Record | None:
    path = folder / "failed" / f"{key}.json"
    if not path.exists() or (folder / "cells" / f"{key}.json").exists():
        return None
    return {"error": "", "when": ""} | _dict(read_json(path), path)


def _read_disagreement(folder: Path, grid: Record) -> list[Record]:
    wanted = {(cell["setting"], cell["source"], cell["seed"]) for cell in grid["cells"]}
    paths = sorted((folder / "disagreement").glob("*.json"))
    found = [_dict(read_json(path), path) for path in paths]
    mine = [one for one in found if (one.get("setting"), one.get("source"), one.get("seed")) in wanted]
    return sorted(mine, key=lambda one: int(one["seed"]))


def _dict(found: Any, path: Path) -> Record:
    if not isinstance(found, dict):
        raise RunError(f"{path} must hold one JSON object; delete it and run the study again")
    return found
