"""VoxelMorph [5] and RCN [32] as rows of Table 1, alone or after our rigid model ("VM*")."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from odereg_core.baselines.base import Outcome, Register
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.msodenet import MSODENet
from odereg_core.networks.regression import Rcn, VoxelMorph
from odereg_core.transforms import compose
from odereg_core.warp import warp


@dataclass(frozen=True)
class Regression:
    """A network that answers with the displacement in one evaluation."""

    model: VoxelMorph | Rcn

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
    ) -> Outcome:
        return Outcome(self.model(moving, fixed, grid))


@dataclass(frozen=True)
class AfterRigid:
    """Our rigid MS-ODENet, then `register` on the moving image as that model warped it.

    The maps are composed; what is scored is warped once. Raises InputError for images on another
    grid than the model's.
    """

    rigid: MSODENet
    register: Register

    def __call__(
        self, moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
    ) -> Outcome:
        if self.rigid.grids[-1] != grid:
            raise InputError("the rigid model is of another grid than the cohort's")
        found = self.rigid(moving, fixed)
        u = self.rigid.displacement(found)
        inner = self.register(warp(moving, u, grid), fixed, grid, contrasts).displacement
        whole = compose(self.rigid.transform, found.theta, inner, grid)
        return Outcome(whole, nfe=found.nfe)
