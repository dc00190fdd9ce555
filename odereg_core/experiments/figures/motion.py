"""Figures of transforms: where phi looks, what the warped image is, and what the metrics say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from torch import Tensor

from odereg_core import metrics
from odereg_core.cohort import Subject
from odereg_core.experiments.figures.style import (
    LINES,
    OURS,
    THEIRS,
    Animation,
    Described,
    animate,
    cut,
    show,
    subplots,
    tumour_slice,
)
from odereg_core.grid import Grid
from odereg_core.warp import warp

BEFORE = "#56B4E9"
PANELS = "the moving image with the grid, the warped image, and the map's log |J|."
VOLUME = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1}
"""How log |J| is shown."""


@dataclass(frozen=True)
class Moved:
    """A subject's first contrast under a map: the pair x, x∘phi before any registration."""

    image: Tensor
    tumour: Tensor
    warped: Tensor
    warped_tumour: Tensor
    brain: Tensor
    jacobian: Tensor
    scores: dict[str, float]

    def __str__(self) -> str:
        s = self.scores
        return (
            f"Dice {s['dice']:.2f}   RMSE(φ) {s['rmse_phi_mm']:.1f} mm   "
            f"RMSE(x) {s['rmse_x']:.2f}   folded {100 * s['folding']:.1f} %   "
            f"spread of log |J| {s['log_jacobian_std']:.2f}"
        )


@torch.no_grad()
def move(subject: Subject, u: Tensor, grid: Grid) -> Moved:
    """Warp a subject by u (mm) and measure how far that is from no motion at all."""
    image = subject.images[:1, None]
    seg = subject.seg if subject.seg is not None else torch.zeros(grid.shape)
    tumour = (seg > 0)[None, None]
    warped = warp(image, u, grid)
    warped_tumour, brain = (
        warp(mask.float(), u, grid, mode="nearest") > 0.5
        for mask in (tumour, subject.mask[None, None])
    )
    scores = {
        "dice": metrics.dice(tumour, warped_tumour),
        "rmse_phi_mm": metrics.rmse_phi(u, torch.zeros_like(u), brain),
        "rmse_x": metrics.rmse(image, warped, brain),
        "folding": metrics.folding(u, grid, brain),
        "log_jacobian_std": metrics.log_jacobian_std(u, grid, brain),
    }
    return Moved(
        image=image,
        tumour=tumour,
        warped=warped,
        warped_tumour=warped_tumour,
        brain=brain,
        jacobian=metrics.jacobian_determinant(u, grid),
        scores={name: float(value) for name, value in scores.items()},
    )


def draw_grid(ax: Axes, displacement: Tensor, grid: Grid, at: int, every: int = 6) -> None:
    """Lines of the fixed grid's axial slice `at` where phi takes them, in mm of the moving image,
    seen from above."""
    place = (grid.points() + displacement.cpu())[0, :2, :, :, at].numpy()
    for line in place[:, ::every].transpose(1, 2, 0):
        ax.plot(*line.T, color=OURS, lw=0.6)
    for line in place[:, :, ::every].transpose(2, 1, 0):
        ax.plot(*line.T, color=OURS, lw=0.6)


