"""The book's figures. Each takes data and returns a matplotlib figure or animation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from odereg_core.cohort import Cohort
from odereg_core.grid import Grid
from odereg_core.metrics import dice, rmse_phi
from odereg_core.msodenet import Registration
from odereg_core.pairs import Pair
from odereg_core.transforms import Rigid
from odereg_core.warp import warp

# Of Okabe and Ito's colour-blind-safe palette.
OURS, THEIRS, START = "#0072B2", "#D55E00", "#999999"
LABEL_COLOURS = {1: "#E69F00", 2: "#56B4E9", 4: "#D55E00"}
plt.rcParams.update({"figure.dpi": 96, "axes.spines.top": False, "axes.spines.right": False})


def _slice(volume: Tensor, axis: int = 2, at: int | None = None) -> np.ndarray:
    """One slice of (…, X, Y, Z) as an image with x to the right (radiology's left is not
    swapped)."""
    volume = volume.detach().reshape(volume.shape[-3:]).cpu()
    return volume.select(axis, volume.shape[axis] // 2 if at is None else at).numpy().T


def _show(ax: Axes, picture: np.ndarray, title: str = "", **how: object) -> None:
    ax.imshow(picture, origin="lower", **({"cmap": "gray", "vmin": 0, "vmax": 1} | how))  # type: ignore[arg-type]
    ax.set_axis_off()
    if title:
        ax.set_title(title, fontsize=9)


def _mark(ax: Axes, places: Sequence[float]) -> None:
    """Dotted lines where one scale or stage hands over to the next."""
    for place in places:
        ax.axvline(place, color=START, lw=0.8, ls=":")


def montage(cohort: Cohort, names: Sequence[str]) -> Figure:
    """Subjects down, contrasts across, at the slice with most tumour; the tumour's labels last."""
    contrasts = cohort.contrasts
    fig, axes = plt.subplots(
        len(names),
        len(contrasts) + 1,
        figsize=(2 * len(contrasts) + 2, 2 * len(names)),
        squeeze=False,
    )
    for row, name in zip(axes, names, strict=True):
        subject = cohort.load(name)
        at = cohort.grid.shape[2] // 2
        if subject.seg is not None and subject.seg.any():
            at = int((subject.seg > 0).sum((0, 1)).argmax())
        for ax, contrast, image in zip(row, contrasts, subject.images, strict=False):
            _show(ax, _slice(image, at=at), contrast if row is axes[0] else "")
        _show(row[-1], _slice(subject.images[-1], at=at), "tumour" if row is axes[0] else "")
        if subject.seg is not None:
            seg = _slice(subject.seg, at=at)
            for label, colour in LABEL_COLOURS.items():
                if (seg == label).any():
                    row[-1].contourf(seg == label, levels=[0.5, 1.5], colors=[colour], alpha=0.6)
        row[0].text(
            -0.08, 0.5, name[-3:], transform=row[0].transAxes, rotation=90, va="center", fontsize=8
        )
    fig.tight_layout(pad=0.2)
    return fig


