"""The simulated pairs of section 3.2: which there are, and what each looks like.

moving = x_a and fixed = x_b∘phi~, so a registration phi is right where phi = phi~; the true image
is x_a∘phi~ and the true mask m∘phi~, and no inverse is ever needed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.cohort import Cohort, contrast_pairs
from odereg_core.grid import Grid
from odereg_core.metrics import rmse_phi
from odereg_core.motion import MOTIONS, pair_generator
from odereg_core.warp import warp


@dataclass(frozen=True)
class PairKey:
    """A pair by name: task, subject, moving and fixed contrast."""

    task: str
    subject: str
    moving: str
    fixed: str


@dataclass(frozen=True)
class Pair:
    """One simulated pair on the working grid; tensors (1, C, X, Y, Z), images in [0, 1]."""

    key: PairKey
    grid: Grid
    moving: Tensor
    fixed: Tensor
    displacement: Tensor
    """u~ in mm."""
    true_image: Tensor
    brain: Tensor
    """The fixed image's brain: where RMSE(x) and RMSE(phi) are taken."""
    moving_tumour: Tensor | None
    true_tumour: Tensor | None

    def to(self, device: torch.device | str) -> Pair:
        """The same pair on another device."""
        tensors = {k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)}
        return replace(self, **tensors)

    def error_mm(self, displacement: Float[Tensor, "1 3 x y z"]) -> float:
        """RMSE(phi) of a displacement in mm, over the brain."""
        return float(rmse_phi(displacement, self.displacement, self.brain))


def pair_keys(
    subjects: list[str], contrasts: tuple[str, ...], task: str, count: int = 0, seed: int = 0
) -> list[PairKey]:
    """All ordered contrast pairs of all subjects, or a sample of `count` of them from `seed`.

    The sample goes round the subjects, so that a small one still sees many of them.
    """
    rng, pairs = np.random.default_rng(seed), contrast_pairs(contrasts)
    rounds = [rng.permutation(len(pairs)) for _ in subjects]
    keys = [
        PairKey(task, subject, *pairs[order[turn]])
        for turn in range(len(pairs))
        for subject, order in zip(subjects, rounds, strict=True)
    ]
    return sorted(keys[: count or None], key=lambda k: (k.subject, k.moving, k.fixed))


def simulate(cohort: Cohort, key: PairKey, seed: int) -> Pair:
    """The pair of that name: its motion is drawn from the seed and the name alone."""
    grid, subject = cohort.grid, cohort.load(key.subject)
    x_a, x_b = (
        subject.images[cohort.contrasts.index(name)][None, None] for name in (key.moving, key.fixed)
    )
    rng = pair_generator(seed, key.task, key.subject, key.moving, key.fixed)
    u = MOTIONS[key.task].draw(rng, grid).displacement(grid)

    def labels(mask: Tensor) -> Tensor:
        return warp(mask[None, None].float(), u, grid, mode="nearest") > 0.5

    tumour = None if subject.seg is None else subject.seg > 0
    return Pair(
        key=key,
        grid=grid,
        moving=x_a,
        fixed=warp(x_b, u, grid),
        displacement=u,
        true_image=warp(x_a, u, grid),
        brain=labels(subject.mask),
        moving_tumour=None if tumour is None else tumour[None, None],
        true_tumour=None if tumour is None else labels(tumour),
    )
