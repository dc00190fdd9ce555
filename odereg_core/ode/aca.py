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
        end: tuple[Tensor, ...],
        theta0: tuple[Tensor, ...],
        args: tuple,
        params: tuple[Tensor, ...],
    ) -> tuple[Tensor, ...]:
        """`end`, connected to the graph of theta0, the tensors of `args`, and `params`."""
        return cls.apply(recorder, solver, end, len(theta0), len(args), *theta0, *args, *params)

    @staticmethod
    def forward(
        ctx: Any, recorder: Recorder, solver: Solver, end: tuple, n: int, m: int, *inputs: Any
    ) -> tuple[Tensor, ...]:
        ctx.f, ctx.solver, ctx.n, ctx.m = recorder.f, solver, n, m
        ctx.steps = recorder.steps
        device = end[0].device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.tensors = [isinstance(value, Tensor) for value in inputs]
        ctx.others = [None if isinstance(value, Tensor) else value for value in inputs]
        ctx.save_for_backward(*[value for value in inputs if isinstance(value, Tensor)])
        return tuple(part.clone() for part in end)

    @staticmethod
    def backward(ctx: Any, *grad_end: Tensor) -> tuple:
        saved = iter(ctx.saved_tensors)
        values = [
            next(saved) if is_tensor else other
            for is_tensor, other in zip(ctx.tensors, ctx.others, strict=True)
        ]
        args = values[ctx.n : ctx.n + ctx.m]
        params = values[ctx.n + ctx.m :]
        # Cut from the outer graph: a step's graph must end at theta, the images and the weights.
        needed = ctx.needs_input_grad[5:]
        args = [
            a.detach().requires_grad_(needed[ctx.n + i]) if isinstance(a, Tensor) else a
            for i, a in enumerate(args)
        ]
        wanted = [a for a in args if isinstance(a, Tensor) and a.requires_grad] + params
        totals: list[Tensor | None] = [None] * len(wanted)
        gradient = grad_end

        for t, dt, theta in reversed(ctx.steps):
            parts = theta if isinstance(theta, tuple) else (theta,)
            device, dtype, enabled = ctx.autocast
            with torch.enable_grad(), torch.autocast(device, dtype, enabled):
                start = tuple(p.detach().requires_grad_() for p in parts)
                times = torch.tensor([t, t + dt], dtype=torch.float64, device=start[0].device)
                end = odeint(
                    lambda time, state: ctx.f(time, state, *args),
                    start if isinstance(theta, tuple) else start[0],
                    times,
                    **ctx.solver.replay(dt),
                )
                ends = [p[-1] for p in (end if isinstance(end, tuple) else (end,))]
            grads = torch.autograd.grad(
                ends, [*start, *wanted], gradient, allow_unused=True, materialize_grads=False
            )
            gradient = tuple(
                torch.zeros_like(s) if g is None else g
                for s, g in zip(start, grads[: len(start)], strict=True)
            )
            for i, g in enumerate(grads[len(start) :]):
                if g is not None:
                    total = totals[i]
                    totals[i] = g if total is None else total + g

        result = iter(totals)
        further = [
            next(result) if isinstance(a, Tensor) and a.requires_grad else None for a in args
        ]
        return (None,) * 5 + tuple(gradient) + tuple(further) + tuple(result)
