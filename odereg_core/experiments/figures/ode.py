"""Figures of solvers: paths of a descent, errors against work, memory against steps."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from odereg_core.experiments.figures.style import (
    GREEN,
    LINES,
    OURS,
    START,
    Animation,
    Described,
    animate,
    subplots,
)
from odereg_core.ode import integrate

MARKERS = "osD^"
REACH = 2.6
"""Half the width of the plane that a descent is drawn on."""


def descent_path(bowl: Tensor, start: Tensor, step: float, time: float = 2.0) -> Tensor:
    """(steps + 1, 2): gradient descent on theta^T bowl theta / 2, as Euler's method to `time` or
    just beyond."""
    end = step * math.ceil(time / step - 1e-9)
    solution = integrate(
        lambda t, theta: -theta @ bowl, start, 0.0, end, solver=f"F({step})", trajectory=True
    )
    return torch.cat(solution.states)


def flow(bowl: Tensor, start: Tensor, time: float = 2.0) -> Tensor:
    """(200, 2): what the descent's ODE itself does, in closed form."""
    times = torch.linspace(0, time, 200, dtype=bowl.dtype)
    return (torch.matrix_exp(-times[:, None, None] * bowl) @ start[0, :, None])[..., 0]


def draw_descent(ax: Axes, bowl: Tensor, path: Tensor, title: str) -> None:
    """Level lines, the ODE's curve dashed, and the steps."""
    side = np.linspace(-REACH, REACH, 120)
    x, y = np.meshgrid(side, side)
    (a, b), (_, c) = bowl.numpy()
    ax.contour(x, y, (a * x * x + 2 * b * x * y + c * y * y) / 2, 12, colors=START, linewidths=0.5)
    ax.plot(*flow(bowl, path[:1]).T.numpy(), color="black", lw=1, ls="--")
    ax.plot(*path.T.numpy(), "o-", color=OURS, lw=1, ms=3, clip_on=True)
    ax.plot(0, 0, "+", color="black")
    ax.set(xlim=(-REACH, REACH), ylim=(-REACH, REACH), aspect="equal", xticks=[], yticks=[])
    ax.set(xlabel="θ₁", ylabel="θ₂")
    ax.set_title(title)


def descent_figure(bowl: Tensor, paths: Mapping[str, Tensor]) -> Figure:
    """A panel a path of gradient descent."""
    fig, axes = subplots(1, len(paths), figsize=(2.5 * len(paths), 2.8), squeeze=False)
    for ax, (name, path) in zip(axes[0], paths.items(), strict=True):
        draw_descent(ax, bowl, path, name)
    fig.tight_layout(pad=0.4)
    fig.alt = (
        "Gradient descent in a bowl's level lines, with the ODE's curve dashed: "
        f"{', '.join(paths)}."
    )
    return fig


def descent_frame(fig: Figure, bowl: Tensor, start: Tensor, step: float) -> None:
    """Left the path in the plane, right the loss as it goes, for one step size."""
    fig.clear()
    left, right = fig.subplots(1, 2)
    path = descent_path(bowl, start, step)
    draw_descent(left, bowl, path, f"step {step:.2f}, {len(path) - 1} evaluations")
    curve, marks = flow(bowl, start), {"color": OURS, "marker": "o", "ms": 3}
    for points, dt, style in ((curve, 2 / (len(curve) - 1), {"ls": "--"}), (path, step, marks)):
        loss = ((points @ bowl) * points).sum(1).clamp_min(1e-12) / 2
        right.semilogy(dt * np.arange(len(points)), loss, **({"color": "black"} | style))  # type: ignore[arg-type]
    right.set(xlabel="t", ylabel="loss", ylim=(1e-5, 1e3))
    fig.tight_layout()


def descent_animation(bowl: Tensor, start: Tensor, steps: Sequence[float]) -> Animation:
    """The descent for one step size after the other."""
    fig = Described(figsize=(9, 3.6))
    fig.alt = (
        f"Gradient descent with step sizes from {steps[0]:g} to {steps[-1]:g}: its path in the "
        "bowl, and its loss over time beside the ODE's."
    )

    def frame(i: int) -> list:
        descent_frame(fig, bowl, start, steps[i])
        return []

    return animate(fig, frame, len(steps))


@dataclass(frozen=True)
class Problem:
    """An ODE whose solution is known: f(t, theta), theta at 0, the end, and theta as a function of
    t, both (1, n)."""

    f: Callable[[Tensor, Tensor], Tensor]
    start: Tensor
    end: float
    exact: Callable[[float], Tensor]


