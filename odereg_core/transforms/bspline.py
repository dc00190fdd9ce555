"""Free-form deformation: cubic B-splines on a grid of control points (Rueckert et al. 1999)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid


def cubic_bspline(r: Tensor) -> Tensor:
    """The cubic B-spline basis function beta_3 at distance `r`, in control spacings."""
    r = r.abs()
    inner = 2 / 3 - r**2 + r**3 / 2
    outer = (2 - r).clamp_min(0) ** 3 / 6
    return torch.where(r < 1, inner, outer)


@dataclass(frozen=True)
class BSpline:
    """u = sum of control displacements times cubic basis functions.

    theta (B, 3, nx, ny, nz): control displacements in mm, `spacing` mm apart on all axes. The
    control grid is centred on the field of view and reaches past its edges, so every point has its
    4^3 controls; it depends on the field of view alone, hence theta is the same at all scales.
    `offset` (mm, within ± spacing/2) moves the control grid: section 3.2's simulated motion
    draws one,
    so that its controls do not coincide with any model's.
    """

    spacing: float = 20.0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    name = "bspline"
    range_mm = 8.0

    def __post_init__(self) -> None:
        if not self.spacing > 0:
            raise ValueError(f"control spacing must be positive, got {self.spacing} mm")
        if max(abs(o) for o in self.offset) > self.spacing / 2:
            raise ValueError(
                f"offset {self.offset} mm exceeds half the spacing of {self.spacing} mm"
            )

    def control_shape(self, grid: Grid) -> tuple[int, int, int]:
        """Number of control points along each axis."""
        margin = 4 if any(self.offset) else 3
        return tuple(math.ceil(e / self.spacing - 1e-6) + margin for e in grid.extent)  # type: ignore[return-value]

    def identity(
        self,
        batch: int,
        grid: Grid,
        device: torch.device | str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> Float[Tensor, "b 3 nx ny nz"]:
        return torch.zeros(batch, 3, *self.control_shape(grid), device=device, dtype=dtype)

    def displacement(
        self, theta: Float[Tensor, "b 3 nx ny nz"], grid: Grid
    ) -> Float[Tensor, "b 3 x y z"]:
        u = theta
        # The basis is a product of three, so each axis is one small matrix product.
        for axis, (points, offset) in enumerate(
            zip(grid.axes(theta.device, theta.dtype), self.offset, strict=True), start=2
        ):
            n = theta.shape[axis]
            controls = torch.arange(n).to(theta) - (n - 1) / 2
            weights = cubic_bspline((points[:, None] - offset) / self.spacing - controls)
            u = torch.tensordot(u, weights, dims=([2], [1]))  # consumes axis 2, appends its result
        return u

    def map(
        self, theta: Float[Tensor, "b 3 nx ny nz"], points: Float[Tensor, "b 3 *n"], grid: Grid
    ) -> Float[Tensor, "b 3 *n"]:
        batch, shape = theta.shape[0], theta.shape[2:]
        flat = points.expand(batch, *points.shape[1:]).flatten(2)
        index = torch.stack(
            [(flat[:, a] - self.offset[a]) / self.spacing + (shape[a] - 1) / 2 for a in range(3)],
            1,
        )
        first = index.floor().long() - 1
        controls = theta.flatten(2)
        u = torch.zeros_like(flat)
        for corner in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist():
            at = [first[:, a] + corner[a] for a in range(3)]
            weight = math.prod(cubic_bspline(index[:, a] - at[a]) for a in range(3))
            # Beyond the control grid the spline is zero, as its padding would be.
            inside = math.prod(((at[a] >= 0) & (at[a] < shape[a])) for a in range(3))
            i, j, k = (at[a].clamp(0, shape[a] - 1) for a in range(3))
            linear = (i * shape[1] + j) * shape[2] + k
            value = controls.gather(2, linear[:, None].expand(-1, 3, -1))
            u = u + value * (weight * inside)[:, None]
        return points + u.unflatten(2, points.shape[2:])

    def resample(self, theta: Tensor, source: Grid, target: Grid) -> Tensor:
        return theta

    def unit(self, like: Tensor) -> Tensor:
        return like.new_tensor(self.range_mm)

    def rate(self, theta: Tensor, velocity: Tensor) -> Tensor:
        return velocity
