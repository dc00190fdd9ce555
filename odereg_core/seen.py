"""What a model has seen, as numbers, and whether a registration lies outside it.

The numbers are kept in the metadata of the weights (see `odereg_core.train.calibrate`). A warning
is no verdict: a model may do well outside, and badly inside.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from odereg_core.errors import InputError
from odereg_core.files import load_metadata
from odereg_core.grid import Grid
from odereg_core.msodenet import Outer, Registration
from odereg_core.transforms import Rigid, Transform, compose

KEY = "seen"
"""Of the weights file's metadata."""
MARGIN = 0.25
"""How far past the range met, as a share of its width, is still inside."""

SENTENCES = {
    "litres": "holds {value:.2f} l that is not background, training {low:.2f} to {high:.2f} l",
    "mean": "has a mean brightness of {value:.2f}, training {low:.2f} to {high:.2f}",
    "spread": "has a contrast of {value:.2f}, training {low:.2f} to {high:.2f}",
    "roughness": "varies from voxel to voxel by {value:.2f} of its contrast, "
    "training {low:.2f} to {high:.2f}",
    "cut_cm2": "is cut off by its field of view over {value:.0f} cm², "
    "training by at most {high:.0f} cm²",
    "rotation_deg": "turns by {value:.0f}°, in training at most by {high:.0f}°",
    "translation_mm": "shifts by {value:.0f} mm, in training at most by {high:.0f} mm",
    "displacement_mm": "moves voxels by {value:.1f} mm, in training at most by {high:.1f} mm",
    "scales_mm": "was changed by its last scale by {value:.1f} mm, in training at most by "
    "{high:.1f} mm: the scales disagree",
    "content": "leaves the scans' contents {value:.2f} apart, in training at most {high:.2f} where "
    "it was right: it is probably lost, or the scans are not of one head",
}
LARGE_ONLY = {name for name, sentence in SENTENCES.items() if "{low" not in sentence}
"""Measures that are fine however small."""


def cut_cm2(inside: Bool[Tensor, "x y z"], spacing: Iterable[float]) -> float:
    """The area in cm² that touches the six faces of a field of view, `spacing` in mm."""
    sizes = list(spacing)
    area = 0.0
    for axis in range(3):
        faces = inside.select(axis, 0).sum() + inside.select(axis, -1).sum()
        area += float(faces) * math.prod(s for a, s in enumerate(sizes) if a != axis) / 100
    return area


def of_image(image: Float[Tensor, "1 1 x y z"], grid: Grid) -> dict[str, float]:
    """Measures of one image in [0, 1] on the model's grid: how large, how bright, how rough."""
    inside = image[0, 0] > 0
    values = image[0, 0][inside]
    spread = float(values.std())
    steps = []
    for axis in range(3):
        n = inside.shape[axis] - 1
        both = inside.narrow(axis, 0, n) & inside.narrow(axis, 1, n)
        steps.append(image[0, 0].diff(dim=axis)[both].abs())
    return {
        "litres": len(values) * math.prod(grid.spacing) / 1e6,
        "mean": float(values.mean()),
        "spread": spread,
        "roughness": float(torch.cat(steps).mean()) / max(spread, 1e-6),
        "cut_cm2": cut_cm2(inside, grid.spacing),
    }


def of_result(
    result: Registration,
    transform: Transform,
    inside: Bool[Tensor, "1 1 x y z"],
    outer: Outer | None = None,
) -> dict[str, float]:
    """Measures of one registration over the fixed image's foreground: how far, and how far the
    map after the last scale lies from that after the one before."""
    grid, theta = result.grids[-1], result.theta.detach()

    def field(theta: Tensor) -> Float[Tensor, "3 n"]:
        u = transform.displacement(theta, grid)
        return (compose(*outer, u, grid) if outer else u)[0][:, inside[0, 0]]

    last = field(theta)
    measures = {}
    if isinstance(transform, Rigid):
        measures["rotation_deg"] = math.degrees(float(theta[0, :3].abs().max()))
        measures["translation_mm"] = float(theta[0, 3:].abs().max())
    else:
        own = transform.displacement(theta, grid)[0][:, inside[0, 0]]
        measures["displacement_mm"] = float(own.norm(dim=0).quantile(0.99))
    if len(result.segments) > 1:
        before = transform.resample(result.segments[-2].theta.detach(), result.grids[-2], grid)
        measures["scales_mm"] = float((last - field(before)).square().sum(0).mean().sqrt())
    return measures


@dataclass(frozen=True)
class Seen:
    """The range of each measure over what a model was trained on, and where that comes from."""

    ranges: dict[str, tuple[float, float]]
    facts: dict[str, Any]

    @classmethod
    def gather(cls, measured: Iterable[Mapping[str, float]], facts: dict[str, Any]) -> Seen:
        """The ranges over many measurements."""
        rows: dict[str, list[float]] = {}
        for one in measured:
            for name, value in one.items():
                rows.setdefault(name, []).append(value)
        return cls({name: (min(values), max(values)) for name, values in rows.items()}, facts)

    def outside(self, measures: Mapping[str, float], what: str) -> list[str]:
        """A sentence for each measure of `what` that lies outside."""
        sentences = []
        for name, value in measures.items():
            if name not in self.ranges:
                continue
            low, high = self.ranges[name]
            margin = MARGIN * (high - low)
            if value > high + margin or (value < low - margin and name not in LARGE_ONLY):
                sentence = SENTENCES[name].format(value=value, low=low, high=high)
                skull = name == "litres" and value > high
                hint = " Is the skull still on? A brain mask takes it off." if skull else ""
                sentences.append(f"{what} {sentence}.{hint}")
        return sentences

    def dumps(self) -> str:
        """For the weights' metadata."""
        rounded = {k: [float(f"{v:.4g}") for v in pair] for k, pair in self.ranges.items()}
        return json.dumps(asdict(self) | {"ranges": rounded})

    @classmethod
    def loads(cls, text: str) -> Seen:
        """What `dumps` wrote. Raises ValueError, KeyError or TypeError for anything else."""
        content = json.loads(text)
        ranges = {k: (float(low), float(high)) for k, (low, high) in content["ranges"].items()}
        return cls(ranges, dict(content["facts"]))


def load_seen(weights: Path) -> Seen | None:
    """What the model of a weights file has seen; None where the file does not say.

    Raises InputError where it says so in a way that cannot be read.
    """
    text = load_metadata(weights).get(KEY)
    try:
        return None if text is None else Seen.loads(text)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{weights}: what its training saw cannot be read") from None
