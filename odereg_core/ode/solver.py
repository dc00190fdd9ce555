"""Solvers as the paper writes them: F(dt), Euler with a fixed step; A(eps), adaptive Heun."""

from __future__ import annotations

import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq._impl.adaptive_heun import AdaptiveHeunSolver
from torchdiffeq._impl.odeint import SOLVERS

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("heun", "bosh3", "dopri5", "dopri8", "fehlberg2", "adaptive_heun")
_SHORT = {"F": "euler", "A": "heun"}


class HeunSolver(AdaptiveHeunSolver):
    """Heun's method with the embedded Euler step as its error estimate.

    torchdiffeq's `adaptive_heun` starts a step with the slope at the *Euler* point of the step
    before; here each step evaluates f at its own start. A step is then a function of (t, theta, dt)
    alone, which is what the adaptive checkpoint adjoint replays.
    """

    def _adaptive_step(self, rk_state):
        before = rk_state.t1
        state = super()._adaptive_step(rk_state)
        end = float("inf") if self.step_t is None else float(self.step_t[-1])
        if state.t1 > before and float(state.t1) < end:
            state = state._replace(f1=self.func(state.t1, state.y1))
        return state


SOLVERS["heun"] = HeunSolver


@dataclass(frozen=True)
class Solver:
    """A torchdiffeq method and its step (fixed grid) or tolerance (adaptive)."""

    method: str
    value: float

    @classmethod
    def parse(cls, text: str | Solver) -> Solver:
        """`F(0.2)`, `A(1e-3)`, or a torchdiffeq method by name: `rk4(0.1)`, `dopri5(1e-5)`.

        Raises ValueError for anything else.
        """
        if isinstance(text, Solver):
            return text
        match = re.fullmatch(r"\s*(\w+)\(\s*([0-9.eE+-]+)\s*\)\s*", text)
        if match:
            method = _SHORT.get(match[1], match[1])
            try:
                value = float(match[2])
            except ValueError:
                value = 0.0
            if method in FIXED + ADAPTIVE and value > 0:
                return cls(method, value)
        raise ValueError(
            f"{text!r} is no solver: write F(dt), A(eps) or one of {', '.join(FIXED + ADAPTIVE)} "
            "with a positive step or tolerance, such as rk4(0.1)"
        )

    @property
    def adaptive(self) -> bool:
        return self.method in ADAPTIVE

    def arguments(self, t0: float, t1: float) -> dict:
        """Keyword arguments that make `torchdiffeq.odeint` take this solver's steps from t0 to
        t1."""
        if not self.adaptive:
            steps = max(1, round(abs(t1 - t0) / self.value))

            def grid(f: object, y: Tensor, t: Tensor) -> Tensor:
                # From t itself, for the adjoint ODE runs from t1 to t0.
                return torch.cat(
                    [torch.lerp(t[0], t[-1], k / steps)[None] for k in range(steps)] + [t[-1:]]
                )

            return {"method": self.method, "options": {"grid_constructor": grid}}
        return {
            "method": self.method,
            "rtol": self.value,
            "atol": self.value,
            "options": {
                # The last accepted step must end on t1, for the replay starts from what was
                # accepted.
                "step_t": torch.tensor(sorted([t0, t1]), dtype=torch.float64),
                # torchdiffeq's guess is 1e-4 at most where theta_0 = 0, and costs ten evaluations.
                "first_step": abs(t1 - t0) / 4,
                "norm": _worst_sample,
            },
        }

    def replay(self, dt: float) -> dict:
        """Keyword arguments that make `torchdiffeq.odeint` take the one accepted step dt again."""
        if self.method == "heun":
            return {"method": "heun2"}
        if not self.adaptive:
            return {"method": self.method}
        return {
            "method": self.method,
            "rtol": 1e30,
            "atol": 1e30,
            "options": {"first_step": abs(dt)},
        }

    def __str__(self) -> str:
        short = {method: letter for letter, method in _SHORT.items()}
        return f"{short.get(self.method, self.method)}({self.value:g})"


def _worst_sample(error: Tensor | tuple[Tensor, ...]) -> Tensor:
    """Root mean square an example, the largest of the batch: no example hides behind the others."""
    parts = error if isinstance(error, tuple) else (error,)
    rms = [
        part.abs().square().reshape(part.shape[0] if part.ndim else 1, -1).mean(1).sqrt()
        for part in parts
    ]
    return torch.cat(rms).max()
