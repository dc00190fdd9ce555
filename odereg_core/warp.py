"""Pull-back resampling in mm; the only caller of grid_sample, and the only place that knows its
order."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float
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
    outside: Literal["zero", "edge"] = "zero",
) -> Float[Tensor, "b c i j k"]:
    """The image at continuous voxel indices, linear in between.

    Outside the image lie zeros or, with `outside="edge"`, its edge voxels; with zeros, the
    outermost half voxel fades to zero linearly.
    """
    # grid_sample's coordinates run over [-1, 1] from edge to edge of the volume.
    sizes = index.new_tensor(image.shape[2:]).reshape(1, 3, 1, 1, 1)
    return _grid_sample(image, (index * 2 + 1) / sizes - 1, outside=outside)


def warp(
    image: Float[Tensor, "b c x y z"],
    displacement: Float[Tensor, "b 3 x y z"],
    grid: Grid,
    mode: Literal["linear", "nearest"] = "linear",
) -> Float[Tensor, "b c x y z"]:
    """x∘phi: the image at p + u(p) for every voxel p of `grid`, u in mm; `nearest` for labels.
    Outside the image lie zeros.

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
    x, y, z = grid.axes(displacement.device, displacement.dtype)
    if displacement.device.type != "cpu" or torch.is_grad_enabled():
        return _grid_sample(image, _place(displacement, (x, y, z), grid), mode)
    # A slab of planes at a time: on a CPU the coordinates of all voxels would be fresh memory, and
    # to get that takes longer than to fill it.
    planes = max(1, 2**21 * len(x) // displacement[:, 0].numel())
    warped, image = torch.empty_like(image), image.to(displacement.dtype)
    for part, u, some in zip(
        warped.split(planes, 2), displacement.split(planes, 2), x.split(planes), strict=True
    ):
        part.copy_(_grid_sample(image, _place(u, (some, y, z), grid), mode))
    return warped


def _place(
    displacement: Float[Tensor, "b 3 x y z"], axes: tuple[Tensor, Tensor, Tensor], grid: Grid
) -> Float[Tensor, "b 3 x y z"]:
    """2 (p + u) / extent: phi in grid_sample's units, [-1, 1] from edge to edge of the volume."""
    # Filled on the device: copying three numbers to a GPU would wait for all its work.
    scale = torch.cat([displacement.new_full((1, 1, 1, 1), 2 / e) for e in grid.extent])
    place = displacement * scale
    with torch.no_grad():  # p has no gradient, so it can be added in place
        for a, axis in enumerate(axes):
            place[:, a].add_(axis.reshape([-1 if a == i else 1 for i in range(3)]) * scale[a])
    return place


def _grid_sample(
    image: Float[Tensor, "b c x y z"],
    place: Float[Tensor, "b 3 i j k"],
    mode: str = "linear",
    outside: str = "zero",
) -> Float[Tensor, "b c i j k"]:
    # grid_sample calls an image's last axis its first, and wants coordinates last: views suffice.
    with torch.autocast(image.device.type, enabled=False):
        result = F.grid_sample(
            image.to(place.dtype).permute(0, 1, 4, 3, 2),
            place.permute(0, 2, 3, 4, 1),
            mode="bilinear" if mode == "linear" else "nearest",
            padding_mode="zeros" if outside == "zero" else "border",
            align_corners=False,
        )
    return result.to(image.dtype)


def averaged(image: Float[Tensor, "b c x y z"], grid: Grid) -> Float[Tensor, "b c _x _y _z"]:
    """Images averaged to a coarser grid of their pyramid; as they are on their own."""
    return F.avg_pool3d(image, image.shape[2] // grid.shape[0])
