"""MS-ODENet: registration as one ODE, solved from the coarsest scale to the finest (section
2.1)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odereg_core.grid import Grid
from odereg_core.networks import DYNAMICS
from odereg_core.ode import Solution, Solver, integrate
from odereg_core.ode.integrate import Adjoint
from odereg_core.transforms import TRANSFORMS, Transform
from odereg_core.warp import warp


@dataclass
class Registration:
    """theta_T, the segments it came through (coarse to fine), and their grids."""

    theta: Tensor
    segments: list[Solution]
    grids: list[Grid]

    @property
    def nfe(self) -> int:
        """Evaluations of f, over all scales."""
        return sum(segment.nfe for segment in self.segments)


def pyramid(image: Float[Tensor, "b c x y z"], scales: int) -> list[Float[Tensor, "b c _x _y _z"]]:
    """The image at `scales` resolutions, coarse to fine, each the mean of 2^3 voxels of the
    next."""
    levels = [image]
    for _ in range(scales - 1):
        levels.append(F.avg_pool3d(levels[-1], 2))
    return levels[::-1]


class _Dynamics(nn.Module):
    """f of Eq. 3 in theta's own units: warp, ask the network, return d theta/dt / unit."""

    def __init__(self, network: nn.Module, transform: Transform, grid: Grid):
        super().__init__()
        self.network, self.transform, self.grid = network, transform, grid

    def forward(self, t: Tensor, state: Tensor, moving: Tensor, fixed: Tensor) -> Tensor:
        unit = self.transform.unit(state)
        theta = state * unit
        warped = warp(moving, self.transform.displacement(theta, self.grid), self.grid)
        velocity = self.network(warped, fixed, t).to(theta.dtype) * unit
        return self.transform.rate(theta, velocity) / unit


class MSODENet(nn.Module):
    """L scales, L congruent segments of [0, T], one network and one solver a scale (Eq. 3).

    The state of the ODE is theta in units of its range (75°, 20 mm, 8 mm), so that an adaptive
    solver's tolerance means the same for an angle and a shift. `solvers` are written as in the
    paper and
    their number is L; one solver makes the single-scale model (Fig. 4b).
    """

    def __init__(
        self,
        transform: str,
        grid: Grid,
        solvers: Sequence[str],
        time: float = 3.0,
        adjoint: Adjoint = "aca",
        budget: int = 1000,
        **network: int,
    ):
        super().__init__()
        self.transform: Transform = TRANSFORMS[transform]()
        self.solvers = [Solver.parse(s) for s in solvers]
        self.time, self.adjoint, self.budget = time, adjoint, budget
        self.grids = grid.pyramid(len(self.solvers))
        self.network_options = network
        self.networks = nn.ModuleList(DYNAMICS[transform](g, **network) for g in self.grids)

    @property
    def scales(self) -> int:
        return len(self.solvers)

    def forward(
        self,
        moving: Float[Tensor, "b 1 x y z"],
        fixed: Float[Tensor, "b 1 x y z"],
        scales: int | None = None,
        trajectory: bool = False,
    ) -> Registration:
        """Register a batch of images in [0, 1] on the model's grid.

        `scales`: stop after so many of the coarsest scales; the images then are on that scale's
        grid
        (a coarse model is trained before the finer ones). Raises ValueError where the images do not
        lie on the grid and SolverError where a segment does not end.
        """
        scales = scales or self.scales
        finest = self.grids[scales - 1]
        for name, image in (("moving", moving), ("fixed", fixed)):
            if tuple(image.shape[2:]) != finest.shape:
                shape = tuple(image.shape[2:])
                raise ValueError(f"{name} image of {shape} voxels on a grid of {finest.shape}")
        theta = self.transform.identity(len(moving), self.grids[0], moving.device)
        unit = self.transform.unit(theta)
        levels = zip(pyramid(moving, scales), pyramid(fixed, scales), strict=True)
        segments: list[Solution] = []
        length = self.time / self.scales
        for i, (level_moving, level_fixed) in enumerate(levels):
            if i:
                theta = self.transform.resample(theta, self.grids[i - 1], self.grids[i])
            solution = integrate(
                _Dynamics(self.networks[i], self.transform, self.grids[i]),
                theta / unit,
                i * length,
                (i + 1) * length,
                solver=self.solvers[i],
                adjoint=self.adjoint,
                args=(level_moving, level_fixed),
                trajectory=trajectory,
                budget=self.budget,
                label=f"segment {i + 1} of {self.scales}",
            )
            theta = solution.theta = solution.theta * unit
            solution.states = [state * unit for state in solution.states]
            segments.append(solution)
        return Registration(theta, segments, self.grids[:scales])

    def displacement(self, result: Registration) -> Float[Tensor, "b 3 x y z"]:
        """u of theta_T in mm on the finest grid that was registered."""
        return self.transform.displacement(result.theta, result.grids[-1])
