"""What every parameterisation of a transform can do, and what the deformations among them share."""

from __future__ import annotations

from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid


class Transform(Protocol):
    """A family of maps phi_theta from points of the fixed grid to points of the moving image.

    All maps are pull-backs in mm: phi(p) = p + u(p), and theta = 0 is the identity. `grid`
    fixes the field of view that theta belongs to; theta of one field of view means the same map
    at every resolution.
    """

    name: str

    def identity(
        self,
        batch: int,
        grid: Grid,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Tensor:
        """theta of the identity, for a batch of maps: zeros of the family's shape."""
        ...

    def displacement(self, theta: Tensor, grid: Grid) -> Float[Tensor, "b 3 x y z"]:
        """u in mm at every voxel centre of `grid`."""
        ...

    def map(self, theta: Tensor, points: Tensor, grid: Grid) -> Float[Tensor, "b 3 *n"]:
        """phi(points), points and result in mm, shape (B or 1, 3, ...)."""
        ...

    def resample(self, theta: Tensor, source: Grid, target: Grid) -> Tensor:
        """theta for `target`, of the same map that `theta` is for `source` (the next scale)."""
        ...

    def unit(self, like: Tensor) -> Tensor:
        """The size of a typical large motion, by which theta is made dimensionless in L_self."""
        ...

    def rate(self, theta: Tensor, velocity: Tensor) -> Tensor:
        """d theta / dt for a velocity f that the dynamics network saw in the warped image."""
        ...

    def towards(self, theta: Tensor, target: Tensor) -> Tensor:
        """The constant velocity that takes theta to `target` in unit time (see `rate`)."""
        ...

    def field(self, velocity: Tensor, grid: Grid) -> Float[Tensor, "b 3 x y z"]:
        """How a velocity moves the points of the warped image, mm per unit time."""
        ...


class Deformation:
    """What the deformable transforms share: theta is in mm and lives in a vector space."""

    range_mm = 8.0
    """The deviation of section 3.2's control noise."""

    def unit(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.range_mm)

    def rate(self, theta: Tensor, velocity: Tensor) -> Tensor:
        return velocity

    def towards(self, theta: Tensor, target: Tensor) -> Tensor:
        return target - theta
