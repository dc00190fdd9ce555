"""A registration of two scans, looked at."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from odereg_core.experiments.figures.style import OURS, THEIRS, show, subplots
from odereg_core.registration import Registered
from odereg_core.volume import Volume, centre_of_mass, foreground


def scans_figure(moving: Volume, fixed: Volume, result: Registered) -> Figure:
    """Fixed scan, moving scan in the world as it came, and registered, the fixed head's outline
    over each; then both scans in squares by turns. Through the fixed head's centre, two planes."""
    mask = foreground(fixed)
    before = moving.sample(fixed.world())
    at = np.rint(fixed.index(centre_of_mass(fixed, mask))).astype(int)
    a, b = (_bright(volume, mask) for volume in (fixed.data, result.warped.data))
    columns = {
        "fixed": a,
        "moving, as it came": _bright(before, mask),
        "moving, registered": b,
        "both by turns": np.where(_squares(fixed.shape), a, b),
    }
    fig, axes = subplots(2, len(columns), figsize=(2.5 * len(columns), 5))
    for row, axis in zip(axes, (2, 1), strict=True):
        spacing = np.delete(fixed.spacing, axis)
        for ax, (title, volume) in zip(row, columns.items(), strict=True):
            picture = volume.take(at[axis], axis).T
            show(ax, picture, title if axis == 2 else "", aspect=spacing[1] / spacing[0])
            if title != "both by turns":
                outline = mask.take(at[axis], axis).T
                colour = OURS if title == "fixed" else THEIRS
                ax.contour(outline, levels=[0.5], colors=[colour], linewidths=0.8)
    fig.tight_layout(pad=0.3)
    fig.alt = "The fixed scan, the moving scan before and after registration, and both in squares."
    return fig


def _bright(data: NDArray, mask: NDArray[np.bool_]) -> NDArray:
    return np.clip(data / max(float(np.percentile(data[mask], 99.5)), 1e-6), 0, 1)


def _squares(shape: tuple[int, int, int], count: int = 8) -> NDArray[np.bool_]:
    index = np.indices(shape) // np.reshape([max(1, n // count) for n in shape], (3, 1, 1, 1))
    return index.sum(0) % 2 == 0
