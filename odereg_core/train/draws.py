"""What training draws at random: its own motions, anatomies and states of the solve.

Nothing here is an evaluation motion: those come from `odereg_core.motion` by name of the pair.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.profiles import MotionSection
from odereg_core.transforms import BSpline, Rigid, Transform, compose


def uniform(
    shape: tuple[int, ...], low: float, high: float, like: Tensor, rng: torch.Generator
) -> Tensor:
    """U(low, high), drawn on the CPU so that every device sees the same."""
    return (torch.rand(shape, generator=rng) * (high - low) + low).to(like.device)


def normal(like: Tensor, rng: torch.Generator) -> Tensor:
    """Standard normal values, one for each of `like`, drawn where it lies from a seed that every
    device sees the same: drawn on the CPU they take more than half of a GPU's step."""
    if like.device.type != "cpu":
        seed = int(torch.randint(2**62, (1,), generator=rng))
        rng = torch.Generator(like.device).manual_seed(seed)
    return torch.randn(like.shape, generator=rng, device=like.device)


def rigid_theta(
    batch: int, degrees: float, mm: float, like: Tensor, rng: torch.Generator
) -> Float[Tensor, "b 6"]:
    """Angles from U(±degrees), in rad, and shifts from U(±mm)."""
    limits = torch.tensor([math.radians(degrees)] * 3 + [mm] * 3, device=like.device)
    return uniform((batch, 6), -1.0, 1.0, like, rng) * limits


def smooth_field(
    batch: int, amplitude_mm: float, grid: Grid, like: Tensor, rng: torch.Generator
) -> Float[Tensor, "b 3 x y z"]:
    """Smooth random displacements in mm: cubic splines through Gaussian control points.

    The control spacing (30 to 55 mm) and the control grid's place are drawn for the batch, the
    amplitude, up to `amplitude_mm`, for each example.
    """
    spacing = float(uniform((1,), 30.0, 55.0, torch.empty(0), rng))
    offset = uniform((3,), -spacing / 2, spacing / 2, torch.empty(0), rng)
    spline = BSpline(spacing, tuple(offset.tolist()))
    control = torch.randn((batch, 3, *spline.control_shape(grid)), generator=rng).to(like.device)
    sigma = uniform((batch, 1, 1, 1, 1), 0.25, 1.0, like, rng) * amplitude_mm
    return spline.displacement(control * sigma, grid)


def controls_of(field: Float[Tensor, "b 3 nx ny nz"]) -> Float[Tensor, "b 3 nx ny nz"]:
    """Control displacements of the cubic spline that passes near the field's values at them.

    The basis averages neighbours by (1, 4, 1)/6 on each axis; (-1, 8, -1)/6 undoes that to second
    order, which leaves little of a field as smooth as these.
    """
    for axis in (2, 3, 4):
        first, last = field.narrow(axis, 0, 1), field.narrow(axis, -1, 1)
        padded = torch.cat([first, field, last], axis)
        n = field.shape[axis]
        field = (8 * field - padded.narrow(axis, 0, n) - padded.narrow(axis, 2, n)) / 6
    return field


@dataclass(frozen=True)
class Drawn:
    """theta~ of a batch, and u~ in mm on the grid asked for: what theta~ says, and for a rigid
    theta~ a deformation besides, in some examples."""

    theta: Tensor
    displacement: Float[Tensor, "b 3 x y z"]


def motion(
    transform: Transform,
    settings: MotionSection,
    batch: int,
    grid: Grid,
    like: Tensor,
    rng: torch.Generator,
) -> Drawn:
    """A draw from P_theta of L_self (section 2.1), for any of the transforms.

    A share of the examples is as the cascades meet them: a deformation under a rigid motion; for
    the deformable models, the few degrees and mm that a rigid stage leaves.
    """

    def some(value: Tensor) -> Tensor:
        chosen = uniform((batch,), 0.0, 1.0, like, rng) < settings.mixed
        return value * chosen.reshape(-1, *(1,) * (value.ndim - 1))

    if isinstance(transform, Rigid):
        theta = rigid_theta(batch, settings.rotation_deg, settings.translation_mm, like, rng)
        u = some(smooth_field(batch, settings.control_mm, grid, like, rng))
        return Drawn(theta, compose(transform, theta, u, grid))
    left = some(rigid_theta(batch, settings.rotation_deg, settings.translation_mm, like, rng))
    if isinstance(transform, BSpline):
        controls = transform.control_grid(grid)
        values = smooth_field(batch, settings.control_mm, controls, like, rng)
        theta = controls_of(compose(Rigid(), left, values, controls))
        return Drawn(theta, transform.displacement(theta, grid))
    theta = compose(Rigid(), left, smooth_field(batch, settings.control_mm, grid, like, rng), grid)
    return Drawn(theta, theta)


def state(
    transform: Transform,
    drawn: Drawn,
    other: Drawn,
    start: float,
    smallest: float,
    largest: float,
    rng: torch.Generator,
) -> Tensor:
    """theta as a solve towards theta~ might hold it: what is left to do is a random share of a
    motion, log-uniform in [smallest, largest]; `start` of the examples are at the identity."""
    target = drawn.theta
    batch, wide = len(target), (-1, *(1,) * (target.ndim - 1))
    exponent = uniform((batch,), math.log(smallest), math.log(largest), target, rng)
    share = exponent.exp().reshape(wide)
    if isinstance(transform, Rigid):
        left = transform.matrix(transform.inverse(other.theta * share))
        theta = transform.from_matrix(transform.matrix(target) @ left)
    else:
        theta = (1 - share) * target + 0.3 * share * other.theta
    at_start = uniform((batch,), 0.0, 1.0, target, rng) < start
    return torch.where(at_start.reshape(wide), torch.zeros_like(theta), theta)


def stretch(batch: int, amount: float, like: Tensor, rng: torch.Generator) -> Tensor:
    """Random linear maps (B, 3, 3) near 1: heads of other sizes and proportions."""
    noise = torch.randn((batch, 3, 3), generator=rng).to(like.device)
    return torch.eye(3, device=like.device) + amount * noise / 3**0.5
