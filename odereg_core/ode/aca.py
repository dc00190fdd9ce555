"""The adaptive checkpoint adjoint (ACA) of Zhuang et al. [33].

Forward: solve without a graph and keep only the accepted (t, dt, theta). Backward: from the last
step to the first, take that one step again with its dt held, back-propagate through it, and free
it. Memory is that of one step, whatever their number; the gradient is exact for the
discretisation that the forward pass used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torchdiffeq import odeint

if TYPE_CHECKING:
    from odereg_core.ode.integrate import Recorder
    from odereg_core.ode.solver import Solver


class Checkpointed(torch.autograd.Function):
    """An autograd node whose forward is already done and whose backward is the replay."""

    @classmethod
    def attach(
        cls,
        recorder: Recorder,
        solver: Solver,
        end: Tensor,
        theta0: Tensor,
        args: tuple[Tensor, ...],
        params: tuple[Tensor, ...],
    ) -> Tensor:
        """`end`, connected to the graph of theta0, of `args`, and of `params`."""
        return cls.apply(recorder, solver, end, len(args), theta0, *args, *params)

    @staticmethod
    def forward(
        ctx: Any, recorder: Recorder, solver: Solver, end: Tensor, count: int, *inputs: Tensor
    ) -> Tensor:
        ctx.f, ctx.steps, ctx.solver, ctx.count = recorder.f, recorder.steps, solver, count
        device = end.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(*inputs)
        return end.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        _, *saved = ctx.saved_tensors
        images, params = saved[: ctx.count], saved[ctx.count :]
        needed = ctx.needs_input_grad[5 : 5 + ctx.count]
        # Cut from the outer graph: a step's graph must end at theta, the images and the weights.
        args = [a.detach().requires_grad_(need) for a, need in zip(images, needed, strict=True)]
        wanted = [a for a in args if a.requires_grad] + params
        totals: list[Tensor | None] = [None] * len(wanted)

        for t, dt, theta in reversed(ctx.steps):
            with torch.enable_grad(), torch.autocast(*ctx.autocast):
                start = theta.detach().requires_grad_()
                times = torch.tensor([t, t + dt], dtype=torch.float64, device=start.device)
                end = odeint(
                    lambda time, state: ctx.f(time, state, *args),
                    start,
                    times,
                    **ctx.solver.replay(dt),
                )[-1]
            first, *further = torch.autograd.grad(
                end, [start, *wanted], gradient, allow_unused=True
            )
            gradient = torch.zeros_like(start) if first is None else first
            totals = [_sum(*pair) for pair in zip(totals, further, strict=True)]

        result = iter(totals)
        of_args = [next(result) if a.requires_grad else None for a in args]
        return (None, None, None, None, gradient, *of_args, *result)


def _sum(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """The sum of two gradients, None being none."""
    return a if b is None else b if a is None else a + b
