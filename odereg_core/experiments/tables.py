"""Table 1: this run's numbers beside the paper's."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import yaml

from odereg_core.experiments.methods import METHODS

TASKS = {"rigid": "rigid", "deformable": "deformable", "hybrid": "rigid+deformable"}
"""Our name of a task, and the paper's."""
MEASURES = {  # the column of the results, its factor, and its head in Table 1
    "dice": (100, "Dice / %"),
    "rmse_x": (100, "RMSE(x) × 10⁻²"),
    "rmse_phi_mm": (1, "RMSE(φ) / mm"),
    "seconds": (1, "Time / s"),
}


def paper_table() -> pd.DataFrame:
    """The paper's Table 1: index (task, method), columns (measure, mean or sd)."""
    rows = yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text())["rows"]
    index = pd.MultiIndex.from_tuples([tuple(row[:2]) for row in rows], names=["task", "method"])
    numbers = [[value for cell in row[2:] for value in cell] for row in rows]
    columns = pd.MultiIndex.from_product([MEASURES, ["mean", "sd"]])
    return pd.DataFrame(numbers, index=index, columns=columns)


def summary(results: pd.DataFrame, voxel_mm: float) -> pd.DataFrame:
    """A line a task and method: mean and sd of each measure, median RMSE(phi), success rate, pairs.

    Success is RMSE(phi) under two voxels.
    """
    lines = []
    for (task, method), rows in results.groupby(["task", "method"], sort=False):
        line: dict = {("task", ""): TASKS[task], ("method", ""): METHODS[method].name}
        for measure, (factor, _) in MEASURES.items():
            line[measure, "mean"] = rows[measure].mean() * factor
            line[measure, "sd"] = rows[measure].std() * factor
        line["rmse_phi_mm", "median"] = rows["rmse_phi_mm"].median()
        line["success", "%"] = 100 * (rows["rmse_phi_mm"] < 2 * voxel_mm).mean()
        line["pairs", ""] = len(rows)
        lines.append(line)
    table = pd.DataFrame(lines)
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table.set_index([("task", ""), ("method", "")]).rename_axis(["task", "method"])


def table1(results: pd.DataFrame, voxel_mm: float) -> pd.DataFrame:
    """Table 1's rows as strings, ours and the paper's; rows that this run has not say so."""
    ours, paper = summary(results, voxel_mm), paper_table()
    extra = [key for key in ours.index if key not in paper.index]
    lines = {}
    for key in extra + list(paper.index):
        line = {}
        for measure, (_, head) in MEASURES.items():
            line[head, "here"] = (
                _cell(ours.loc[key, (measure, "mean")], ours.loc[key, (measure, "sd")])
                if key in ours.index
                else "missing"
            )
            line[head, "paper"] = (
                _cell(paper.loc[key, (measure, "mean")], paper.loc[key, (measure, "sd")])
                if key in paper.index
                else "–"
            )
        lines[key] = line
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    table.index = pd.MultiIndex.from_tuples(table.index, names=["task", "method"])
    return table


def _cell(mean: float, sd: float) -> str:
    return "–" if pd.isna(mean) else f"{mean:.2f} ({sd:.2f})"
