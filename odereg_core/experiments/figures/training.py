"""Figures of a training run."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.figure import Figure
from torch import Tensor

from odereg_core.experiments.figures.style import OURS, cut, mark, show, subplots


def training_figure(curve: Sequence[Sequence[float]], stages: Sequence[int] = ()) -> Figure:
    """RMSE(phi) on the validation pairs as training went on; stages' ends dotted."""
    steps, errors = zip(*curve, strict=True)
    fig, ax = subplots(figsize=(9, 3.2))
    ax.plot(steps, errors, ".-", color=OURS)
    mark(ax, stages)
    ax.set(xlabel="step", ylabel="RMSE(φ) / mm, validation", ylim=(0, None))
    fig.tight_layout()
    fig.alt = (
        f"Validation error over {steps[-1]} steps of training: from {errors[0]:.1f} to "
        f"{errors[-1]:.1f} mm, at best {min(errors):.1f} mm."
    )
    return fig


def copies_figure(image: Tensor, copies: Sequence[Tensor]) -> Figure:
    """An image (1, 1, X, Y, Z) and copies of it as training sees them, at the middle slice."""
    fig, axes = subplots(1, 1 + len(copies), figsize=(1.6 * len(copies) + 1.6, 2))
    titles = ("as it is", "as drawn →", *[""] * len(copies))
    for ax, picture, title in zip(axes, (image, *copies), titles, strict=False):
        show(ax, cut(picture), title)
    fig.tight_layout(pad=0.3)
    fig.alt = f"A slice as it is, and {len(copies)} copies with random intensities, bias and blur."
    return fig
