"""Content codes, style swaps, and the landscape of a similarity."""

from __future__ import annotations

import pandas as pd
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from odereg_core.cohort import Cohort
from odereg_core.experiments.figures.style import (
    GREEN,
    OURS,
    PINK,
    START,
    THEIRS,
    name_row,
    show,
    subplots,
    tumour_slice,
)
from odereg_core.networks.disentangle import Disentangler
from odereg_core.similarity import pad_to_multiple, stacks

MEASURES = {"content": OURS, "content, 1 slice": PINK, "MI": THEIRS, "MIND": GREEN}


def _stack(model: Disentangler, cohort: Cohort, name: str) -> torch.Tensor:
    """The stack about the tumour's largest axial slice, of every contrast."""
    subject = cohort.load(name)
    at = tumour_slice(subject.seg, subject.images.shape[1:])
    shown = stacks(subject.images[:, None], 2, torch.tensor([at]), model.slices)
    return pad_to_multiple(shown, model.downs)


@torch.no_grad()
def content_figure(model: Disentangler, cohort: Cohort, name: str, components: int = 3) -> Figure:
    """One slice in every contrast, and the principal components of its content codes, the same
    components for all contrasts."""
    images = _stack(model, cohort, name)
    codes = model.content(images)
    values = codes.permute(0, 2, 3, 1).reshape(-1, codes.shape[1])
    centred = values - values.mean(0)
    _, _, directions = torch.linalg.svd(centred, full_matrices=False)
    parts = (centred @ directions[:components].T).reshape(*codes.shape[:1], *codes.shape[2:], -1)
    fig, axes = subplots(
        1 + components,
        len(cohort.contrasts),
        figsize=(2 * len(cohort.contrasts), 2 * (1 + components)),
    )
    for column, contrast, image, part in zip(axes.T, cohort.contrasts, images, parts, strict=True):
        show(column[0], image[model.slices // 2].numpy().T, contrast)
        for k, ax in enumerate(column[1:]):
            limit = float(parts[..., k].abs().quantile(0.99))
            how = {"cmap": "PuOr", "vmin": -limit, "vmax": limit}
            show(ax, part[..., k].numpy().T, **how)
    for k, ax in enumerate(axes[1:, 0], 1):
        name_row(ax, f"content {k}")
    fig.tight_layout(pad=0.3)
    fig.alt = (
        f"One slice in {', '.join(cohort.contrasts)}; below each, {components} principal "
        "components of its content code."
    )
    return fig


@torch.no_grad()
def swap_figure(model: Disentangler, cohort: Cohort, name: str) -> Figure:
    """Each contrast's slice (left) with its own style and with each other contrast's: content
    down, style across."""
    images = _stack(model, cohort, name)
    m = len(cohort.contrasts)
    codes = model.code(torch.arange(m))
    content, style = model.content(images), model.style(images, codes)
    fig, axes = subplots(m, m + 1, figsize=(1.8 * (m + 1), 1.9 * m))
    for i, row in enumerate(axes):
        made = model.generator(content[i : i + 1].expand(m, -1, -1, -1), style, codes)
        show(row[0], images[i, model.slices // 2].numpy().T, "the slice" if i == 0 else "")
        name_row(row[0], cohort.contrasts[i])
        for j, ax in enumerate(row[1:]):
            title = f"as {cohort.contrasts[j]}" if i == 0 else ""
            show(ax, made[j, model.slices // 2].numpy().T, title)
            if i == j:
                ax.add_patch(Rectangle((0, 0), 1, 1, transform=ax.transAxes, fill=False,
                                           ec=OURS, lw=4))  # fmt: skip
    fig.tight_layout(pad=0.3)
    fig.alt = (
        f"A table of slices: content from {', '.join(cohort.contrasts)} down, style of the same "
        "contrasts across. The slice itself is on the left; its own style is framed."
    )
    return fig


def landscape_figure(curves: pd.DataFrame) -> Figure:
    """Each measure about alignment, from `landscape.curves`: the median, and the middle half of the
    pairs shaded. Left over rotations, right over shifts."""
    ways = list(dict.fromkeys(curves["way"]))
    fig, axes = subplots(
        1, len(ways), figsize=(4.6 * len(ways), 3.4), squeeze=False, layout="constrained"
    )
    for ax, way in zip(axes[0], ways, strict=True):
        for measure, rows in curves[curves["way"] == way].groupby("measure", sort=False):
            rows, colour = rows.set_index("offset").sort_index(), MEASURES.get(str(measure), START)
            ax.plot(rows["median"], color=colour, label=measure, lw=1.5)
            ax.fill_between(rows.index, rows["low"], rows["high"], color=colour, alpha=0.15, lw=0)
        ax.set(xlabel="rotation / °" if way == "rotation" else "shift / mm")
        ax.set(ylabel="dissimilarity, from 0 to 1")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    fig.legend(handles, labels, loc="outside upper center", ncols=len(labels))
    fig.alt = (
        f"Scaled dissimilarity against {' and '.join(ways)} away from alignment, for "
        f"{', '.join(dict.fromkeys(curves['measure']))}: median and middle half over pairs."
    )
    return fig
