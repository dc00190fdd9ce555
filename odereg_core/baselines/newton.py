"""Gauss-Newton on self-similarity context: the step that f is told, taken as it is, with nothing
learned.

Not a row of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odereg_core.baselines.base import Outcome
from odereg_core.descriptor import REACH_MM, look, newton_step, newton_twist, shared
from odereg_core.grid import Grid
from odereg_core.msodenet import pyramid
from odereg_core.transforms import Dense, Rigid, compose
from odereg_core.warp import warp


@dataclass(frozen=True)
class Newton:
    """A rigid motion, a dense deformation, or the one and then the other, each from the identity.

    `rigid_steps` at each of `scales`, coarse to fine. `dense_steps` at each of the two finest, of
    neighbourhoods of sigma `reach_mm`: on coarser grids a deformation moves too little to be seen.
    """

    transforms: tuple[str, ...]
    rigid_steps: int = 10
    dense_steps: int = 5
    scales: int = 3
    reach_mm: float = REACH_MM

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
    ) -> Outcome:
        theta, nfe = Rigid().identity(len(moving), grid, moving.device), 0
        images = (pyramid(image, self.scales) for image in (moving, fixed))
        levels = list(zip(grid.pyramid(self.scales), *images, strict=True))
        for level, one, two in levels if "rigid" in self.transforms else ():
            known = look(two)
            for _ in range(self.rigid_steps):
                seen = look(warp(one, Rigid().displacement(theta, level), level))
                twist = newton_twist(seen, known, shared(seen, known), level)
                theta = theta + Rigid().rate(theta, twist)
            nfe += self.rigid_steps
        at, u = grid, Dense().identity(len(moving), grid, moving.device)
        for level, one, two in levels[-2:] if "dense" in self.transforms else ():
            known, voxel = look(two), u.new_tensor(level.spacing)[:, None, None, None]
            reach = self.reach_mm / max(level.spacing)
            at, u = level, Dense().resample(u, at, level)
            for _ in range(self.dense_steps):
                warped = warp(one, compose(Rigid(), theta, u, level), level)
                seen = look(warped)
                step = newton_step(seen, known, shared(seen, known), 2, reach)
                step = Dense().resample(step, level.coarsened(2), level)
                u = compose(Dense(), u, voxel * step, level)
            nfe += self.dense_steps
        return Outcome(compose(Rigid(), theta, u, grid), nfe=nfe)