def draw_grid(ax: Axes, displacement: Tensor, grid: Grid, every: int = 6) -> None:
    """Lines of the fixed grid's middle axial slice where phi takes them, in mm of the moving
    image."""
    place = (grid.points() + displacement.cpu())[0, :2, :, :, grid.shape[2] // 2].numpy()
    for line in place[:, ::every].transpose(1, 2, 0):
        ax.plot(*line.T, color=OURS, lw=0.6)
    for line in place[:, :, ::every].transpose(2, 1, 0):
        ax.plot(*line.T, color=OURS, lw=0.6)


def pair_figure(
    pair: Pair, displacement: Tensor | None = None, title: str = "registered"
) -> Figure:
    """A pair: moving, fixed, the true image, and where given the registered one with its errors."""
    pictures = [("moving", pair.moving), ("fixed", pair.fixed), ("true image", pair.true_image)]
    if displacement is not None:
        warped = warp(pair.moving, displacement, pair.grid)
        error = float(rmse_phi(displacement, pair.displacement, pair.brain))
        pictures.append((f"{title}: {error:.1f} mm", warped))
    fig, axes = plt.subplots(2, len(pictures), figsize=(2.4 * len(pictures), 4.4))
    for column, (name, image) in zip(axes.T, pictures, strict=True):
        _show(column[0], _slice(image), name)
        _show(column[1], _slice(image, axis=0))
    fig.tight_layout(pad=0.3)
    return fig


def motion_animation(
    image: Tensor, tumour: Tensor, grid: Grid, degrees: Sequence[float]
) -> Animation:
    """A rigid rotation about z in steps: the grid phi, the warped image, and what the metrics
    say."""
    fig, (left, right) = plt.subplots(1, 2, figsize=(7, 3.6))
    half = [extent / 2 for extent in grid.extent]

    def frame(i: int) -> list:
        theta = torch.tensor([[0.0, 0.0, np.deg2rad(degrees[i]), 0.0, 0.0, 0.0]])
        u = Rigid().displacement(theta, grid)
        brain = image > 0
        overlap = dice(warp(tumour.float(), u, grid, mode="nearest") > 0.5, tumour > 0)
        error = rmse_phi(u, torch.zeros_like(u), brain)
        left.clear()
        right.clear()
        left.imshow(
            _slice(image),
            cmap="gray",
            origin="lower",
            extent=(-half[0], half[0], -half[1], half[1]),
        )
        draw_grid(left, u, grid, every=max(2, grid.shape[0] // 14))
        left.set(
            xlim=(-half[0], half[0]),
            ylim=(-half[1], half[1]),
            title="where φ looks, in the moving image",
        )
        left.set_axis_off()
        _show(
            right,
            _slice(warp(image, u, grid)),
            f"{degrees[i]:+.0f}°: Dice {float(overlap):.2f}, RMSE(φ) {float(error):.1f} mm",
        )
        return []

    return _animate(fig, frame, len(degrees))


class Animation(str):
    """HTML of an animation that plays in a page without a kernel or the network."""

    def _repr_html_(self) -> str:
        return str(self)


def _animate(fig: Figure, frame: Callable[[int], list], count: int) -> Animation:
    html = FuncAnimation(fig, frame, frames=count, interval=300, blit=False).to_jshtml(
        default_mode="once"
    )
    plt.close(fig)
    # matplotlib takes its buttons' icons from a server; plain characters need none.
    html = re.sub(r"<link[^>]*font-awesome[^>]*>", "", html)
    icons = {
        "minus": "−", "fast-backward": "⏮", "step-backward": "◁", "play fa-flip-horizontal": "◀",
        "play": "▶", "pause": "⏸", "step-forward": "▷", "fast-forward": "⏭", "plus": "+",
    }  # fmt: skip
    for name, character in icons.items():
        html = html.replace(f'<i class="fa fa-{name}"></i>', character)
    return Animation(html)


def trajectory_animation(result: Registration, pair: Pair) -> Animation:
    """theta's path, one accepted step a frame: the moving image as warped so far over the fixed
    one."""
    steps = [
        (scale, t, theta)
        for scale, segment in enumerate(result.segments)
        for t, theta in zip(segment.times[:-1], segment.states[:-1], strict=True)
    ]
    last = result.segments[-1]
    steps.append((len(result.segments) - 1, last.times[-1], last.states[-1]))
    fields = [Rigid().displacement(theta[:1].cpu(), pair.grid) for _, _, theta in steps]
    errors = [float(rmse_phi(u, pair.displacement, pair.brain)) for u in fields]
    times = [t for _, t, _ in steps]
    fig, (left, middle, right) = plt.subplots(1, 3, figsize=(9.6, 3.4))

    def frame(i: int) -> list:
        for ax in (left, middle, right):
            ax.clear()
        scale, t, _ = steps[i]
        _show(
            left,
            _slice(warp(pair.moving, fields[i], pair.grid)),
            f"warped, scale {scale + 1}, t = {t:.2f}",
        )
        _show(middle, _slice(pair.fixed), "fixed")
        right.plot(times, errors, ".-", color=OURS, lw=1)
        right.plot(times[i], errors[i], "o", color=THEIRS)
        _mark(right, [segment.times[0] for segment in result.segments[1:]])
        right.set(
            xlabel="t", ylabel="RMSE(φ) / mm", ylim=(0, None), title=f"step {i} of {len(steps) - 1}"
        )
        right.title.set_fontsize(9)
        return []

    return _animate(fig, frame, len(steps))


def theta_figure(result: Registration, truth: Tensor | None = None) -> Figure:
    """Angles and shifts over t, the scales' boundaries, and the truth dashed."""
    fig, axes = plt.subplots(1, 2, figsize=(9, 3))
    times = np.concatenate([segment.times for segment in result.segments])
    path = torch.cat(
        [torch.stack([s[0] for s in segment.states]) for segment in result.segments]
    ).cpu()
    for ax, part, scale, label in (
        (axes[0], slice(0, 3), 180 / np.pi, "rotation / °"),
        (axes[1], slice(3, 6), 1.0, "translation / mm"),
    ):
        for k, (values, colour) in enumerate(
            zip(path[:, part].T, (OURS, THEIRS, "#009E73"), strict=True)
        ):
            ax.plot(times, values * scale, ".-", color=colour, lw=1, label="xyz"[k])
            if truth is not None:
                ax.axhline(float(truth[0, part][k]) * scale, color=colour, ls="--", lw=0.8)
        _mark(ax, [segment.times[0] for segment in result.segments[1:]])
        ax.set(xlabel="t", ylabel=label)
    axes[0].legend(frameon=False, title="axis")
    fig.tight_layout()
    return fig


def training_figure(curve: Sequence[Sequence[float]], stages: Sequence[int] = ()) -> Figure:
    """RMSE(phi) on the validation pairs as training went on; stages' ends dotted."""
    steps, errors = zip(*curve, strict=True)
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.plot(steps, errors, ".-", color=OURS)
    _mark(ax, stages)
    ax.set(xlabel="step", ylabel="RMSE(φ) / mm, validation", ylim=(0, None))
    fig.tight_layout()
    return fig


def error_figure(results: pd.DataFrame, names: dict[str, str]) -> Figure:
    """Each pair's error against the size of its motion, a colour a method; success is below the
    line."""
    fig, ax = plt.subplots(figsize=(7, 3.4))
    colours = dict(zip(names, (START, THEIRS, OURS, "#009E73", "#CC79A7"), strict=False))
    for method, rows in results.groupby("method", sort=False):
        ax.scatter(
            rows.start_mm,
            rows.rmse_phi_mm.clip(lower=1e-2),
            s=14,
            color=colours[method],
            label=names[method],
        )
    ax.set(xlabel="RMSE(φ) before registration / mm", ylabel="after / mm", yscale="log")
    ax.legend(frameon=False, fontsize=8)
    fig.tight_layout()
    return fig
