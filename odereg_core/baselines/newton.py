"""Gauss-Newton on MIND [13]: the step that f is told, taken as it is, with nothing learned.

Not a row of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odereg_core.baselines.base import Outcome
from odereg_core.descriptor import REACH_MM, looks, newton_step, newton_twist
from odereg_core.grid import Grid
from odereg_core.msodenet import pyramid
from odereg_core.transforms import Dense, Rigid, compose
from odereg_core.warp import warp


@dataclass(frozen=True)
class Newton:
    """A rigid motion, a dense deformation, or the one and then the other, each from the identity.

    `rigid_steps` at each of `scales`, coarse to fine. `dense_steps` at the finest alone, each of
    neighbourhoods of sigma `reach_mm`: on coarser grids MIND tells less than a deformation moves.
    """

    transforms: tuple[str, ...]
    rigid_steps: int = 10
    dense_steps: int = 8
    scales: int = 3
    reach_mm: float = REACH_MM

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
    ) -> Outcome:
        theta, nfe = Rigid().identity(len(moving), grid, moving.device), 0
        if "rigid" in self.transforms:
            images = (pyramid(image, self.scales) for image in (moving, fixed))
            for level, one, two in zip(grid.pyramid(self.scales), *images, strict=True):
                for _ in range(self.rigid_steps):
                    warped = warp(one, Rigid().displacement(theta, level), level)
                    twist = newton_twist(*looks(warped, two), level)
                    theta = theta + Rigid().rate(theta, twist)
            nfe += self.rigid_steps * self.scales
        u = Dense().identity(len(moving), grid, moving.device)
        if "dense" in self.transforms:
            voxel = u.new_tensor(grid.spacing)[:, None, None, None]
            for _ in range(self.dense_steps):
                warped = warp(moving, compose(Rigid(), theta, u, grid), grid)
                step = newton_step(*looks(warped, fixed), 2, self.reach_mm / max(grid.spacing))
                step = Dense().resample(step, grid.coarsened(2), grid)
                u = compose(Dense(), u, voxel * step, grid)
            nfe += self.dense_steps
        return Outcome(compose(Rigid(), theta, u, grid), nfe=nfe)
