"""One initial value problem, its gradient by one of three adjoints, and what it cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Literal, NoReturn

import torch
from torch import Tensor, nn
from torchdiffeq import odeint, odeint_adjoint

from odereg_core.ode.aca import Checkpointed
from odereg_core.ode.heap import keep_freed_memory
from odereg_core.ode.solver import Solver

Adjoint = Literal["aca", "backprop", "adjoint"]


class SolverError(RuntimeError):
    """A solve that would not end, or left the finite numbers."""


@dataclass
class Solution:
    """theta at t1, and the work it took.

    `times` and `states`, where asked for, hold every accepted step's start, then the end.
    """

    theta: Tensor
    nfe: int
    accepted: int
    rejected: int
    times: list[float] = field(default_factory=list)
    states: list[Tensor] = field(default_factory=list)


class Recorder:
    """f with fixed further arguments, its evaluations counted and its steps watched."""

    def __init__(self, f: Callable[..., Tensor], args: tuple, budget: int, keep: bool, label: str):
        self.f, self.args, self.budget, self.keep, self.label = f, args, budget, keep, label
        self.nfe = self.accepted = self.rejected = 0
        self.steps: list[tuple[float, float, Tensor]] = []
        self.t: Tensor | float = math.nan

    def watch(self, adaptive: bool, sign: int) -> None:
        """Take torchdiffeq's callbacks; it gives dt without the sign of t1 - t0."""
        self.sign = sign
        if adaptive:
            self.callback_step = self.attempt
            self.callback_accept_step = self.record
            self.callback_reject_step = self.reject
        else:  # a fixed grid calls back at the start of a step only, and accepts all of them
            self.callback_step = self.take

    def __call__(self, t: Tensor, theta: Tensor) -> Tensor:
        self.nfe += 1
        if self.nfe > self.budget:
            self.fail(f"more than {self.budget} evaluations of f", t)
        return self.f(t, theta, *self.args)

    def attempt(self, t: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.t = t

    def take(self, t: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.check(theta, t)
        self.record(t, theta, dt)

    def record(self, t: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.accepted += 1
        if self.keep:
            self.steps.append((float(t), self.sign * float(dt), theta.detach()))

    def reject(self, t: Tensor, theta: Tensor, dt: Tensor) -> None:
        self.rejected += 1

    def check(self, theta: Tensor, t: Tensor | float) -> None:
        if not torch.isfinite(theta).all():
            self.fail("theta is not finite", t)

    def fail(self, what: str, t: Tensor | float) -> NoReturn:
        """Raise SolverError with the segment, what happened, the time and the step."""
        raise SolverError(
            f"{self.label}: {what} at t = {float(t):.4g}, "
            f"after {self.accepted} accepted and {self.rejected} rejected steps"
        )


def integrate(
    f: Callable[..., Tensor],
    theta0: Tensor,
    t0: float,
    t1: float,
    *,
    solver: Solver | str,
    adjoint: Adjoint = "aca",
    args: tuple[Tensor, ...] = (),
    params: Iterable[Tensor] | None = None,
    trajectory: bool = False,
    budget: int = 1000,
    label: str = "solve",
) -> Solution:
    """Solve d theta/dt = f(t, theta, *args) from theta0, of any shape (B, ...), at t0 to t1.

    `solver`: `F(dt)`, `A(eps)` or another method of torchdiffeq (see `Solver.parse`).
    `adjoint`: how gradients are computed. `aca`, the adaptive checkpoint adjoint of Zhuang et
    al. [33], keeps the accepted states and replays one step at a time; `backprop` keeps the graph
    of every step; `adjoint` solves the adjoint ODE backwards (Chen et al. [10]).

    Gradients reach theta0, `args` (the images), and `params`: by default the parameters of f where
    it is a module. Tensors that f closes over in another way must be named in `params`.

    Raises SolverError, naming `label`, time and step, where the step underflows, f is evaluated
    more than `budget` times, or theta is no longer finite.
    """
    keep_freed_memory()
    solver = Solver.parse(solver)
    if params is None:
        params = f.parameters() if isinstance(f, nn.Module) else ()
    params = tuple(p for p in params if p.requires_grad)
    checkpoint = adjoint == "aca" and torch.is_grad_enabled()
    recorder = Recorder(f, args, budget, trajectory or checkpoint, label)
    recorder.watch(solver.adaptive, 1 if t1 >= t0 else -1)

    times = torch.tensor([t0, t1], dtype=torch.float64, device=theta0.device)
    if not solver.adaptive:
        times = times.to(theta0.dtype)

    def solve(function: Callable[..., Tensor] = odeint, **more: object) -> Tensor:
        try:
            return function(recorder, theta0, times, **solver.arguments(t0, t1), **more)[-1]
        except AssertionError as error:  # an underflow, or a state that is not finite
            recorder.fail(str(error).partition(":")[0], recorder.t)

    if checkpoint:
        with torch.no_grad():
            end = solve()
        end = Checkpointed.attach(recorder, solver, end, theta0, args, params)
    elif adjoint == "adjoint" and torch.is_grad_enabled():
        tensors = tuple(a for a in args if a.requires_grad)
        options = {k: v for k, v in solver.arguments(t0, t1)["options"].items() if k != "norm"}
        if solver.adaptive:  # for theta and its adjoint, not for the weights' integral
            options["norm"] = "seminorm"
        end = solve(odeint_adjoint, adjoint_params=params + tensors, adjoint_options=options)
    elif adjoint in ("backprop", "aca", "adjoint"):
        end = solve()
    else:
        raise ValueError(f"adjoint is one of aca, backprop, adjoint, not {adjoint!r}")

    recorder.check(end, t1)
    solution = Solution(end, recorder.nfe, recorder.accepted, recorder.rejected)
    if trajectory:
        solution.times = [t for t, _, _ in recorder.steps] + [t1]
        solution.states = [state for _, _, state in recorder.steps] + [end.detach()]
    return solution
