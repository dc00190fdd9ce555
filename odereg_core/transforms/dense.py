"""One displacement vector a voxel."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.precision import full_precision
from odereg_core.transforms.base import Deformation
from odereg_core.warp import sample, voxels


class Dense(Deformation):
    """theta (B, 3, X, Y, Z) is u itself, in mm; linear in between voxels."""

    name = "dense"

    def identity(
        self,
        batch: int,
        grid: Grid,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b 3 x y z"]:
        return torch.zeros(batch, 3, *grid.shape, device=device, dtype=dtype)

    @full_precision
    def displacement(
        self, theta: Float[Tensor, "b 3 x y z"], grid: Grid
    ) -> Float[Tensor, "b 3 x y z"]:
        if tuple(theta.shape[2:]) != grid.shape:
            shape = tuple(theta.shape[2:])
            raise ValueError(f"a theta of {shape} voxels on a grid of {grid.shape}: resample it")
        return theta

    @full_precision
    def map(
        self, theta: Float[Tensor, "b 3 x y z"], points: Float[Tensor, "b 3 *n"], grid: Grid
    ) -> Float[Tensor, "b 3 *n"]:
        theta, batch = self.displacement(theta, grid), theta.shape[0]
        flat = points.expand(batch, *points.shape[1:]).reshape(batch, 3, -1, 1, 1)
        u = sample(theta, voxels(flat, grid), outside="edge")
        return points + u.reshape(batch, *points.shape[1:])

    def resample(
        self, theta: Float[Tensor, "b 3 x y z"], source: Grid, target: Grid
    ) -> Float[Tensor, "b 3 x2 y2 z2"]:
        if source.shape == target.shape:
            return theta
        # Both grids span one field of view edge to edge, which is what align_corners=False means.
        return F.interpolate(theta, size=target.shape, mode="trilinear", align_corners=False)

    def field(self, velocity: Tensor, grid: Grid) -> Float[Tensor, "b 3 x y z"]:
        return velocity
