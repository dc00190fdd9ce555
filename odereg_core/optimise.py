"""Eq. 1 by direct optimisation of theta: what the neural ODE has learned to do, or to begin."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.losses import regularity
from odereg_core.msodenet import Cascaded, Outer
from odereg_core.similarity import Mind, Similarity
from odereg_core.transforms import Transform, compose
from odereg_core.warp import warp

REFINE = {"rigid": (0.005, 0.0), "bspline": (0.03, 0.2), "dense": (0.03, 1.0)}
"""The learning rate of `refine`, in units of theta's range, and its lambda_reg."""


def optimise(
    similarity: Similarity,
    transform: Transform,
    moving: Float[Tensor, "b 1 x y z"],
    fixed: Float[Tensor, "b 1 x y z"],
    grid: Grid,
    theta: Float[Tensor, " b *n"],
    *,
    steps: int,
    lr: float,
    lambda_reg: float,
    outer: Outer | None = None,
) -> tuple[Float[Tensor, " b *n"], Float[Tensor, "{steps}+1 b"]]:
    """Take `steps` of Adam [17] from `theta` down the similarity of the warped image plus
    `lambda_reg` times L_reg (Eq. 1).

    `lr` is in units of theta's range (75°, 20 mm, 8 mm). `outer`: the map of a cascade's earlier
    stage; theta then is sought such that phi_outer∘phi_theta registers. Returns, for each example,
    the theta of the lowest loss met, the start included, and the losses before each step and
    after the last.
    """
    unit = transform.unit(theta)
    state = (theta.detach() / unit).requires_grad_()
    optimizer = torch.optim.Adam([state], lr=lr)
    best, lowest = theta.detach().clone(), torch.full((len(theta),), torch.inf).to(theta)
    losses = []
    for step in range(steps + 1):
        with torch.enable_grad():
            u = transform.displacement(state * unit, grid)
            whole = compose(*outer, u, grid) if outer else u
            loss = similarity(warp(moving, whole, grid), fixed)
            if lambda_reg:
                each = [regularity(one[None], grid) for one in u]
                loss = loss + lambda_reg * torch.stack(each)
            total = loss.sum()
        losses.append(loss.detach())
        better = losses[-1] < lowest
        lowest = torch.where(better, losses[-1], lowest)
        wide = better.reshape(-1, *(1,) * (theta.ndim - 1))
        best = torch.where(wide, state.detach() * unit, best)
        if step < steps:
            optimizer.zero_grad(set_to_none=True)
            (state.grad,) = torch.autograd.grad(total, state)
            optimizer.step()
    return best, torch.stack(losses)


def refine(
    result: Cascaded,
    moving: Float[Tensor, "b 1 x y z"],
    fixed: Float[Tensor, "b 1 x y z"],
    steps: int,
) -> Float[Tensor, "{steps}+1 b"]:
    """Go on from what a cascade found: `optimise` the last stage's theta, in place, on MIND [13].

    Content codes (Eq. 4) are half as fine as a slice along an axis: they lead from far and are
    blunt at the end. Returns the losses.
    """
    stage, transform = result.stages[-1], result.transforms[-1]
    lr, lambda_reg = REFINE[transform.name]
    stage.theta, losses = optimise(
        Mind(),
        transform,
        moving,
        fixed,
        result.grid,
        stage.theta,
        steps=steps,
        lr=lr,
        lambda_reg=lambda_reg,
        outer=result.outer,
    )
    return losses
