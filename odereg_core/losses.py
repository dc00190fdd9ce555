"""The terms of the total loss L_sim + lambda_self L_self + lambda_reg L_reg (section 2.1).

L_sim is a `Similarity` (see `odereg_core.similarity`); the others are here.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.transforms import Transform


def self_loss(
    theta: Float[Tensor, " b *n"],
    truth: Float[Tensor, " b *n"],
    transform: Transform,
    grid: Grid,
    inside: Float[Tensor, "b 1 x y z"],
) -> Float[Tensor, ""]:
    """L_self: the mean squared difference of theta.

    Of a rigid motion in units of its range (75°, 20 mm), for a radian and a millimetre would not
    weigh alike. Of a deformation in mm^2, a component, over `inside` of `grid`: what no image shows
    is not asked for. (In units of its range, 8 mm, L_reg's weights of section 3.1 outweigh it: the
    least total loss was then that of a motion a sixth too small for B-splines, and half for dense
    fields.)
    """
    if theta.ndim == 2:
        return ((theta - truth) / transform.unit(theta)).square().mean()
    square = transform.displacement(theta - truth, grid).square().mean(1, keepdim=True)
    return (square * inside).sum() / inside.sum().clamp_min(1)


def regularity(displacement: Float[Tensor, "b 3 x y z"], grid: Grid) -> Float[Tensor, ""]:
    """L_reg: the mean squared gradient of u, mm per mm, over voxels, components and directions."""
    squares = [
        (displacement.diff(dim=axis) / spacing).square().mean()
        for axis, spacing in zip((2, 3, 4), grid.spacing, strict=True)
    ]
    return torch.stack(squares).mean()


def velocity_loss(
    velocity: Tensor,
    target: Tensor,
    transform: Transform,
    grid: Grid,
    inside: Float[Tensor, "b 1 x y z"],
    floor_mm: float,
) -> Float[Tensor, ""]:
    """How far a velocity moves the brain's points from where `target` would.

    The mean squared distance in mm over `inside`, relative to the target's own plus `floor_mm`
    squared, so that the last millimetres count as the first.
    """

    def mean_square(v: Tensor) -> Float[Tensor, " b"]:
        square = transform.field(v, grid).square().sum(1, keepdim=True)
        total = inside.flatten(1).sum(1).clamp_min(1)
        return (square * inside).flatten(1).sum(1) / total

    return (mean_square(velocity - target) / (mean_square(target) + floor_mm**2)).mean()
