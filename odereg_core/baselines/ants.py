"""ANTs [4], the classical yardstick, through antspyx; all its settings stand here.

antspyx ignores `random_seed`; runs repeat to the bit with one ITK thread and ANTS_RANDOM_SEED set
before the first call, which importing this module does unless the user has set them.
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odereg_core.baselines.base import Outcome
from odereg_core.grid import Grid
from odereg_core.transforms import Rigid

os.environ.setdefault("ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS", "1")
os.environ.setdefault("ANTS_RANDOM_SEED", "1")

import ants


@dataclass(frozen=True)
class AntsRigid:
    """Rigid registration with Mattes mutual information, started at the centres of mass.

    Two stages. The search, with every voxel sampled, decides whether a pair succeeds: on real
    volumes at 3 mm it brought 62 % of pairs under two voxels, against 31 % with the package's
    sampling of a fifth. The polish, at full resolution from there, costs little with a quarter of
    the voxels and halves the error of what succeeded. Shrink factors are held in mm.
    """

    shrink_mm: tuple[float, ...] = (12.0, 9.0, 6.0)
    smoothing_voxels: tuple[int, ...] = (3, 2, 1)
    iterations: tuple[int, ...] = (1000, 500, 250)
    polish_iterations: int = 100
    polish_sampling: float = 0.25
    bins: int = 32

    def __call__(self, moving: Tensor, fixed: Tensor, grid: Grid) -> Outcome:
        """Register one pair (1, 1, X, Y, Z) in [0, 1]; theta (1, 6) in rad and mm, on the CPU."""
        shrink = tuple(max(1, round(mm / min(grid.spacing))) for mm in self.shrink_mm)
        with tempfile.TemporaryDirectory(prefix="odereg-ants-") as folder:
            common = {
                "fixed": to_ants(fixed, grid),
                "moving": to_ants(moving, grid),
                "type_of_transform": "Rigid",
                "aff_metric": "mattes",
                "aff_sampling": self.bins,
            }
            search = ants.registration(
                **common,
                outprefix=str(Path(folder) / "search"),
                aff_random_sampling_rate=1.0,
                aff_shrink_factors=shrink,
                aff_smoothing_sigmas=self.smoothing_voxels,
                aff_iterations=self.iterations,
            )
            polish = ants.registration(
                **common,
                outprefix=str(Path(folder) / "polish"),
                initial_transform=search["fwdtransforms"],
                aff_random_sampling_rate=self.polish_sampling,
                aff_shrink_factors=(1,),
                aff_smoothing_sigmas=(0,),
                aff_iterations=(self.polish_iterations,),
            )
            matrix = read_rigid(polish["fwdtransforms"][0])
        theta = Rigid().from_matrix(matrix[None]).float()
        return Outcome(Rigid().displacement(theta, grid), theta=theta)


def to_ants(image: Tensor, grid: Grid) -> ants.ANTsImage:
    """The image in the grid's own coordinates: its world is our millimetres about the centre."""
    return ants.from_numpy(
        image[0, 0].cpu().numpy().astype(np.float32),
        origin=[-(n - 1) / 2 * s for n, s in zip(grid.shape, grid.spacing, strict=True)],
        spacing=list(grid.spacing),
    )


def read_rigid(path: str) -> Tensor:
    """The homogeneous matrix (float64) of an ITK matrix-offset transform: A (x - c) + t + c."""
    transform = ants.read_transform(path)
    parameters = np.asarray(transform.parameters, dtype=np.float64)
    centre = np.asarray(transform.fixed_parameters, dtype=np.float64)
    matrix = np.eye(4)
    if parameters.size == 6:
        # Euler3DTransform has ITK's own order of angles, so let it tell the points.
        basis = np.vstack([np.zeros(3), np.eye(3)])
        image = np.array([transform.apply_to_point(tuple(p)) for p in basis])
        matrix[:3, :3], matrix[:3, 3] = (image[1:] - image[0]).T, image[0]
    else:
        matrix[:3, :3] = parameters[:9].reshape(3, 3)
        matrix[:3, 3] = parameters[9:] + centre - matrix[:3, :3] @ centre
    return torch.from_numpy(matrix)
