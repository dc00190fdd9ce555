"""Figs. 4a, 4b and 4c: what each part of the method adds, and how methods fare elsewhere."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from odereg_core.experiments.figures.style import OURS, START, subplots
from odereg_core.experiments.statistics import interval
from odereg_core.experiments.tables import MEASURES

SHOWN = ("rmse_phi_mm", "rmse_x", "dice")
BETTER = {"rmse_phi_mm": "lower is better", "rmse_x": "lower is better", "dice": "higher is better"}


def bars_figure(
    results: pd.DataFrame, by: str, labels: dict[str, str], ours: tuple[str, ...], note: str = ""
) -> Figure:
    """A bar a value of column `by`, in the order of `labels`: the mean of each measure with its
    95 % interval by subject. `ours` are drawn in blue. A measure without values has no panel."""
    shown = [m for m in SHOWN if results[m].notna().any()]
    names = [name for name in labels if (results[by] == name).any()]
    size = (3 * len(shown) + 1.5, 0.36 * len(names) + 1)
    fig, axes = subplots(1, len(shown), figsize=size, squeeze=False, sharey=True)
    for ax, measure in zip(axes[0], shown, strict=True):
        means, errors = _intervals(results, by, names, measure)
        colours = [OURS if name in ours else START for name in names]
        ax.barh(range(len(names)), means, color=colours, xerr=errors, capsize=3, height=0.7)
        ax.set_title(MEASURES[measure][1])
        ax.set_xlabel(BETTER[measure])
    axes[0, 0].set_yticks(range(len(names)), [labels[name] for name in names])
    axes[0, 0].invert_yaxis()
    fig.alt = _described(results, by, labels)
    return _noted(fig, note)


def steps_figure(results: pd.DataFrame, steps: dict[str, int], note: str = "") -> Figure:
    """Each measure against the number of the solver's steps; grey: before registration."""
    shown = [m for m in SHOWN if results[m].notna().any()]
    fig, axes = subplots(1, len(shown), figsize=(3.6 * len(shown), 3.2), squeeze=False)
    names = [name for name in steps if (results["variant"] == name).any()]
    for ax, measure in zip(axes[0], shown, strict=True):
        means, errors = _intervals(results, "variant", names, measure)
        at = [steps[name] for name in names]
        ax.errorbar(at, means, yerr=errors, color=OURS, marker="o", ms=4, capsize=3)
        _log2(ax, at)
        ax.set_title(MEASURES[measure][1])
        ax.set_ylabel(BETTER[measure])
        if measure == "rmse_phi_mm":
            ax.axhline(results["start_mm"].mean(), color=START, ls="--", lw=1)
            ax.set_ylim(bottom=0)
    fig.alt = _described(results, "variant", {name: f"{n} steps" for name, n in steps.items()})
    return _noted(fig, note)


def _described(results: pd.DataFrame, by: str, labels: dict[str, str]) -> str:
    means = results.groupby(by, sort=False).rmse_phi_mm.mean()
    parts = [f"{labels[n]} {means[n]:.1f}" for n in labels if n in means]
    return "Mean RMSE(φ) in mm: " + ", ".join(parts)


def _intervals(
    results: pd.DataFrame, by: str, names: list[str], measure: str
) -> tuple[list[float], np.ndarray]:
    """Means, and how far their intervals reach below and above them (2, n); zero where a single
    subject gives none."""
    factor = MEASURES[measure][0]
    means, reach = [], []
    for name in names:
        rows = results[results[by] == name]
        mean = float(rows[measure].mean())
        low, high = interval(rows[measure], rows["subject"])
        means.append(factor * mean)
        reach.append([factor * (mean - low), factor * (high - mean)])
    return means, np.nan_to_num(np.array(reach).T).clip(min=0)


def _log2(ax: Axes, at: list[int]) -> None:
    ax.set_xscale("log", base=2)
    ax.set_xticks(at, [str(n) for n in at])
    ax.set_xlabel("steps of the solver")


def _noted(fig: Figure, note: str) -> Figure:
    fig.tight_layout()
    if note:
        fig.text(0.01, -0.02, note, fontsize=10, color="#555555", va="top")
    return fig
