"""Figures of subjects and pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from odereg_core.cohort import CONTRASTS, Cohort, Subject
from odereg_core.experiments.figures.style import (
    LABEL_COLOURS,
    Animation,
    Described,
    animate,
    cut,
    name_row,
    show,
    subplots,
    tumour_slice,
)
from odereg_core.pairs import Pair
from odereg_core.warp import warp


def montage(cohort: Cohort, names: Sequence[str]) -> Figure:
    """Subjects down, contrasts across, at the slice with most tumour; the tumour's labels last."""
    contrasts = cohort.contrasts
    fig, axes = subplots(
        len(names),
        len(contrasts) + 1,
        figsize=(2 * len(contrasts) + 2, 2 * len(names)),
        squeeze=False,
    )
    heads = (*contrasts, "tumour")
    for row, name in zip(axes, names, strict=True):
        subject = cohort.load(name)
        at = tumour_slice(subject.seg, cohort.grid.shape)
        for ax, image in zip(row, subject.images, strict=False):
            show(ax, cut(image, at=at))
        show(row[-1], cut(subject.images[-1], at=at))
        if subject.seg is not None:
            seg = cut(subject.seg, at=at)
            for label, colour in LABEL_COLOURS.items():
                if (seg == label).any():
                    row[-1].contourf(seg == label, levels=[0.5, 1.5], colors=[colour], alpha=0.6)
        name_row(row[0], name[-3:])
    for ax, head in zip(axes[0], heads, strict=True):
        ax.set_title(head)
    fig.tight_layout(pad=0.2)
    fig.alt = (
        f"Axial slices of {len(names)} subjects, a row each, in {', '.join(contrasts)}, and the "
        "tumour's labels over the last contrast."
    )
    return fig


def pair_figure(
    pair: Pair, displacement: Tensor | None = None, title: str = "registered"
) -> Figure:
    """A pair: moving, fixed, the true image, and where given the registered one with its errors."""
    pictures = [("moving", pair.moving), ("fixed", pair.fixed), ("true image", pair.true_image)]
    if displacement is not None:
        warped = warp(pair.moving, displacement, pair.grid)
        pictures.append((f"{title}: {pair.error_mm(displacement):.1f} mm", warped))
    fig, axes = subplots(2, len(pictures), figsize=(2.4 * len(pictures), 4.4))
    for column, (name, image) in zip(axes.T, pictures, strict=True):
        show(column[0], cut(image), name)
        show(column[1], cut(image, axis=0))
    fig.tight_layout(pad=0.3)
    fig.alt = f"An axial and a sagittal slice of: {', '.join(name for name, _ in pictures)}."
    return fig


def draw_joint(axes: Sequence[Axes], subject: Subject, contrasts: tuple[int, int]) -> None:
    """Two contrasts of a subject, and how often each pair of their intensities occurs in the
    brain."""
    for ax in axes:
        ax.clear()
    pictures = [subject.images[k] for k in contrasts]
    for ax, k, picture in zip(axes[:2], contrasts, pictures, strict=True):
        show(ax, cut(picture), CONTRASTS[k])
    x, y = (picture[subject.mask].numpy() for picture in pictures)
    counts, *_ = np.histogram2d(x, y, bins=48, range=[[0, 1], [0, 1]])
    axes[2].imshow(np.log1p(counts).T, origin="lower", extent=(0, 1, 0, 1), cmap="viridis")
    one, two = (f"{CONTRASTS[k]} intensity" for k in contrasts)
    axes[2].set(xlabel=one, ylabel=two)
    axes[2].set_title("brain voxels, log(1 + count)")


def joint_figure() -> tuple[Described, Sequence[Axes]]:
    """Empty axes for `draw_joint`."""
    fig, axes = subplots(1, 3, figsize=(9, 3.8), layout="constrained")
    fig.alt = "A slice in two contrasts, and the joint histogram of their intensities in the brain."
    return fig, axes


def joint_animation(subject: Subject, pairs: Sequence[tuple[int, int]]) -> Animation:
    """One pair of contrasts after the other."""
    fig, axes = joint_figure()

    def frame(i: int) -> list:
        draw_joint(axes, subject, pairs[i])
        return []

    return animate(fig, frame, len(pairs))


def planes_figure(subject: Subject, contrast: int = 0) -> Figure:
    """The three middle planes of a volume."""
    fig, axes = subplots(1, 3, figsize=(8.4, 3), layout="constrained")
    for ax, axis, name in zip(axes, (2, 1, 0), ("axial", "coronal", "sagittal"), strict=True):
        show(ax, cut(subject.images[contrast], axis=axis), name)
    fig.alt = f"The middle axial, coronal and sagittal planes of a subject's {CONTRASTS[contrast]}."
    return fig
