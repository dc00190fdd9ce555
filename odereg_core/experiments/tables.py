"""Table 1: this run's numbers beside the paper's, and what the paper's table lacks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from pandas.io.formats.style import Styler
from statsmodels.stats.multitest import multipletests

from odereg_core.experiments.methods import METHODS
from odereg_core.experiments.statistics import interval, paired_p
from odereg_core.files import atomic

TASKS = {"rigid": "rigid", "deformable": "deformable", "hybrid": "rigid+deformable"}
"""Our name of a task, and the paper's."""
MEASURES = {  # the column of the results, its factor, and its head in Table 1
    "dice": (100, "Dice / %"),
    "rmse_x": (100, "RMSE(x) × 10⁻²"),
    "rmse_phi_mm": (1, "RMSE(φ) / mm"),
    "seconds": (1, "Time / s"),
}
BEYOND = {  # what the paper's table lacks, and its head here
    "interval": "RMSE(φ), 95 % interval",
    "median": "RMSE(φ), median",
    "success": "under 2 voxels / %",
    "p": "p, Holm",
    "pairs": "pairs",
}
LATEX = {"×": r"$\times$", "⁻²": "$^{-2}$", "φ": r"$\phi$", "%": r"\%", "–": "--", "<": "$<$"}


def paper_facts() -> dict[str, Any]:
    """What `paper.yaml` holds: Table 1's rows, and what Figs. 3 and 4 show."""
    return yaml.safe_load(Path(__file__).with_name("paper.yaml").read_text(encoding="utf-8"))


def paper_table() -> pd.DataFrame:
    """The paper's Table 1: index (task, method), columns (measure, mean or sd)."""
    rows = paper_facts()["rows"]
    index = pd.MultiIndex.from_tuples([tuple(row[:2]) for row in rows], names=["task", "method"])
    numbers = [[value for cell in row[2:] for value in cell] for row in rows]
    columns = pd.MultiIndex.from_product([MEASURES, ["mean", "sd"]])
    return pd.DataFrame(numbers, index=index, columns=columns)


def in_order(results: pd.DataFrame) -> pd.DataFrame:
    """The lines in Table 1's order, by task and method."""
    place = {name: i for i, name in enumerate([*TASKS, *METHODS])}
    by = ["task", "method"]
    return results.sort_values(by, key=lambda names: names.map(place), kind="stable")


def summary(results: pd.DataFrame, voxel_mm: float) -> pd.DataFrame:
    """A line a task and method, by the paper's names and in Table 1's order.

    Columns: of each measure mean, sd, and the ends (low, high) of its mean's 95 % interval;
    ("rmse_phi_mm", "median"); ("success", "%"), RMSE(phi) under two voxels; ("p", "holm"), the
    block's best MS-ODENet against this row; ("pairs", "").
    """
    lines = []
    for task, block in in_order(results).groupby("task", sort=False):
        p = against_best(block)
        for method, rows in block.groupby("method", sort=False):
            line: dict = {("task", ""): TASKS[str(task)], ("method", ""): METHODS[str(method)].name}
            for measure, (factor, _) in MEASURES.items():
                values = rows[measure].astype(float) * factor
                line[measure, "mean"], line[measure, "sd"] = values.mean(), values.std()
                low, high = interval(values, rows["subject"])
                line[measure, "low"], line[measure, "high"] = low, high
            line["rmse_phi_mm", "median"] = rows["rmse_phi_mm"].median()
            line["success", "%"] = 100 * (rows["rmse_phi_mm"] < 2 * voxel_mm).mean()
            line["p", "holm"] = p.get(str(method), float("nan"))
            line["pairs", ""] = len(rows)
            lines.append(line)
    table = pd.DataFrame(lines)
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    return table.set_index([("task", ""), ("method", "")]).rename_axis(["task", "method"])


def against_best(block: pd.DataFrame) -> dict[str, float]:
    """Of one task's results: the corrected p of its best MS-ODENet, by mean RMSE(phi), against each
    other row of the paper. Empty where there is no MS-ODENet."""
    by_method = {str(m): rows for m, rows in block.groupby("method") if METHODS[str(m)].in_paper}
    ours = [m for m in by_method if METHODS[m].ours]
    if not ours:
        return {}
    best = min(ours, key=lambda m: by_method[m]["rmse_phi_mm"].mean())
    others = [m for m in by_method if m != best]
    p = [paired_p(by_method[best], by_method[m]) for m in others]
    _, corrected, *_ = multipletests(p, method="holm")
    return {method: float(value) for method, value in zip(others, corrected, strict=True)}


def table1(numbers: pd.DataFrame) -> pd.DataFrame:
    """Table 1's rows as strings: of a `summary`, and the paper's; rows that it has not say so."""
    paper, lines = paper_table(), {}
    for key in _order(numbers, paper):
        here = numbers.loc[key] if key in numbers.index else None
        line: dict = {}
        for measure, (_, head) in MEASURES.items():
            line[head, "here"] = "missing" if here is None else _cell(here[measure])
            line[head, "paper"] = _cell(paper.loc[key, measure]) if key in paper.index else "–"
        line |= {("beyond the paper", head): "–" for head in BEYOND.values()}
        if here is not None:
            phi = here["rmse_phi_mm"]
            found = {
                "interval": _range(phi["low"], phi["high"]),
                "median": f"{phi['median']:.2f}",
                "success": f"{here['success', '%']:.0f}",
                "p": _p(here["p", "holm"]),
                "pairs": f"{here['pairs', '']:.0f}",
            }
            line |= {("beyond the paper", BEYOND[k]): text for k, text in found.items()}
        lines[key] = line
    table = pd.DataFrame.from_dict(lines, orient="index")
    table.columns = pd.MultiIndex.from_tuples(table.columns)
    table.index = pd.MultiIndex.from_tuples(table.index, names=["task", "method"])
    return table


