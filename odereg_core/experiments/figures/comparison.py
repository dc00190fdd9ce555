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
    """Two rows a pair: the images, and what each method's differs by from the true one (blue: too
    dark, red: too bright). Arrows: where the methods differ most. `at`: the slice; else the one
    where they differ most."""
    columns = 3 + max(len(c.displacements) for c in comparisons)
    rows = 2 * len(comparisons)
    size = (1.55 * columns, 1.95 * rows)
    fig, axes = subplots(rows, columns, figsize=size, layout="constrained", squeeze=False)
    for i, comparison in enumerate(comparisons):
        draw(axes[2 * i : 2 * i + 2], comparison, axis, at)
    fig.alt = " ".join(map(described, comparisons))
    return fig


def described(comparison: Comparison) -> str:
    """What a comparison's picture shows, in a sentence."""
    key = comparison.pair.key
    errors = ", ".join(f"{n} {comparison.error_mm(n):.1f} mm" for n in comparison.displacements)
    return f"{key.subject}, {key.moving} to {key.fixed}, by each method; RMSE(φ): {errors}."


def slice_animation(comparison: Comparison, axis: int = 2, count: int = 12) -> Animation:
    """The comparison through `count` slices of the brain."""
    brain = comparison.pair.brain[0, 0].cpu().numpy()
    inside = np.flatnonzero(brain.any(tuple({0, 1, 2} - {axis})))
    stops = np.unique(np.linspace(inside[0], inside[-1], count + 2)[1:-1].round().astype(int))
    columns = 3 + len(comparison.displacements)
    fig, axes = subplots(2, columns, figsize=(1.4 * columns, 3.5), dpi=72, squeeze=False)
    fig.alt = described(comparison)

    def frame(i: int) -> list:
        for ax in axes.flat:
            ax.clear()
        draw(axes, comparison, axis, int(stops[i]))
        return []

    return animate(fig, frame, len(stops))


def draw(axes: np.ndarray, comparison: Comparison, axis: int = 2, at: int | None = None) -> None:
    """One comparison into two rows of axes."""
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
    show(axes[1, 0], cut(pair.moving, axis, at) - truth, "before", **DIFFERENCE)
    seen = (pair.brain | (pair.moving > 0))[0, 0].amax(axis).nonzero().cpu().numpy()
    low, high = seen.min(0) - 3.5, seen.max(0) + 3.5
    for ax in (*axes[0], axes[1, 0], *axes[1, 3:]):
        ax.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    places = comparison.marks(axis, at)
    for column, (name, warped) in enumerate(comparison.warped.items(), 3):
        image = cut(warped, axis, at)
        show(axes[0, column], image, f"{name}\n{comparison.error_mm(name):.1f} mm")
        show(axes[1, column], image - truth, **DIFFERENCE)
        for ax in axes[:, column]:
            _point(ax, places, image.shape)


def _point(ax: Axes, places: np.ndarray, shape: tuple[int, ...]) -> None:
    """Arrows that come from outside the middle and end at the places (indices along x, y)."""
    middle = np.array(shape[::-1]) / 2
    for place in places:
        away = place - middle
        away = away / max(1e-6, float(np.linalg.norm(away)))
        start = place + away * 0.16 * max(shape)
        ax.annotate("", xy=place + away, xytext=start, arrowprops=ARROW, annotation_clip=False)
