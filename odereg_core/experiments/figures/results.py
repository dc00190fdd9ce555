"""Figures of the evaluation's results."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullFormatter

from odereg_core.experiments.figures.style import OURS, subplots
from odereg_core.motion import MOTIONS


def error_figure(results: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Every pair's error, a line a method, a panel a task; the bar is the median, the colour says
    how far apart the pair was before."""
    found = {str(task): rows for task, rows in results.groupby("task")}
    tasks = [task for task in MOTIONS if task in found]
    blocks = [found[task] for task in tasks]
    counts = [block["method"].nunique() for block in blocks]
    fig, axes = subplots(
        len(tasks), 1, figsize=(9, 0.33 * sum(counts) + 1.1 * len(tasks)),
        height_ratios=[count + 1 for count in counts], squeeze=False, layout="constrained",
    )  # fmt: skip
    for ax, task, block in zip(axes[:, 0], tasks, blocks, strict=True):
        methods = [name for name in names if (block["method"] == name).any()]
        for y, method in enumerate(methods):
            rows = block[block["method"] == method]
            error = rows.rmse_phi_mm.clip(lower=1e-2)
            apart = y + np.linspace(-0.25, 0.25, len(rows))
            how = {"vmin": 0, "vmax": 1.1 * block.start_mm.max(), "cmap": "viridis", "lw": 0}
            dots = ax.scatter(error, apart, s=18, c=rows.start_mm, **how)
            ax.plot([error.median()] * 2, [y - 0.4, y + 0.4], color="black", lw=2)
        ax.set_yticks(range(len(methods)), [names[method] for method in methods])
        for label in ax.get_yticklabels():
            if label.get_text().startswith("MS-ODENet"):
                label.set(color=OURS, fontweight="bold")
        ax.set(xscale="log", title=task, ylim=(len(methods) - 0.4, -0.6))
        ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        ax.xaxis.set_major_formatter("{x:g}")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.grid(axis="x", lw=0.4)
        fig.colorbar(dots, ax=ax, label="before / mm", fraction=0.05)
    axes[-1, 0].set_xlabel("RMSE(φ) after registration / mm")
    medians = results.groupby(["task", "method"], sort=False).rmse_phi_mm.median()
    fig.alt = "Each pair's error after registration, by task and method; medians in mm: "
    fig.alt += ", ".join(f"{t} {names[m]} {value:.1f}" for (t, m), value in medians.items())
    return fig
