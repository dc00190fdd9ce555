"""What the figures share: colours, slices of volumes, animations for pages without a kernel."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from cycler import cycler
from matplotlib.animation import FuncAnimation
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

# Of Okabe and Ito's colour-blind-safe palette.
OURS, THEIRS, START = "#0072B2", "#D55E00", "#999999"
LABEL_COLOURS = {1: "#E69F00", 2: "#56B4E9", 4: "#D55E00"}
GREEN, PINK, ORANGE = "#009E73", "#CC79A7", "#E69F00"
LINES = (OURS, THEIRS, GREEN, PINK, ORANGE)
"""The order in which a figure's lines take their colours."""
plt.rcParams.update(
    {
        "figure.dpi": 110,
        "font.size": 12,  # a figure is wider than a page's column, and shrinks to fit
        "figure.facecolor": "white",
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 12,
        "axes.prop_cycle": cycler(color=LINES),
        "legend.frameon": False,
        "legend.fontsize": 11,
    }
)


class Described(Figure):
    """A figure that is a sentence where it cannot be seen: `alt`.

    The sentence is its `repr`, so a notebook keeps it beside the picture, and book/assemble.py
    makes it the picture's alternative text.
    """

    alt = ""

    def __repr__(self) -> str:
        return self.alt or super().__repr__()


def subplots(*args: Any, **kwargs: Any) -> tuple[Described, Any]:
    """plt.subplots, for a figure that can be described."""
    return plt.subplots(*args, FigureClass=Described, **kwargs)  # type: ignore[return-value]


def tumour_slice(seg: Tensor | None, shape: Sequence[int]) -> int:
    """The axial slice with most tumour; the middle one of a volume without."""
    if seg is None or not seg.any():
        return shape[2] // 2
    return int((seg > 0).sum((0, 1)).argmax())


def cut(volume: Tensor, axis: int = 2, at: int | None = None) -> np.ndarray:
    """One slice of (…, X, Y, Z) as an image with x to the right: the head's right is on the right,
    as seen from above, where radiology has it on the left."""
    volume = volume.detach().reshape(volume.shape[-3:]).cpu()
    return volume.select(axis, volume.shape[axis] // 2 if at is None else at).numpy().T


def show(ax: Axes, picture: np.ndarray, title: str = "", **how: object) -> None:
    ax.imshow(picture, origin="lower", **({"cmap": "gray", "vmin": 0, "vmax": 1} | how))  # type: ignore[arg-type]
    ax.set_axis_off()
    if title:
        ax.set_title(title)


def name_row(ax: Axes, text: str) -> None:
    """Text upright at the left of a row's first picture."""
    ax.text(-0.04, 0.5, text, transform=ax.transAxes, rotation=90, ha="right", va="center")


def mark(ax: Axes, places: Sequence[float]) -> None:
    """Dotted lines where one scale or stage hands over to the next."""
    for place in places:
        ax.axvline(place, color=START, lw=0.8, ls=":")


class Animation(str):
    """HTML of an animation that plays in a page without a kernel or the network."""

    def _repr_html_(self) -> str:
        return str(self)

    def __repr__(self) -> str:
        return "<animation>"  # what a page keeps beside the HTML; not the HTML twice


def animate(fig: Described, frame: Callable[[int], list], count: int) -> Animation:
    """`count` frames as HTML; what `fig.alt` says describes them all."""
    fig.dpi = 80  # a page carries every frame
    html = FuncAnimation(fig, frame, frames=count, interval=300, blit=False).to_jshtml(
        default_mode="once"
    )
    plt.close(fig)
    # matplotlib takes its buttons' icons from a server; plain characters need none.
    html = re.sub(r"<link[^>]*font-awesome[^>]*>", "", html)
    icons = {
        "minus": "−", "fast-backward": "|◀", "step-backward": "◁", "play fa-flip-horizontal": "◀",
        "play": "▶", "pause": "❚❚", "step-forward": "▷", "fast-forward": "▶|", "plus": "+",
    }  # fmt: skip
    for name, character in icons.items():
        html = html.replace(f'<i class="fa fa-{name}"></i>', character)
    return Animation(html.replace("<img ", f'<img alt="{escape(fig.alt)}" ', 1))
