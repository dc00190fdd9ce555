"""Figures of one registration: theta's path through the ODE's steps and scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from odereg_core.experiments.figures.style import (
    LINES,
    OURS,
    THEIRS,
    Animation,
    Described,
    animate,
    cut,
    mark,
    name_row,
    show,
    subplots,
)
from odereg_core.msodenet import Registration
from odereg_core.pairs import Pair
from odereg_core.transforms import Rigid, Transform
from odereg_core.warp import averaged, warp


def path(
    result: Registration, pair: Pair, transform: Transform | None = None
) -> list[tuple[int, float, Tensor]]:
    """(scale, t, u in mm on the pair's grid) at the start of every accepted step, and at the
    end."""
    transform = transform or Rigid()
    found = []
    for scale, segment in enumerate(result.segments):
        last = scale == len(result.segments) - 1
        for t, theta in list(zip(segment.times, segment.states, strict=True))[
            : None if last else -1
        ]:
            theta = transform.resample(theta[:1].cpu(), result.grids[scale], pair.grid)
            found.append((scale, t, transform.displacement(theta, pair.grid)))
    return found


class Trajectory:
    """A solve to be looked at step by step: the moving image as warped so far, the fixed one, and
    the error; for a rigid theta unless another transform is given."""

    def __init__(self, result: Registration, pair: Pair, transform: Transform | None = None):
        self.pair, self.steps = pair, path(result, pair, transform)
        self.errors = [pair.error_mm(u) for *_, u in self.steps]
        self.times = [t for _, t, _ in self.steps]
        self.handovers = [segment.times[0] for segment in result.segments[1:]]

    def figure(self) -> tuple[Described, Sequence[Axes]]:
        """Empty axes for `draw`."""
        fig, axes = subplots(1, 3, figsize=(9.6, 3.2), layout="constrained")
        fig.alt = (
            f"A solve in {len(self.steps) - 1} steps: the moving image as warped so far, the fixed "
            f"one, and the error, from {self.errors[0]:.1f} to {self.errors[-1]:.1f} mm."
        )
        return fig, axes

    def draw(self, axes: Sequence[Axes], i: int) -> None:
        """The solve after i accepted steps."""
        for ax in axes:
            ax.clear()
        left, middle, right = axes
        scale, t, u = self.steps[i]
        warped = warp(self.pair.moving, u, self.pair.grid)
        show(left, cut(warped), f"warped, scale {scale + 1}, t = {t:.2f}")
        show(middle, cut(self.pair.fixed), "fixed")
        right.plot(self.times, self.errors, ".-", color=OURS, lw=1)
        right.plot(t, self.errors[i], "o", color=THEIRS)
        mark(right, self.handovers)
        right.set(xlabel="t", ylabel="RMSE(φ) / mm", ylim=(0, None))
        right.set_title(f"step {i} of {len(self.steps) - 1}")


def trajectory_animation(
    result: Registration, pair: Pair, transform: Transform | None = None
) -> Animation:
    """theta's path, one accepted step a frame."""
    trajectory = Trajectory(result, pair, transform)
    fig, axes = trajectory.figure()

    def frame(i: int) -> list:
        trajectory.draw(axes, i)
        return []

    return animate(fig, frame, len(trajectory.steps))


def scales_figure(result: Registration, pair: Pair, transform: Transform | None = None) -> Figure:
    """A row a scale: the fixed image there, the moving one as warped when the scale begins and
    when it ends, and what the true image differs by from either."""
    steps = path(result, pair, transform)
    starts = [next(i for i, s in enumerate(steps) if s[0] == k) for k in range(len(result.grids))]
    ends = [*starts[1:], len(steps) - 1]
    fig, axes = subplots(len(result.grids), 5, figsize=(10, 2.1 * len(result.grids)))
    heads = ("fixed", "warped, at first", "warped, at last", "residual, at first", "at last")
    for k, (row, grid) in enumerate(zip(axes, result.grids, strict=True)):
        begin, end = (warp(pair.moving, steps[i][2], pair.grid) for i in (starts[k], ends[k]))
        pictures = (pair.fixed, begin, end, begin - pair.true_image, end - pair.true_image)
        for j, (ax, picture, head) in enumerate(zip(row, pictures, heads, strict=True)):
            how = {"cmap": "PuOr", "vmin": -0.6, "vmax": 0.6} if j > 2 else {}
            show(ax, cut(averaged(picture, grid)), head if k == 0 else "", **how)
        name_row(row[0], f"{grid.spacing[0]:g} mm")
    fig.tight_layout(pad=0.3)
    fig.alt = (
        f"For grids of {', '.join(f'{grid.spacing[0]:g}' for grid in result.grids)} mm, a row "
        "each: the fixed slice, the moving one as the scale begins and ends, and what either "
        "differs by from the true image."
    )
    return fig


def theta_figure(result: Registration, truth: Tensor | None = None) -> Figure:
    """Angles and shifts over t, the scales' boundaries, and the truth dashed."""
    fig, axes = subplots(1, 2, figsize=(9, 3.2), layout="constrained")
    times = np.concatenate([segment.times for segment in result.segments])
    path = torch.cat(
        [torch.stack([s[0] for s in segment.states]) for segment in result.segments]
    ).cpu()
    for ax, part, scale, label in (
        (axes[0], slice(0, 3), 180 / np.pi, "rotation / °"),
        (axes[1], slice(3, 6), 1.0, "translation / mm"),
    ):
        for k, (values, colour) in enumerate(zip(path[:, part].T, LINES[:3], strict=True)):
            ax.plot(times, values * scale, ".-", color=colour, lw=1, label="xyz"[k])
            if truth is not None:
                ax.axhline(float(truth[0, part][k]) * scale, color=colour, ls="--", lw=0.8)
        mark(ax, [segment.times[0] for segment in result.segments[1:]])
        ax.set(xlabel="t", ylabel=label)
    fig.legend(*axes[0].get_legend_handles_labels(), title="axis", loc="outside right upper")
    fig.alt = (
        "Three angles and three translations over the ODE's time, through "
        f"{len(result.segments)} scales{'' if truth is None else ', with the true motion dashed'}."
    )
    return fig
