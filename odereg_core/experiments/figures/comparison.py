"""Fig. 3: the same pairs through all compared methods."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from odereg_core.experiments.comparison import Comparison
from odereg_core.experiments.figures.style import Animation, animate, cut, show, subplots

ARROW = {"color": "#E8000B", "width": 1.5, "headwidth": 6, "headlength": 6, "shrink": 0.0}
DIFFERENCE = {"cmap": "RdBu_r", "vmin": -0.5, "vmax": 0.5}


def comparison_figure(
    comparisons: Sequence[Comparison], axis: int = 2, at: int | None = None
) -> Figure:
    """Three rows a pair: the images, what each method makes of the moving one, and what that
    differs by from the true one (blue: too dark, red: too bright). Arrows: where the methods differ
    most. `at`: the slice; else the one where they differ most."""
    columns = max(_columns(c) for c in comparisons)
    rows = 3 * len(comparisons)
    size = (1.7 * columns, 2.2 * rows)
    fig, axes = subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for i, comparison in enumerate(comparisons):
        draw(axes[3 * i : 3 * i + 3], comparison, axis, at)
    fig.alt = " ".join(map(described, comparisons))
    return fig


def _columns(comparison: Comparison) -> int:
    return max(4, len(comparison.displacements))


def described(comparison: Comparison) -> str:
    """What a comparison's picture shows, in a sentence."""
    key = comparison.pair.key
    errors = ", ".join(f"{n} {comparison.error_mm(n):.1f} mm" for n in comparison.displacements)
    return f"{key.subject}, {key.moving} to {key.fixed}, by each method; RMSE(φ): {errors}."


def slice_animation(comparison: Comparison) -> Animation:
    """The comparison through a dozen axial slices of the brain."""
    brain = comparison.pair.brain[0, 0].cpu().numpy()
    area = brain.sum((0, 1))
    inside = np.flatnonzero(area > 0.4 * area.max())
    stops = np.unique(np.linspace(inside[0], inside[-1], 12).round().astype(int))
    columns = _columns(comparison)
    fig, axes = subplots(3, columns, figsize=(1.7 * columns, 6.4), layout="constrained")
    fig.alt = described(comparison)

    def frame(i: int) -> list:
        for ax in axes.flat:
            ax.clear()
        draw(axes, comparison, 2, int(stops[i]))
        return []

    return animate(fig, frame, len(stops))


def draw(axes: np.ndarray, comparison: Comparison, axis: int = 2, at: int | None = None) -> None:
    """One comparison into three rows of axes."""
    pair = comparison.pair
    at = comparison.telling_slice(axis) if at is None else at
    for ax in axes.flat:
        ax.set_axis_off()
    given = {
        f"moving: {pair.key.moving}": pair.moving,
        f"fixed: {pair.key.fixed}": pair.fixed,
        "true image": pair.true_image,
    }
    for ax, (title, volume) in zip(axes[0], given.items(), strict=False):
        show(ax, cut(volume, axis, at), title)
    truth = cut(pair.true_image, axis, at)
    show(axes[0, 3], cut(pair.moving, axis, at) - truth, "moving − true", **DIFFERENCE)
    places = comparison.marks(axis, at)
    for (name, warped), above, below in zip(comparison.warped.items(), *axes[1:], strict=False):
        image = cut(warped, axis, at)
        show(above, image, f"{name}\n{comparison.error_mm(name):.1f} mm")
        show(below, image - truth, **DIFFERENCE)
        for ax in (above, below):
            _point(ax, places, image.shape)
    seen = (pair.brain | (pair.moving > 0))[0, 0].amax(axis).nonzero().cpu().numpy()
    margin = 0.1 * max(truth.shape)
    for ax in axes.flat:
        if ax.images:
            ax.set(xlim=(seen[:, 0].min() - margin, seen[:, 0].max() + margin),
                   ylim=(seen[:, 1].min() - margin, seen[:, 1].max() + margin))  # fmt: skip


def _point(ax: Axes, places: np.ndarray, shape: tuple[int, ...]) -> None:
    """Arrows that come from outside the middle and end at the places (indices along x, y)."""
    middle = np.array(shape[::-1]) / 2
    for place in places:
        away = place - middle
        away = away / max(1e-6, float(np.linalg.norm(away)))
        start = place + away * 0.12 * max(shape)
        ax.annotate("", xy=place + away, xytext=start, arrowprops=ARROW, annotation_clip=False)
