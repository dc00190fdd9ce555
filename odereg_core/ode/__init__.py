"""Initial value problems: solvers as the paper writes them, gradients by the adaptive checkpoint
adjoint."""

from odereg_core.ode.integrate import Solution, SolverError, integrate
from odereg_core.ode.solver import Solver

__all__ = ["Solution", "Solver", "SolverError", "integrate"]
