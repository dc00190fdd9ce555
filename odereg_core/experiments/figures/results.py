"""Figures of the evaluation's results."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from odereg_core.experiments.figures.style import OURS, START, THEIRS

COLOURS = (THEIRS, OURS, "#009E73", "#CC79A7", "#E69F00")


def error_figure(results: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Each pair's error against the size of its motion: a panel a task, a colour a method. Grey:
    no registration."""
    tasks = list(dict.fromkeys(results["task"]))
    fig, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.4), squeeze=False)
    for ax, task in zip(axes[0], tasks, strict=True):
        methods = results[results["task"] == task].groupby("method", sort=False)
        colours = iter(COLOURS)
        for method, rows in methods:
            colour = START if method == "none" else next(colours)
            error = rows.rmse_phi_mm.clip(lower=1e-2)
            ax.scatter(rows.start_mm, error, s=12, color=colour, label=names[str(method)])
        ax.set(xlabel="RMSE(φ) before registration / mm", yscale="log", title=task)
        ax.legend(frameon=False, fontsize=7)
    axes[0, 0].set_ylabel("after / mm")
    fig.tight_layout()
    return fig