def _order(ours: pd.DataFrame, paper: pd.DataFrame) -> list[tuple[str, str]]:
    """Block by block, our own rows first, then the paper's in its order."""
    extra = [key for key in ours.index if key not in paper.index]
    return [
        key for task in TASKS.values() for key in (*extra, *paper.index) if key[0] == task
    ]  # fmt: skip


def _cell(numbers: pd.Series) -> str:
    mean, sd = numbers["mean"], numbers["sd"]
    return "–" if pd.isna(mean) else f"{mean:.2f} ({sd:.2f})"


def _range(low: float, high: float) -> str:
    return "–" if pd.isna(low) else f"{low:.2f} to {high:.2f}"


def _p(value: float) -> str:
    if pd.isna(value):
        return "–"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def best_of_blocks(means: pd.DataFrame) -> pd.DataFrame:
    """Which cells are the best of their block: index (task, method), a column a measure.

    The largest Dice, the smallest of all else; rows that the paper has not do not compete.
    """
    competing = means.where(pd.Series(means.index.isin(paper_table().index), means.index), np.nan)
    signed = competing.assign(dice=-competing["dice"]) if "dice" in competing else competing
    return signed.eq(signed.groupby(level="task").transform("min")) & signed.notna()


def styled(numbers: pd.DataFrame, uuid: str = "table1") -> Styler:
    """`table1` of a `summary` with the best of each block in bold, in this run's columns and in the
    paper's."""
    table = table1(numbers)
    bold = pd.DataFrame("", index=table.index, columns=table.columns)
    for where, found in (("here", numbers), ("paper", paper_table())):
        means = found.xs("mean", axis=1, level=1)
        best = best_of_blocks(means).reindex(table.index, fill_value=False)
        for measure, (_, head) in MEASURES.items():
            bold.loc[best[measure], (head, where)] = "font-weight: bold"
    printed = Styler(table, uuid=uuid).apply(lambda _: bold, axis=None)
    return printed.set_table_attributes('class="dataframe table1"')


def markdown(numbers: pd.DataFrame) -> str:
    """Of a `summary` the start and the paper's rows in short, for a README."""
    paper = paper_table()
    heads = ("task", "method", "pairs", "RMSE(φ), mm", "median", "in the paper", "under 2 voxels",
             "Dice", "seconds")  # fmt: skip
    lines, shown = [heads, ("---",) * len(heads)], ""
    for task, method in _order(numbers, paper):
        start = method == METHODS["none"].name
        key = (task, method)
        if key not in numbers.index or not (start or key in paper.index):
            continue
        row = numbers.loc[key]
        lines.append(
            (
                task if task != shown else "",
                method,
                f"{row['pairs', '']:.0f}",
                _cell(row["rmse_phi_mm"]),
                f"{row['rmse_phi_mm', 'median']:.2f}",
                "" if start else _cell(paper.loc[key, "rmse_phi_mm"]),
                f"{row['success', '%']:.0f} %",
                "–" if pd.isna(row["dice", "mean"]) else f"{row['dice', 'mean']:.1f} %",
                "" if start else f"{row['seconds', 'mean']:.1f}",
            )
        )
        shown = task
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def write_table1(results: pd.DataFrame, voxel_mm: float, folder: Path) -> None:
    """`table1.csv` (numbers), `table1.tex` and `table1.html` (as printed) and `table1.md` (in
    short) in `folder`.

    The LaTeX needs the packages booktabs and multirow.
    """
    numbers = summary(results, voxel_mm)
    paper = paper_table()
    paper.columns = pd.MultiIndex.from_tuples([(m, f"paper_{k}") for m, k in paper.columns])
    rows = _order(numbers, paper)
    whole = numbers.reindex(rows).join(paper.reindex(rows))
    whole.columns = ["_".join(filter(None, column)) for column in whole.columns]
    printed = styled(numbers)
    head = '<!doctype html><html lang="en"><meta charset="utf-8"><title>Table 1</title>\n'
    texts = {
        "table1.csv": whole.rename(columns={"success_%": "success_percent"}).to_csv(
            float_format="%.6g"
        ),
        "table1.html": head + printed.to_html() + "</html>\n",
        "table1.tex": _latex(printed),
        "table1.md": markdown(numbers),
    }
    for name, text in texts.items():
        with atomic(folder / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _latex(printed: Styler) -> str:
    text = printed.to_latex(
        hrules=True, clines="skip-last;index", convert_css=True, multicol_align="c"
    )
    for character, command in LATEX.items():
        text = text.replace(character, command)
    return text.replace("\\cline{1-2}\n\\bottomrule", "\\bottomrule")