def _draw(row: Sequence[Axes], moved: Moved, u: Tensor, grid: Grid, title: str) -> None:
    """Three panels: the moving image with the grid, the warped one, and log |J|."""
    where, picture, volume = row
    for ax in row:
        ax.clear()
    at = tumour_slice(moved.tumour[0, 0], grid.shape)
    half = [extent / 2 for extent in grid.extent]
    box = (-half[0], half[0], -half[1], half[1])
    show(where, cut(moved.image, at=at), title, extent=box)
    draw_grid(where, u, grid, at, every=max(2, grid.shape[0] // 14))
    where.set(xlim=box[:2], ylim=box[2:])
    show(picture, cut(moved.warped, at=at), "warped", extent=box)
    for mask, colour, style in (
        (moved.tumour, BEFORE, "dashed"),
        (moved.warped_tumour, THEIRS, "solid"),
    ):
        outline = cut(mask, at=at)
        if outline.any():
            picture.contour(
                outline, levels=[0.5], colors=colour, linestyles=style, linewidths=1, extent=box
            )
    picture.text(0.5, -0.03, str(moved), transform=picture.transAxes, ha="center", va="top")
    folded = np.where(cut(moved.jacobian, at=at) > 0, np.nan, 1.0)
    log_j = cut(moved.jacobian.clamp_min(1e-3).log(), at=at)
    inside = np.where(cut(moved.brain, at=at), 1.0, 0.25)
    show(volume, log_j, "log |J|, folded black", extent=box, alpha=inside, **VOLUME)
    volume.imshow(folded, origin="lower", extent=box, cmap="gray", vmin=0, vmax=1e9)


def _axes(rows: int) -> tuple[Described, np.ndarray]:
    fig, axes = subplots(rows, 3, figsize=(9.6, 3.45 * rows), squeeze=False)
    line = 0.4 / (3.45 * rows)  # a line of text, as a part of the height
    fig.subplots_adjust(0.005, line, 0.92, 1 - 0.8 * line, wspace=0.03, hspace=0.22)
    box = axes[0, 2].get_position()
    bar = fig.add_axes((0.93, box.y0 + box.height / 10, 0.012, box.height * 0.8))
    colours = ScalarMappable(Normalize(VOLUME["vmin"], VOLUME["vmax"]), VOLUME["cmap"])
    fig.colorbar(colours, cax=bar, ticks=[-1, 0, 1], label="log |J|")
    return fig, axes


def transform_figure(subject: Subject, grid: Grid, maps: Mapping[str, Tensor]) -> Figure:
    """A row for each map (its displacement in mm): where it looks, what it shows, what it does to
    volumes."""
    fig, axes = _axes(len(maps))
    for row, (title, u) in zip(axes, maps.items(), strict=True):
        moved = move(subject, u, grid)
        _draw(row, moved, u, grid, title)
        fig.alt += f"{title}: {PANELS} {moved}. "
    return fig


def transform_animation(
    subject: Subject, grid: Grid, maps: Sequence[tuple[str, Tensor]]
) -> Animation:
    """The same, a frame for each map."""
    fig, axes = _axes(1)
    fig.alt = f"{len(maps)} maps, from {maps[0][0]} to {maps[-1][0]}: {PANELS}"

    def frame(i: int) -> list:
        title, u = maps[i]
        _draw(axes[0], move(subject, u, grid), u, grid, title)
        return []

    return animate(fig, frame, len(maps))


def folding_figure(table: pd.DataFrame) -> Figure:
    """What growing control-point noise does to a map, a line for each control spacing.

    `table`: columns spacing, strength (mm), folding (a fraction), log_jacobian_std.
    """
    fig, axes = subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    for (spacing, rows), colour in zip(table.groupby("spacing"), LINES, strict=False):
        for ax, values in zip(axes, (100 * rows.folding, rows.log_jacobian_std), strict=True):
            ax.plot(rows.strength, values, ".-", color=colour, label=f"{spacing:g} mm")
    axes[0].set(xlabel="control-point noise / mm", ylabel="folded voxels / %")
    axes[1].set(xlabel="control-point noise / mm", ylabel="spread of log |J|")
    axes[0].legend(title="control spacing")
    fig.alt = (
        "Folded voxels in percent, and the spread of log |J|, against control-point noise in mm, "
        f"for control spacings of {', '.join(f'{s:g}' for s in table.spacing.unique())} mm."
    )
    return fig


def resampling_figure(once: Tensor, twice: Tensor) -> Figure:
    """The middle of two warped images and their difference: what a second interpolation costs."""
    pictures = [cut(image) for image in (once, twice, twice - once)]
    margin = [n // 4 for n in pictures[0].shape]
    fig, axes = subplots(1, 3, figsize=(9.6, 3.4))
    for ax, picture, title in zip(
        axes, pictures, ("resampled once", "resampled twice", "twice less once, ±0.2"), strict=True
    ):
        middle = picture[margin[0] : -margin[0], margin[1] : -margin[1]]
        how = {"cmap": "RdBu_r", "vmin": -0.2, "vmax": 0.2} if ax is axes[2] else {}
        show(ax, middle, title, **how)
    fig.tight_layout(pad=0.3)
    fig.alt = "A warped slice resampled once, the same resampled twice, and their difference."
    return fig
