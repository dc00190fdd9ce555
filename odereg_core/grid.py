"""Sampling grids: where the voxels of a volume lie, in millimetres.

World coordinates are RAS+ millimetres about the grid's centre, so that a rotation about
the origin is a rotation about the centre of the field of view. Axes are in the NIfTI's
own order: a volume on `Grid((nx, ny, nz))` is a tensor (B, C, nx, ny, nz).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class Grid:
    """A regular grid of `shape` voxels, `spacing` mm apart, centred on the origin."""

    shape: tuple[int, int, int]
    spacing: tuple[float, float, float]

    def __post_init__(self) -> None:
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"a grid has three positive sizes, got {self.shape}")
        if len(self.spacing) != 3 or not min(self.spacing) > 0:
            raise ValueError(f"a grid has three positive spacings in mm, got {self.spacing}")
        object.__setattr__(self, "shape", tuple(int(n) for n in self.shape))
        object.__setattr__(self, "spacing", tuple(float(s) for s in self.spacing))

    @property
    def extent(self) -> tuple[float, float, float]:
        """Edge-to-edge size of the field of view in mm."""
        return tuple(n * s for n, s in zip(self.shape, self.spacing, strict=True))  # type: ignore[return-value]

    @property
    def affine(self) -> NDArray[np.float64]:
        """Voxel indices to mm about the centre, (4, 4)."""
        affine = np.diag([*self.spacing, 1.0])
        affine[:3, 3] = [-(n - 1) / 2 * s for n, s in zip(self.shape, self.spacing, strict=True)]
        return affine

    def axes(
        self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Voxel-centre coordinates along x, y and z, in mm; every caller's are the same tensors."""
        return _axes(self, device, dtype)

    def points(
        self, device: torch.device | str | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "1 3 x y z"]:
        """World coordinates of every voxel centre, in mm."""
        return torch.stack(torch.meshgrid(*self.axes(device, dtype), indexing="ij"))[None]

    def coarsened(self, factor: int) -> Grid:
        """The grid of the same field of view with voxels `factor` times larger.

        Raises ValueError where a size is not divisible by the factor.
        """
        if any(n % factor for n in self.shape):
            raise ValueError(f"grid {self.shape} cannot be coarsened by {factor}: not divisible")
        return Grid(
            tuple(n // factor for n in self.shape),  # type: ignore[arg-type]
            tuple(s * factor for s in self.spacing),  # type: ignore[arg-type]
        )

    def pyramid(self, scales: int) -> list[Grid]:
        """`scales` grids from coarse to fine, a factor 2 apart; the last is this one (section
        2.1)."""
        return [self.coarsened(2**k) for k in reversed(range(scales))]


@lru_cache(maxsize=64)
def _axes(
    grid: Grid, device: torch.device | str | None, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """Made once: a solve asks for them in every evaluation of f, a few microseconds each time."""
    with torch.inference_mode(False):  # whoever asks first, a later one may want gradients
        return tuple(  # type: ignore[return-value]
            (torch.arange(n, device=device, dtype=dtype) - (n - 1) / 2) * s
            for n, s in zip(grid.shape, grid.spacing, strict=True)
        )