def solver_frame(fig: Figure, problem: Problem, solver: str) -> None:
    """What one solver makes of a problem: left theta and its steps, right the length of each."""
    fig.clear()
    left, right = fig.subplots(1, 2)
    found = integrate(
        problem.f, problem.start, 0.0, problem.end, solver=solver, trajectory=True, budget=20_000
    )
    times = np.linspace(0, problem.end, 200)
    exact = torch.cat([problem.exact(float(t)) for t in times])
    states = torch.cat(found.states)
    for k, colour in zip(range(states.shape[1]), LINES, strict=False):
        left.plot(times, exact[:, k], "--", color="black", lw=1)
        left.plot(found.times, states[:, k], "o-", color=colour, lw=1, ms=3)
    reach = float(exact.abs().max()) * 1.3
    left.set(xlabel="t", ylabel="θ", ylim=(-reach, reach))
    error = float((found.theta - problem.exact(problem.end)).norm())
    left.set_title(f"{solver}: {found.nfe} evaluations, error {error:.1e}")
    right.step(found.times[:-1], np.diff(found.times), where="post", color=GREEN)
    right.set(xlabel="t", ylabel="accepted step", ylim=(1e-3, 2), yscale="log")
    fig.tight_layout()


def solver_animation(problem: Problem, solvers: Sequence[str]) -> Animation:
    """One solver after the other."""
    fig = Described(figsize=(9, 3.4))
    fig.alt = f"A solution with its steps, and their lengths, for {', '.join(solvers)}."

    def frame(i: int) -> list:
        solver_frame(fig, problem, solvers[i])
        return []

    return animate(fig, frame, len(solvers))


def order_figure(errors: pd.DataFrame) -> Figure:
    """Error against step size (the index), a line a method (the columns), with its slope."""
    fig, ax = subplots(figsize=(8, 3.6))
    for (name, column), colour, marker in zip(errors.items(), LINES, MARKERS, strict=False):
        order = np.polyfit(np.log(errors.index), np.log(column), 1)[0]
        ax.loglog(
            errors.index, column, f"{marker}-", color=colour, label=f"{name}: slope {order:.2f}"
        )
    ax.set(xlabel="step", ylabel="error at the end")
    ax.legend()
    fig.tight_layout()
    labels = (str(line.get_label()) for line in ax.lines)
    fig.alt = f"Error at the end against the step, both logarithmic: {', '.join(labels)}."
    return fig


def work_figure(work: pd.DataFrame, times: Sequence[float]) -> Figure:
    """Left error against evaluations, a line a solver; right the steps an adaptive solve took."""
    fig, (left, right) = subplots(1, 2, figsize=(9, 3.8), width_ratios=(3, 2), layout="constrained")
    groups = work.groupby("solver", sort=False)
    for (name, rows), colour, marker in zip(groups, LINES, MARKERS, strict=False):
        left.loglog(rows.evaluations, rows.error, f"{marker}-", color=colour, ms=4, label=name)
    left.set(xlabel="evaluations of f", ylabel="error at the end")
    fig.legend(loc="outside upper center", ncols=len(groups))
    right.step(times, [*np.diff(times), times[-1] - times[-2]], where="post", color=LINES[2])
    right.plot(times, np.zeros(len(times)), "|", color="black", ms=8)
    right.set(xlabel="t", ylabel="accepted step", ylim=(0, None))
    fig.alt = (
        f"Left: error against evaluations of f for {', '.join(work.solver.unique())}. Right: an "
        f"adaptive solve's {len(times) - 1} steps, from {times[1] - times[0]:.2g} up to "
        f"{np.diff(times).max():.2g}."
    )
    return fig


def memory_figure(peaks: pd.DataFrame) -> Figure:
    """Peak memory in MiB against the number of steps (the index), a line an adjoint."""
    fig, ax = subplots(figsize=(8, 3.6))
    for (name, column), colour, marker in zip(peaks.items(), LINES, MARKERS, strict=False):
        ax.plot(peaks.index, column, f"{marker}-", color=colour, ms=4, label=name)
    ax.set(xlabel="steps", ylabel="peak memory / MiB", ylim=(0, None))
    ax.set_xticks(peaks.index)
    ax.legend()
    fig.tight_layout()
    last = ", ".join(f"{name} {value:.0f} MiB" for name, value in peaks.iloc[-1].items())
    fig.alt = f"Peak memory against the number of steps; at {peaks.index[-1]} steps: {last}."
    return fig
