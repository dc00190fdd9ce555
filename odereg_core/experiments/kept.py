"""Results that the repository keeps, to be shown beside a reader's own, or where there are none."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from odereg_core.errors import InputError
from odereg_core.experiments.evaluate import read_table
from odereg_core.files import atomic, read_json

KEPT = Path(__file__).resolve().parents[2] / "results"
"""results/<profile> in a source tree; an installed package has none."""
TABLES = {
    "pairs": "all/pairs.csv",
    "4a": "fig4/4a.csv",
    "4b": "fig4/4b.csv",
    "4c": "fig4/4c.csv",
    "curves": "encoders/curves.csv",
    "basins": "encoders/basins.csv",
    "translation": "encoders/translation.csv",
    "search": "search/search.csv",
}
"""A table's name, and where a run has it; its provenance is the `.json` beside it."""
SAMPLE = "results/pairs.csv"
"""Where a run has Table 1 over a sample of the test pairs, until all are evaluated."""


@dataclass(frozen=True)
class Results:
    """A table, a line a pair; where its numbers come from; whose it is, in words; and of which
    profile, where it is of one."""

    table: pd.DataFrame
    facts: dict[str, Any]
    source: str
    profile: str | None = None

    @property
    def voxel_mm(self) -> float | None:
        """Of the grid it was computed on, if that was noted."""
        return next((f["voxel_mm"] for f in self.facts.values() if f.get("voxel_mm")), None)

    def __str__(self) -> str:
        size = f", voxels of {self.voxel_mm:g} mm" if self.voxel_mm else ""
        subjects = self.table["subject"].nunique()
        commits = sorted({str(f.get("commit")) for f in self.facts.values()})
        return f"{self.source}{size}, {subjects} subjects, commit {', '.join(commits)}"


def place(name: str, run: Path) -> Path:
    """Where a run has a table, or is to have it; of Table 1 all pairs come before the sample."""
    path, sample = run / TABLES[name], run / SAMPLE
    return sample if name == "pairs" and sample.exists() and not path.exists() else path


def find(name: str, run: Path, profile: str) -> Results | None:
    """A run's own table, else the kept one, else none."""
    if (path := place(name, run)).exists():
        return _read(path, f"this run, profile {profile}", profile)
    return find_kept(name, profile)


def find_kept(name: str, profile: str) -> Results | None:
    """The table that the repository keeps of this profile, else of `demo`, else none."""
    for kept in dict.fromkeys((profile, "demo")):
        source = f"kept in the repository, profile {kept}"
        if found := find_in(KEPT / kept, name, source, kept):
            return found
    return None


def find_real(name: str) -> Results | None:
    """The table that the repository keeps of scans of real heads, if there is one."""
    return find_in(KEPT / "real", name, "kept in the repository, scans of real heads")


def find_in(folder: Path, name: str, source: str, profile: str | None = None) -> Results | None:
    """The table in a folder of kept ones, if it is there."""
    path = folder / Path(TABLES[name]).name
    return _read(path, source, profile) if path.exists() else None


def _read(path: Path, source: str, profile: str | None) -> Results:
    facts = read_json(path.with_suffix(".json"))
    facts = {"": facts} if "commit" in facts else facts
    return Results(read_table(path), facts, source, profile)


def keep(run: Path, out: Path) -> list[str]:
    """Copy a run's tables and their provenance to `out`; returns the names of those there were.

    Raises InputError where the run has none.
    """
    found = {name: path for name in TABLES if (path := place(name, run)).exists()}
    if not found:
        raise InputError(f"{run}: has no results; `make results` makes them")
    files = [file for path in found.values() for file in (path, path.with_suffix(".json"))]
    for path in found.values():
        read_table(path)
        read_json(path.with_suffix(".json"))
    for file in files:
        with atomic(out / file.name) as temporary:
            shutil.copyfile(file, temporary)
    return list(found)
