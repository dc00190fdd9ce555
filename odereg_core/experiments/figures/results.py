"""Figures of the evaluation's results."""

from __future__ import annotations

from itertools import cycle

import pandas as pd
from matplotlib.figure import Figure

from odereg_core.experiments.figures.style import GREEN, ORANGE, OURS, PINK, START, THEIRS, subplots
from odereg_core.motion import MOTIONS

COLOURS = (THEIRS, OURS, GREEN, PINK, ORANGE, "#56B4E9", "#000000", "#8C6D31")


def error_figure(results: pd.DataFrame, names: dict[str, str], bins: int = 5) -> Figure:
    """Each pair's error against the size of its motion: a panel a task, a colour a method. Lines:
    medians over equally many pairs, where a method has enough of them. Grey: no registration."""
    tasks = [task for task in MOTIONS if (results["task"] == task).any()]
    fig, axes = subplots(1, len(tasks), figsize=(4.2 * len(tasks), 4.4), squeeze=False)
    for ax, task in zip(axes[0], tasks, strict=True):
        colours = cycle(COLOURS)
        for method, rows in results[results["task"] == task].groupby("method", sort=False):
            colour = START if method == "none" else next(colours)
            rows = rows.assign(error=rows.rmse_phi_mm.clip(lower=1e-2))
            count = min(bins, len(rows) // 5)
            label = names[str(method)]
            faint = 0.35 if count > 1 else 1.0
            ax.scatter(rows.start_mm, rows.error, s=10, color=colour, alpha=faint, lw=0)
            if count > 1:
                binned = rows.groupby(pd.qcut(rows.start_mm, count, duplicates="drop"))
                middle = binned[["start_mm", "error"]].median()
                ax.plot(middle.start_mm, middle.error, color=colour, marker="o", ms=3, label=label)
            else:
                ax.scatter([], [], s=10, color=colour, label=label)
        ax.set(xlabel="RMSE(φ) before registration / mm", yscale="log", title=task)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.2)}
        ax.legend(frameon=False, fontsize=7, ncols=2, **below)
    axes[0, 0].set_ylabel("after / mm")
    fig.tight_layout()
    medians = results.groupby(["task", "method"], sort=False).rmse_phi_mm.median()
    fig.alt = "Each pair's error after registration against before; medians in mm: " + ", ".join(
        f"{task} {names[method]} {value:.1f}" for (task, method), value in medians.items()
    )
    return fig
