"""The warp against the plain grid_sample it calls, and against a memory copy of the same bytes."""

from __future__ import annotations

import statistics

import pandas as pd
import torch
import torch.nn.functional as F

from odereg_core.bench import COLUMNS, interleaved, ratio
from odereg_core.grid import Grid
from odereg_core.transforms import Rigid
from odereg_core.warp import warp

LIMIT = 1.3


@torch.no_grad()
def run(
    device: str = "cpu", shape: tuple[int, int, int] = (240, 240, 160), repetitions: int = 15
) -> pd.DataFrame:
    """Medians over interleaved repetitions, one image of `shape`, float32, linear."""
    grid = Grid(shape, (1.0, 1.0, 1.0))
    image = torch.rand(1, 1, *shape, device=device)
    theta = torch.tensor([[0.3, -0.2, 0.4, 5.0, -3.0, 2.0]], device=device)
    u = Rigid().displacement(theta, grid)
    # grid_sample's own order and units, built beforehand: (z, y, x), last, in [-1, 1].
    extent = u.new_tensor(grid.extent).reshape(1, 3, 1, 1, 1)
    place = ((grid.points(device) + u) * 2 / extent).flip(1).movedim(1, -1).contiguous()
    # The warp reads an image and three displacements and writes an image, 20 bytes a voxel: as much
    # as a copy of 10 bytes a voxel reads and writes.
    source = torch.rand(image.numel() * 10 // 4, device=device)
    target = torch.empty_like(source)

    def plain() -> torch.Tensor:
        return F.grid_sample(image, place, align_corners=False)

    difference = float((warp(image, u, grid) - plain()).abs().max())
    works = {
        "warp": lambda: warp(image, u, grid),
        "grid_sample": plain,
        "copy": lambda: target.copy_(source),
    }
    seconds = interleaved(works, repetitions, device)
    size = "×".join(map(str, shape))
    to_plain = ratio(seconds["warp"], seconds["grid_sample"])
    rows = [
        *(
            (f"{what}, {size}", 1e3 * statistics.median(seconds[name]), "ms", "", None)
            for name, what in (
                ("warp", "warp"),
                ("grid_sample", "grid_sample, grid already built"),
                ("copy", "memory copy of the same bytes"),
            )
        ),
        ("warp / grid_sample", to_plain, "", f"<= {LIMIT}", to_plain <= LIMIT),
        ("warp / copy", ratio(seconds["warp"], seconds["copy"]), "", "", None),
        ("largest difference of images", difference, "of [0, 1]", "< 1e-3", difference < 1e-3),
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=COLUMNS)
