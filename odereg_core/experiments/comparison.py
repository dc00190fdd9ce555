"""One pair through all compared methods, and where they differ most: what Fig. 3 shows."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from skimage.feature import peak_local_max
from torch import Tensor

from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.experiments.methods import METHODS
from odereg_core.pairs import Pair, PairKey, simulate
from odereg_core.warp import warp
from odereg_core.weights import weights_of


@dataclass(frozen=True)
class Comparison:
    """A pair, and what each method made of it: u in mm (1, 3, X, Y, Z) by the method's name."""

    pair: Pair
    displacements: dict[str, Tensor]

    @cached_property
    def warped(self) -> dict[str, Tensor]:
        """The moving image as each method brings it to the fixed one."""
        return {
            name: warp(self.pair.moving, u, self.pair.grid)
            for name, u in self.displacements.items()
        }

    def error_mm(self, name: str) -> float:
        """A method's RMSE(phi) in mm."""
        return self.pair.error_mm(self.displacements[name])

    @cached_property
    def spread(self) -> np.ndarray:
        """How much the methods' errors against the true image differ, at each voxel of the brain:
        their standard deviation, over about 6 mm."""
        errors = torch.stack([(w - self.pair.true_image).abs() for w in self.warped.values()])
        spread = (errors.std(0, correction=0) * self.pair.brain)[0, 0].cpu().numpy()
        return gaussian_filter(spread, [6 / s / 2.355 for s in self.pair.grid.spacing])

    def telling_slice(self, axis: int = 2) -> int:
        """The slice in which the methods differ most."""
        return int(self.spread.sum(tuple({0, 1, 2} - {axis})).argmax())

    def marks(self, axis: int, at: int, count: int = 3, apart_mm: float = 24.0) -> np.ndarray:
        """Where in a slice the methods differ most: up to `count` places, voxel indices (n, 2)."""
        plane = self.spread.take(at, axis)
        apart = max(1, round(apart_mm / min(self.pair.grid.spacing)))
        return peak_local_max(plane, min_distance=apart, num_peaks=count, exclude_border=False)


def compared(task: str, models: Path) -> list[str]:
    """The paper's methods for a task, but for those whose weights a folder lacks."""
    rows = {name: m for name, m in METHODS.items() if task in m.tasks and m.in_paper}
    return [
        name
        for name, method in rows.items()
        if all(weights_of(models, model).exists() for model in method.models)
    ]


@torch.no_grad()
def compare(cohort: Cohort, models: Path, key: PairKey, seed: int) -> Comparison:
    """Register one simulated pair by every compared method of its task whose weights lie in
    `models`, on the CPU.

    Raises InputError where the cohort has no such subject or contrast, or a model is missing.
    """
    for what, name, known in (
        ("subject", key.subject, [n for part in cohort.split.values() for n in part]),
        ("contrast", key.moving, cohort.contrasts),
        ("contrast", key.fixed, cohort.contrasts),
    ):
        if name not in known:
            raise InputError(f"{cohort.folder}: no {what} '{name}'; there are {', '.join(known)}")
    pair = simulate(cohort, key, seed)
    found = {}
    for name in compared(key.task, models):
        register = METHODS[name].load(models, "cpu")
        outcome = register(pair.moving, pair.fixed, pair.grid, (pair.key.moving, pair.key.fixed))
        found[METHODS[name].name] = outcome.displacement.float()
    return Comparison(pair, found)
