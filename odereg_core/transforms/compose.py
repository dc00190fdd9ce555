"""Composition and inversion of maps given by their displacements."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.precision import full_precision
from odereg_core.transforms.base import Transform
from odereg_core.warp import sample, voxels


@full_precision
def compose(
    outer: Transform, theta: Tensor, inner: Float[Tensor, "b 3 x y z"], grid: Grid
) -> Float[Tensor, "b 3 x y z"]:
    """u of phi_outer∘phi_inner, in mm: the image is then resampled once, never twice.

    The hybrid motion is `compose(Rigid(), theta_R, u_D, grid)`: x(phi_R(phi_D(p))).
    """
    points = grid.points(inner.device, inner.dtype)
    return outer.map(theta, points + inner, grid) - points


@full_precision
def affine_after(
    displacement: Float[Tensor, "b 3 x y z"],
    grid: Grid,
    matrix: Float[Tensor, "b 3 3"],
    offset: Float[Tensor, "b 3"] | None = None,
) -> Float[Tensor, "b 3 x y z"]:
    """u of p -> A (p + u(p)) + b, in mm about the grid's centre; without an offset b is zero."""
    points = grid.points(displacement.device, displacement.dtype)
    moved = torch.einsum("bij,bjxyz->bixyz", matrix, points + displacement)
    return moved - points if offset is None else moved + offset[:, :, None, None, None] - points


@full_precision
def invert(
    displacement: Float[Tensor, "b 3 x y z"], grid: Grid, iterations: int = 50
) -> Float[Tensor, "b 3 x y z"]:
    """The inverse field by the fixed-point iteration v <- -u(q + v) (Chen et al. 2008), in mm.

    Converges where u is a contraction (no folding, moderate gradients); what lies outside the
    grid takes the edge's displacement. The error is `displacement` composed with the result,
    less zero: check it where it matters.
    """
    points = grid.points(displacement.device, displacement.dtype)
    inverse = -displacement
    for _ in range(iterations):
        inverse = -sample(displacement, voxels(points + inverse, grid), outside="edge")
    return inverse
