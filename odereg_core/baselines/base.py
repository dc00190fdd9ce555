"""What a registration method, learned or classical, takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from odereg_core.grid import Grid


@dataclass(frozen=True)
class Outcome:
    """u in mm (1, 3, X, Y, Z), and what else the method has to say: theta (1, 6) of a rigid map in
    rad and mm, evaluations of f."""

    displacement: Tensor
    theta: Tensor | None = None
    nfe: int | None = None


class Register(Protocol):
    """A method ready to run: a pair of images (1, 1, X, Y, Z) in [0, 1] on `grid` to an Outcome.

    `contrasts`: the moving and the fixed image's, for the methods that must be told.
    """

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
    ) -> Outcome: ...
