"""Adam on theta down the very loss that trains MS-ODENet (Eq. 4): what learning the optimiser buys.

Not a row of the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odereg_core.baselines.base import Outcome
from odereg_core.grid import Grid
from odereg_core.optimise import optimise
from odereg_core.similarity import ContentSimilarity
from odereg_core.transforms import TRANSFORMS, compose

LAMBDA_REG = {"rigid": 0.0, "bspline": 2.0, "dense": 10.0}
"""The paper's (section 3.1)."""
LEARNING_RATE = {"rigid": 0.03, "bspline": 0.01, "dense": 0.01}
"""In units of theta's range (75°, 20 mm, 8 mm). Six validation pairs 4.3 mm apart, B-spline:
30 steps of 0.03 end at 4.4 mm, of 0.01 at 3.7, of 0.005 at 3.8."""


@dataclass(frozen=True)
class Optimiser:
    """Each of `transforms` in turn from the identity, `steps` steps of Adam each."""

    similarity: ContentSimilarity
    transforms: tuple[str, ...]
    steps: int = 30

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
    ) -> Outcome:
        outer = None
        for name in self.transforms:
            transform = TRANSFORMS[name]()
            theta, _ = optimise(
                self.similarity,
                transform,
                moving,
                fixed,
                grid,
                transform.identity(len(moving), grid, moving.device),
                steps=self.steps,
                lr=LEARNING_RATE[name],
                lambda_reg=LAMBDA_REG[name],
                outer=outer,
            )
            u = transform.displacement(theta, grid)
            if outer:
                u = compose(*outer, u, grid)
            outer = (transform, theta)
        return Outcome(u, nfe=(self.steps + 1) * len(self.transforms))
