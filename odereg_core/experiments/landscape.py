"""How a similarity looks about alignment: its values as one image is turned or shifted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from tqdm.auto import tqdm

from odereg_core.cohort import Cohort
from odereg_core.grid import Grid
from odereg_core.motion import Motion, pair_generator
from odereg_core.pairs import PairKey, pair_keys
from odereg_core.similarity import Similarity
from odereg_core.transforms import Rigid
from odereg_core.warp import warp

DEGREES = (0, 1, 2, 3, 5, 7, 10, 15, 20, 30, 40)
MILLIMETRES = (0, 1, 2, 3, 5, 7, 10, 13, 16, 20)
WAYS = {"rotation": (DEGREES, np.deg2rad(1.0), 0), "shift": (MILLIMETRES, 1.0, 3)}
"""What is varied: offsets to either side, their unit in theta, and where its three axes begin."""
COLUMNS = ("subject", "moving", "fixed", "way", "axis")


def _moved(image: torch.Tensor, matrix: torch.Tensor, grid: Grid) -> torch.Tensor:
    u = Rigid().displacement(Rigid().from_matrix(matrix), grid)
    return warp(image, u.to(image.device), grid)


@torch.no_grad()
def landscape(
    measures: Mapping[str, Similarity],
    cohort: Cohort,
    keys: Sequence[PairKey],
    device: str = "cpu",
) -> pd.DataFrame:
    """Each measure at each offset of each pair: columns COLUMNS, offset (° or mm), measure, value.

    A pair is turned about one axis and shifted along one, which follow from its place in `keys`.
    Both images are first moved by the same few degrees and mm, so that both are interpolated at
    alignment and neither gains by lying on the voxels.
    """
    grid, index, rigid, rows = cohort.grid, cohort.contrasts.index, Rigid(), []
    small = Motion(rotation_deg=4.0, translation_mm=2.0)
    for place, key in enumerate(tqdm(keys, desc="landscape", unit="pair", mininterval=2.0)):
        subject = cohort.load(key.subject)
        rng = pair_generator(0, "landscape", key.subject, key.moving, key.fixed)
        base = rigid.matrix(small.draw(rng, grid).theta)
        moving, reference = (
            subject.images[index(c)][None, None].to(device) for c in (key.moving, key.fixed)
        )
        fixed = _moved(reference, base, grid)
        for way, (offsets, unit, begin) in WAYS.items():
            axis = (place + place // 3) % 3
            for offset in sorted({sign * o for o in offsets for sign in (-1, 1)}):
                theta = torch.zeros(1, 6)
                theta[0, begin + axis] = offset * unit
                warped = _moved(moving, base @ rigid.matrix(theta), grid)
                for name, measure in measures.items():
                    where = (key.subject, key.moving, key.fixed, way, "xyz"[axis])
                    rows.append((*where, offset, name, float(measure(warped, fixed))))
    return pd.DataFrame(rows, columns=[*COLUMNS, "offset", "measure", "value"])


def curves(table: pd.DataFrame) -> pd.DataFrame:
    """Quartiles over pairs of each measure, every pair's curve scaled to run from 0 to 1: columns
    way, measure, offset, low, median, high."""
    values = table.groupby([*COLUMNS, "measure"])["value"]
    least, most = (values.transform(end).to_numpy(float) for end in ("min", "max"))
    scaled = table.assign(value=(table["value"].to_numpy(float) - least) / (most - least))
    at = scaled.groupby(["way", "measure", "offset"], sort=False)["value"]
    quartiles = {"low": at.quantile(0.25), "median": at.median(), "high": at.quantile(0.75)}
    return pd.DataFrame(quartiles).reset_index()


def basins(table: pd.DataFrame) -> pd.DataFrame:
    """Each curve's lowest point and basin: columns COLUMNS, measure, minimum, basin.

    `minimum` is the offset of the lowest value; `basin` the largest offset such that the value
    rises all the way from the minimum to it, on the nearer side of alignment.
    """
    rows = []
    for key, curve in table.groupby([*COLUMNS, "measure"], sort=False):
        curve = curve.sort_values("offset")
        offsets, values = curve["offset"].to_numpy(), curve["value"].to_numpy()
        lowest = int(values.argmin())
        reach = []
        for step in (-1, 1):
            at = lowest
            while 0 <= at + step < len(values) and values[at + step] > values[at]:
                at += step
            reach.append(max(0, step * offsets[at]))
        rows.append((*key, offsets[lowest], min(reach)))
    return pd.DataFrame(rows, columns=[*COLUMNS, "measure", "minimum", "basin"])


def summary(found: pd.DataFrame, voxel_mm: float) -> pd.DataFrame:
    """A line a measure and way: the share of curves lowest within 2° or one voxel of alignment, the
    median basin, and the share of curves that are lowest there and whose basin is all that was
    looked at."""
    limit = np.where(found["way"] == "rotation", 2.0, voxel_mm)
    end = found["way"].map({way: max(offsets) for way, (offsets, *_) in WAYS.items()})
    within = found["minimum"].abs() <= limit
    home = within & (found["basin"] >= end)
    marked = found.assign(within=100.0 * within, home=100.0 * home)
    grouped = marked.groupby(["way", "measure"], sort=False)
    return pd.DataFrame(
        {
            "minimum within 2° / a voxel, %": grouped["within"].mean(),
            "median basin (° or mm)": grouped["basin"].median(),
            f"home from {max(DEGREES)}° / {max(MILLIMETRES)} mm, %": grouped["home"].mean(),
            "curves": grouped.size(),
        }
    )


def landscape_keys(cohort: Cohort, count: int = 0) -> list[PairKey]:
    """Test pairs to look at: all ordered contrast pairs, or a sample of `count`."""
    return pair_keys(cohort.names("test"), cohort.contrasts, "rigid", count)
