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
from odereg_core.transforms import TRANSFORMS, Rigid, Transform, compose
from odereg_core.warp import warp

Outer = tuple[Transform, Tensor]
"""A transform and its theta: the map of an earlier stage of a cascade."""


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


class Dynamics(nn.Module):
    """f of Eq. 3 in theta's own units: warp, ask the network, return d theta/dt / unit."""

    def __init__(
        self,
        network: nn.Module,
        transform: Transform,
        grid: Grid,
        gain: float = 1.0,
        outer: Outer | None = None,
    ):
        super().__init__()
        self.network, self.transform, self.grid = network, transform, grid
        self.gain, self.outer = gain, outer

    def forward(
        self, t: Tensor, state: Tensor, moving: Tensor, fixed: Tensor, *known: Tensor
    ) -> Tensor:
        unit = self.transform.unit(state)
        theta = state * unit
        u = self.transform.displacement(theta, self.grid)
        if self.outer:
            u = compose(*self.outer, u, self.grid)
        warped = warp(moving, u, self.grid)
        velocity = self.network(warped, fixed, t, *known).to(theta.dtype) * (self.gain * unit)
        return self.transform.rate(theta, velocity) / unit


class MSODENet(nn.Module):
    """L scales, L congruent segments of [0, T], one network and one solver a scale (Eq. 3).

    The state of the ODE is theta in units of its range (75°, 20 mm, 8 mm), so that an adaptive
    solver's tolerance means the same for an angle and a shift. `solvers` are written as in the
    paper and their number is L; one solver makes the single-scale model (Fig. 4b).

    `gain`: f is the network's output times so much per segment, but no more than takes 0.8 of what
    is left in a fixed step (all of it, where a step is the whole segment); of what a network can
    see, exp(-gain) is left at a segment's end. A number a scale is taken as it is: a network that
    answers with less than is left may be followed by more than a whole step.
    """

    FORMAT = "odereg-msodenet-2"

    def __init__(
        self,
        transform: str,
        grid: Grid,
        solvers: Sequence[str],
        time: float = 3.0,
        gain: float | Sequence[float] = 1.0,
        adjoint: Adjoint = "aca",
        budget: int = 1000,
        **network: int,
    ):
        super().__init__()
        self.transform: Transform = TRANSFORMS[transform]()
        self.solvers = [Solver.parse(s) for s in solvers]
        self.time, self.most, self.adjoint, self.budget = time, gain, adjoint, budget
        self.grids = grid.pyramid(len(self.solvers))
        self.network_options = network
        self.networks = nn.ModuleList(DYNAMICS[transform](g, **network) for g in self.grids)

    @property
    def scales(self) -> int:
        return len(self.solvers)

    def gain(self, scale: int) -> float:
        """The gain of one scale's segment, per unit time."""
        solver, length = self.solvers[scale], self.time / self.scales
        if isinstance(self.most, Sequence):
            return self.most[scale] / length
        if solver.adaptive:
            return self.most / length
        steps = solver.steps(length)
        return min(self.most, 0.8 * steps if steps > 1 else 1.0) / length

    def forward(
        self,
        moving: Float[Tensor, "b 1 x y z"],
        fixed: Float[Tensor, "b 1 x y z"],
        scales: int | None = None,
        trajectory: bool = False,
        outer: Outer | None = None,
    ) -> Registration:
        """Register a batch of images in [0, 1] on the model's grid.

        `scales`: stop after so many of the coarsest scales; the images then are on that scale's
        grid (a coarse model is trained before the finer ones). `outer`: the map of a cascade's
        earlier stage; theta then is sought such that phi_outer∘phi_theta registers. Raises
        ValueError where the images do not lie on the grid and SolverError where a segment does not
        end.
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
            known = self.networks[i].known(level_fixed)  # type: ignore[operator]
            solution = integrate(
                Dynamics(self.networks[i], self.transform, self.grids[i], self.gain(i), outer),
                theta / unit,
                i * length,
                (i + 1) * length,
                solver=self.solvers[i],
                adjoint=self.adjoint,
                args=(level_moving, level_fixed, *known),
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

    def describe(self) -> dict:
        """What is needed to build the model again."""
        return {
            "transform": self.transform.name,
            "shape": list(self.grids[-1].shape),
            "spacing": list(self.grids[-1].spacing),
            "solvers": [str(solver) for solver in self.solvers],
            "time": self.time,
            "gain": self.most,
            "network": self.network_options,
        }

    @classmethod
    def build(cls, spec: dict) -> MSODENet:
        """The model that `describe` described."""
        grid = Grid(tuple(spec["shape"]), tuple(spec["spacing"]))
        return cls(
            spec["transform"], grid, spec["solvers"], spec["time"], spec["gain"], **spec["network"]
        )


@dataclass
class Cascaded:
    """What each stage of a cascade found; the whole map is the first stage's after the second's."""

    stages: list[Registration]
    transforms: list[Transform]

    @property
    def grid(self) -> Grid:
        """The finest grid."""
        return self.stages[0].grids[-1]

    @property
    def outer(self) -> Outer | None:
        """The earlier stage's map, which the last one's comes after; None for a single stage."""
        return (self.transforms[0], self.stages[0].theta) if len(self.stages) > 1 else None

    @property
    def nfe(self) -> int:
        """Evaluations of f, over all stages and scales."""
        return sum(stage.nfe for stage in self.stages)

    def map(self, points: Float[Tensor, "b 3 *n"]) -> Float[Tensor, "b 3 *n"]:
        """phi(points), points and result in mm: phi_1(phi_2(p))."""
        for transform, stage in zip(self.transforms[::-1], self.stages[::-1], strict=True):
            points = transform.map(stage.theta.to(points), points, self.grid)
        return points

    def displacement(self) -> Float[Tensor, "b 3 x y z"]:
        """u of the whole map in mm on the finest grid."""
        u = self.transforms[-1].displacement(self.stages[-1].theta, self.grid)
        return compose(*self.outer, u, self.grid) if self.outer else u


class Cascade(nn.Module):
    """One model, or a rigid and a deformable one in sequence (section 3.1, hybrid motion).

    The second stage sees the moving image through the first stage's map, composed, never
    resampled twice. Raises ValueError for more stages, another order, or models of different grids.
    """

    def __init__(self, *models: MSODENet):
        super().__init__()
        if len(models) not in (1, 2):
            raise ValueError(f"a cascade has one or two stages, not {len(models)}")
        if len(models) == 2 and not isinstance(models[0].transform, Rigid):
            raise ValueError("the first stage of a cascade is rigid")
        if len({model.grids[-1] for model in models}) > 1:
            raise ValueError("the stages of a cascade must share one grid")
        self.models = nn.ModuleList(models)
        self.transforms = [model.transform for model in models]
        self.grid = models[0].grids[-1]

    def forward(
        self,
        moving: Float[Tensor, "b 1 x y z"],
        fixed: Float[Tensor, "b 1 x y z"],
        trajectory: bool = False,
    ) -> Cascaded:
        """Register a batch of images in [0, 1]; raises as `MSODENet.forward` does."""
        stages: list[Registration] = []
        for model in self.models:
            outer = (self.transforms[0], stages[0].theta) if stages else None
            stages.append(model(moving, fixed, trajectory=trajectory, outer=outer))
        return Cascaded(stages, self.transforms)
