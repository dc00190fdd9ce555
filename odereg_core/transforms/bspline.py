"""Free-form deformation: cubic B-splines on a grid of control points (Rueckert et al. 1999)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from scipy.ndimage import map_coordinates
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.precision import full_precision
from odereg_core.transforms.base import Deformation


def cubic_bspline(r: Tensor) -> Tensor:
    """The cubic B-spline basis function beta_3 at distance `r`, in control spacings."""
    r = r.abs()
    inner = 2 / 3 - r**2 + r**3 / 2
    outer = (2 - r).clamp_min(0) ** 3 / 6
    return torch.where(r < 1, inner, outer)


@dataclass(frozen=True)
class BSpline(Deformation):
    """u = sum of control displacements times cubic basis functions.

    theta (B, 3, nx, ny, nz): control displacements in mm, `spacing` mm apart on all axes. The
    control grid is centred on the field of view and reaches past its edges, so every point has its
    4^3 controls; it depends on the field of view alone, hence theta is the same at all scales.
    `offset` (mm, within ± spacing/2) moves the control grid: section 3.2's simulated motion draws
    one, so that its controls do not coincide with any model's.
    """

    spacing: float = 20.0
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)

    name = "bspline"

    def __post_init__(self) -> None:
        if not self.spacing > 0:
            raise ValueError(f"control spacing must be positive, got {self.spacing} mm")
        if max(abs(o) for o in self.offset) > self.spacing / 2:
            raise ValueError(
                f"offset {self.offset} mm exceeds half the spacing of {self.spacing} mm"
            )

    def control_grid(self, grid: Grid) -> Grid:
        """The control points as a grid, about the same centre less `offset`."""
        return Grid(self.control_shape(grid), (self.spacing,) * 3)

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

    @full_precision
    def displacement(
        self, theta: Float[Tensor, "b 3 nx ny nz"], grid: Grid
    ) -> Float[Tensor, "b 3 x y z"]:
        return self._on(theta, grid.axes(theta.device, theta.dtype))

    def _on(
        self, theta: Float[Tensor, "b 3 nx ny nz"], axes: tuple[Tensor, Tensor, Tensor]
    ) -> Float[Tensor, "b 3 x y z"]:
        """u in mm at all points whose coordinates are of these axes."""
        u = theta
        # The basis is a product of three, so each axis is one small matrix product.
        for axis, (points, offset) in enumerate(zip(axes, self.offset, strict=True), start=2):
            n = theta.shape[axis]
            controls = torch.arange(n).to(theta) - (n - 1) / 2
            weights = cubic_bspline((points[:, None] - offset) / self.spacing - controls)
            u = torch.tensordot(u, weights, dims=([2], [1]))  # consumes axis 2, appends its result
        return u

    @full_precision
    def map(
        self, theta: Float[Tensor, "b 3 nx ny nz"], points: Float[Tensor, "b 3 *n"], grid: Grid
    ) -> Float[Tensor, "b 3 *n"]:
        if axes := _axes(points):  # ten times as fast again
            return points + self._on(theta.to(points), axes)
        batch, shape = theta.shape[0], theta.shape[2:]
        flat = points.expand(batch, *points.shape[1:]).flatten(2)
        index = torch.stack(
            [(flat[:, a] - self.offset[a]) / self.spacing + (shape[a] - 1) / 2 for a in range(3)],
            1,
        )
        differentiable = torch.is_grad_enabled() and (theta.requires_grad or points.requires_grad)
        evaluate = _evaluate if differentiable or theta.is_cuda else _evaluate_fast
        return points + evaluate(theta, index).unflatten(2, points.shape[2:])

    def resample(self, theta: Tensor, source: Grid, target: Grid) -> Tensor:
        return theta

    def field(self, velocity: Tensor, grid: Grid) -> Float[Tensor, "b 3 x y z"]:
        return self.displacement(velocity, grid)


def _axes(points: Float[Tensor, "b 3 *n"]) -> tuple[Tensor, Tensor, Tensor] | None:
    """The coordinates along x, y and z of points that are a grid along the axes, else None."""
    if points.ndim != 5 or len(points) != 1 or points.requires_grad:
        return None
    x, y, z = points[0, 0, :, 0, 0], points[0, 1, 0, :, 0], points[0, 2, 0, 0, :]
    regular = torch.stack(torch.meshgrid(x, y, z, indexing="ij"))[None]
    return (x, y, z) if torch.equal(points, regular) else None


def _evaluate(theta: Tensor, index: Float[Tensor, "b 3 n"]) -> Float[Tensor, "b 3 n"]:
    """The spline at continuous indices of the control grid; beyond that grid controls are zero."""
    shape, first = theta.shape[2:], index.floor().long() - 1
    controls = theta.flatten(2)
    weights = [[cubic_bspline(index[:, a] - first[:, a] - k) for k in range(4)] for a in range(3)]
    u = torch.zeros_like(index)
    for corner in torch.cartesian_prod(*[torch.arange(4)] * 3).tolist():
        at = [first[:, a] + corner[a] for a in range(3)]
        inside = math.prod(((at[a] >= 0) & (at[a] < shape[a])) for a in range(3))
        i, j, k = (at[a].clamp(0, shape[a] - 1) for a in range(3))
        linear = (i * shape[1] + j) * shape[2] + k
        value = controls.gather(2, linear[:, None].expand(-1, 3, -1))
        weight = math.prod(weights[a][corner[a]] for a in range(3))
        u = u + value * (weight * inside)[:, None]
    return u


def _evaluate_fast(theta: Tensor, index: Float[Tensor, "b 3 n"]) -> Float[Tensor, "b 3 n"]:
    """The same without a graph on the CPU, by SciPy: ten times as fast on a whole volume."""
    rows = [
        [
            map_coordinates(component, where, order=3, prefilter=False, mode="grid-constant")
            for component in controls
        ]
        for controls, where in zip(theta.detach().numpy(), index.detach().numpy(), strict=True)
    ]
    return torch.from_numpy(np.array(rows)).to(theta)
