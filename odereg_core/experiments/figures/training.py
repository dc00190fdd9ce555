"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from odereg_core.experiments.figures.style import OURS, mark


def training_figure(curve: Sequence[Sequence[float]], stages: Sequence[int] = ()) -> Figure:
    """RMSE(phi) on the validation pairs as training went on; stages' ends dotted."""
    steps, errors = zip(*curve, strict=True)
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot(steps, errors, ".-", color=OURS)
    mark(ax, stages)
    ax.set(xlabel="step", ylabel="RMSE(φ) / mm, validation", ylim=(0, None))
    fig.tight_layout()
    return fig
