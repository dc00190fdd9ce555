"""Figures of the evaluation's results."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from odereg_core.experiments.figures.style import GREEN, ORANGE, OURS, PINK, START, THEIRS, subplots

COLOURS = (THEIRS, OURS, GREEN, PINK, ORANGE)


def error_figure(results: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Each pair's error against the size of its motion: a panel a task, a colour a method. Grey:
    no registration."""
    tasks = list(dict.fromkeys(results["task"]))
    fig, axes = subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.4), squeeze=False)
    for ax, task in zip(axes[0], tasks, strict=True):
        methods = results[results["task"] == task].groupby("method", sort=False)
        colours = iter(COLOURS)
        for method, rows in methods:
            colour = START if method == "none" else next(colours)
            error = rows.rmse_phi_mm.clip(lower=1e-2)
            ax.scatter(rows.start_mm, error, s=12, color=colour, label=names[str(method)])
        ax.set(xlabel="RMSE(φ) before registration / mm", yscale="log", title=task)
        ax.legend()
    axes[0, 0].set_ylabel("after / mm")
    fig.tight_layout()
    medians = results.groupby(["task", "method"], sort=False).rmse_phi_mm.median()
    fig.alt = "Each pair's error after registration against before; medians in mm: " + ", ".join(
        f"{task} {names[method]} {value:.1f}" for (task, method), value in medians.items()
    )
    return fig
