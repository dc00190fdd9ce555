"""Pull-back resampling in mm; the only caller of grid_sample, and the only place that knows its
order."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from odereg_core.grid import Grid


def voxels(points: Float[Tensor, "b 3 *n"], grid: Grid) -> Float[Tensor, "b 3 *n"]:
    """Continuous voxel indices on `grid` of points in mm."""
    shape = (1, 3, *(1,) * (points.ndim - 2))
    spacing = points.new_tensor(grid.spacing).reshape(shape)
    middle = points.new_tensor([(n - 1) / 2 for n in grid.shape]).reshape(shape)
    return points / spacing + middle


def sample(
    image: Float[Tensor, "b c x y z"],
    index: Float[Tensor, "b 3 i j k"],
    mode: Literal["linear", "nearest"] = "linear",
    outside: Literal["zero", "edge"] = "zero",
) -> Float[Tensor, "b c i j k"]:
    """The image at continuous voxel indices.

    Outside the image lie zeros or, with `outside="edge"`, its edge voxels; with zeros, the
    outermost
    half voxel fades to zero linearly.
    """
    # grid_sample wants (z, y, x), last, with [-1, 1] from edge to edge of the volume.
    sizes = image.shape[2:]
    place = torch.stack(
        [index[:, a] * (2 / sizes[a]) + (1 / sizes[a] - 1) for a in (2, 1, 0)], dim=-1
    )
    return _grid_sample(image, place, mode, outside)


def warp(
    image: Float[Tensor, "b c x y z"],
    displacement: Float[Tensor, "b 3 x y z"],
    grid: Grid,
    mode: Literal["linear", "nearest"] = "linear",
    outside: Literal["zero", "edge"] = "zero",
) -> Float[Tensor, "b c x y z"]:
    """x∘phi: the image at p + u(p) for every voxel p of `grid`, u in mm; `nearest` for labels.

    Coordinates are float32 or wider whatever autocast does; the result has the image's type.
    Raises ValueError where the image or the displacement does not lie on the grid.
    """
    for name, tensor in (("image", image), ("displacement", displacement)):
        if tuple(tensor.shape[2:]) != grid.shape:
            raise ValueError(
                f"{name} of {tuple(tensor.shape[2:])} voxels on a grid of {grid.shape}"
            )
    if displacement.dtype not in (torch.float32, torch.float64):
        displacement = displacement.float()
    axes = grid.axes(displacement.device, displacement.dtype)
    place = torch.stack(
        [
            # place = 2 (p + u) / extent, in one pass an axis
            torch.add(
                (axes[a] * (2 / grid.extent[a])).reshape([-1 if a == i else 1 for i in range(3)]),
                displacement[:, a],
                alpha=2 / grid.extent[a],
            )
            for a in (2, 1, 0)
        ],
        dim=-1,
    )
    return _grid_sample(image, place, mode, outside)


def _grid_sample(image: Tensor, place: Tensor, mode: str, outside: str) -> Tensor:
    with torch.autocast(image.device.type, enabled=False):
        result = F.grid_sample(
            image.to(place.dtype),
            place,
            mode="bilinear" if mode == "linear" else "nearest",
            padding_mode="zeros" if outside == "zero" else "border",
            align_corners=False,
        )
    return result.to(image.dtype)


def inside(displacement: Float[Tensor, "b 3 x y z"], grid: Grid) -> Bool[Tensor, "b 1 x y z"]:
    """Where phi(p) falls within the moving image's field of view: elsewhere a warp is padding."""
    points = grid.points(displacement.device, displacement.dtype) + displacement
    half = points.new_tensor(grid.extent).reshape(1, 3, 1, 1, 1) / 2
    return (points.abs() <= half).all(dim=1, keepdim=True)
