"""ANTs [4], the classical yardstick, through antspyx; all its settings stand here.

antspyx ignores `random_seed`; runs repeat to the bit with one ITK thread and ANTS_RANDOM_SEED set
before the first call, which importing this module does unless the user has set them.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from odereg_core.baselines.base import Outcome
from odereg_core.grid import Grid
from odereg_core.transforms import Rigid
from odereg_core.transforms.io import LPS, read_affine_mat

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

    sampling: float = 1.0
    shrink_mm: tuple[float, ...] = (12.0, 9.0, 6.0)
    smoothing_voxels: tuple[int, ...] = (3, 2, 1)
    iterations: tuple[int, ...] = (1000, 500, 250)
    polish_iterations: int = 100
    polish_sampling: float = 0.25
    metric: str = "mattes"
    bins: int = 16

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str] = ("", "")
    ) -> Outcome:
        """Register one pair (1, 1, X, Y, Z) in [0, 1]; theta (1, 6) in rad and mm, on the CPU."""
        with scratch() as folder:
            transforms = self.run(moving, fixed, grid, folder)
            matrix, _ = read_affine_mat(transforms[0])
        # `to_ants` gives ANTs our axes for its own, so what it says is not to be turned to ours.
        flip = np.diag([*LPS, 1.0])
        theta = Rigid().from_matrix(torch.from_numpy(flip @ matrix @ flip)[None]).float()
        return Outcome(Rigid().displacement(theta, grid), theta=theta)

    def run(self, moving: Tensor, fixed: Tensor, grid: Grid, folder: Path) -> list[str]:
        """Register, and return the transform's file in `folder`."""
        shrink = tuple(max(1, round(mm / min(grid.spacing))) for mm in self.shrink_mm)
        common = {
            "fixed": to_ants(fixed, grid),
            "moving": to_ants(moving, grid),
            "type_of_transform": "Rigid",
            "aff_metric": self.metric,
            "aff_sampling": self.bins,
        }
        search = ants.registration(
            **common,
            outprefix=str(folder / "search"),
            aff_random_sampling_rate=self.sampling,
            aff_shrink_factors=shrink,
            aff_smoothing_sigmas=self.smoothing_voxels,
            aff_iterations=self.iterations,
        )
        polish = ants.registration(
            **common,
            outprefix=str(folder / "polish"),
            initial_transform=search["fwdtransforms"],
            aff_random_sampling_rate=self.polish_sampling,
            aff_shrink_factors=(1,),
            aff_smoothing_sigmas=(0,),
            aff_iterations=(self.polish_iterations,),
        )
        return polish["fwdtransforms"]


@dataclass(frozen=True)
class AntsSyn:
    """SyN [3] with Mattes mutual information; after `AntsRigid` where `rigid` is given.

    Iterations run down to full resolution: on real volumes at 3 mm 100-70-50 brought a 4.5 mm
    start to 3.35 mm, the package's default to 3.6 mm. A Gaussian of `flow_variance`, in squared
    voxels of a level, smooths each update, one of `total_variance` the whole; antspyx calls them
    sigmas, ANTs takes them as variances.
    """

    rigid: AntsRigid | None = None
    iterations: tuple[int, ...] = (100, 70, 50)
    gradient_step: float = 0.2
    flow_variance: float = 30.0
    total_variance: float = 0.0
    metric: str = "mattes"
    sampling: int = 32
    """Histogram bins of `mattes`, or the radius in voxels of `CC`."""

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str] = ("", "")
    ) -> Outcome:
        """Register one pair (1, 1, X, Y, Z) in [0, 1]."""
        with scratch() as folder:
            start = self.rigid.run(moving, fixed, grid, folder) if self.rigid else None
            found = ants.registration(
                fixed=to_ants(fixed, grid),
                moving=to_ants(moving, grid),
                type_of_transform="SyNOnly",
                initial_transform=start or "identity",
                outprefix=str(folder / "syn"),
                syn_metric=self.metric,
                syn_sampling=self.sampling,
                reg_iterations=self.iterations,
                grad_step=self.gradient_step,
                flow_sigma=self.flow_variance,
                total_sigma=self.total_variance,
            )
            return Outcome(composed(found["fwdtransforms"], moving, grid))


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for ANTs' transform files, removed afterwards."""
    with tempfile.TemporaryDirectory(prefix="odereg-ants-") as folder:
        yield Path(folder)


def composed(transforms: list[str], like: Tensor, grid: Grid) -> Tensor:
    """u in mm (1, 3, X, Y, Z) of a list of ANTs' transform files, as ANTs itself composes them."""
    image = to_ants(like, grid)
    whole = ants.apply_transforms(
        fixed=image, moving=image, transformlist=transforms, compose=str(Path(transforms[0])) + "-"
    )
    vectors = ants.image_read(whole).numpy()
    return torch.from_numpy(np.moveaxis(vectors, -1, 0)[None]).float()


def to_ants(image: Tensor, grid: Grid) -> ants.ANTsImage:
    """The image in the grid's own coordinates: its world is our millimetres about the centre."""
    return ants.from_numpy(
        image[0, 0].cpu().numpy().astype(np.float32),
        origin=grid.affine[:3, 3].tolist(),
        spacing=list(grid.spacing),
    )
