"""Solvers as the paper writes them: F(dt), Euler with a fixed step; A(eps), adaptive Heun."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor
from torchdiffeq._impl.adaptive_heun import AdaptiveHeunSolver
from torchdiffeq._impl.misc import _compute_error_ratio
from torchdiffeq._impl.odeint import SOLVERS

FIXED = ("euler", "midpoint", "heun2", "heun3", "rk4")
ADAPTIVE = ("heun", "bosh3", "dopri5", "dopri8", "fehlberg2", "adaptive_heun")
_SHORT = {"F": "euler", "A": "heun"}


class HeunSolver(AdaptiveHeunSolver):
    """Heun's method with the embedded Euler step as its error estimate.

    torchdiffeq's `adaptive_heun` starts a step with the slope at the *Euler* point of the step
    before; here each step evaluates f at its own start. A step is then a function of (t, theta, dt)
    alone, which is what the adaptive checkpoint adjoint replays. The last step ends on the time
    asked for, so nothing is interpolated.

    The error's norm, the control of the step and the callbacks are torchdiffeq's. Time and step are
    plain numbers: as tensors they make some sixty operations a step, as dear as f on a coarse grid,
    and on a GPU each comparison waits for the device. Here one a step does.
    """

    def _before_integrate(self, t):
        super()._before_integrate(t)
        self.state = (self.rk_state.y1, self.rk_state.f1, float(t[0]), float(self.rk_state.dt))
        self.limits = (float(self.safety), float(self.dfactor), float(self.ifactor))

    def _f(self, t, y):
        return self.func(torch.full((), t, dtype=self.dtype, device=y.device), y)

    def _advance(self, next_t):
        y, slope, t, dt = self.state
        end = float(next_t)
        while t < end:
            self.func.callback_step(t, y, dt)
            assert t + dt > t, f"underflow in dt {dt:.3g}"
            step = min(dt, end - t)
            slope = self._f(t, y) if slope is None else slope
            euler = y + step * slope
            error = step / 2 * (self._f(t + step, euler) - slope)
            y1 = euler + error
            with torch.no_grad():
                ratio = float(_compute_error_ratio(error, self.rtol, self.atol, y, y1, self.norm))
            if ratio <= 1:
                self.func.callback_accept_step(t, y, step)
                t, y, slope = (end if step < dt else t + step), y1, None
            else:
                self.func.callback_reject_step(t, y, step)
                assert ratio < math.inf or torch.isfinite(slope).all(), "f is not finite"
            dt = step * self._factor(ratio)
        self.state = y, slope, t, dt
        return y

    def _factor(self, ratio):
        """How much longer the next step is, by torchdiffeq's rule; no number counts as large."""
        safety, least, most = self.limits
        if not ratio < math.inf:
            return least
        wanted = safety / max(ratio, 1e-30) ** (1 / self.order)
        return min(most, max(wanted, 1.0 if ratio <= 1 else least))


SOLVERS["heun"] = HeunSolver


@dataclass(frozen=True)
class Solver:
    """A torchdiffeq method and its step (fixed grid) or tolerance (adaptive). A segment is taken in
    equal steps, of the length nearest to the one asked for."""

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

    def steps(self, length: float) -> int:
        """How many fixed steps a segment of this length takes."""
        return max(1, round(length / self.value))

    def arguments(self, t0: float, t1: float) -> dict:
        """Keyword arguments that make `torchdiffeq.odeint` take this solver's steps from t0 to
        t1."""
        if not self.adaptive:
            steps = self.steps(abs(t1 - t0))

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


def _worst_sample(error: Tensor) -> Tensor:
    """Root mean square an example, the largest of the batch: no example hides behind the others."""
    rows = error.flatten(1)
    return torch.linalg.vector_norm(rows, dim=1).max() / rows.shape[1] ** 0.5
