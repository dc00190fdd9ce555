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

SETTINGS = {"rigid": (0.03, 0.0), "bspline": (0.01, 2.0), "dense": (0.01, 10.0)}
"""The learning rate, in units of theta's range (75°, 20 mm, 8 mm), and the paper's lambda_reg
(section 3.1). Six validation pairs 4.3 mm apart, B-spline: 30 steps of 0.03 end at 4.4 mm, of 0.01
at 3.7, of 0.005 at 3.8."""


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
            transform, (lr, lambda_reg) = TRANSFORMS[name](), SETTINGS[name]
            theta, _ = optimise(
                self.similarity,
                transform,
                moving,
                fixed,
                grid,
                transform.identity(len(moving), grid, moving.device),
                steps=self.steps,
                lr=lr,
                lambda_reg=lambda_reg,
                outer=outer,
            )
            u = transform.displacement(theta, grid)
            if outer:
                u = compose(*outer, u, grid)
            outer = (transform, theta)
        return Outcome(u, nfe=(self.steps + 1) * len(self.transforms))
