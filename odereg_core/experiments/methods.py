"""The rows of Table 1. A new one is an entry here, and a file in `baselines` where it is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odereg_core.baselines.base import Outcome, Register
from odereg_core.baselines.newton import Newton
from odereg_core.baselines.optimiser import Optimiser
from odereg_core.baselines.regression import AfterRigid, Regression
from odereg_core.baselines.translate import Translated
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.motion import MOTIONS
from odereg_core.msodenet import MSODENet
from odereg_core.networks.disentangle import Disentangler
from odereg_core.networks.regression import Rcn, VoxelMorph
from odereg_core.optimise import refine
from odereg_core.registration import load_cascade
from odereg_core.weights import Model, load_content, load_model, weights_of

Load = Callable[[Path, str], Register]


@dataclass(frozen=True)
class Method:
    """One row: its name as the paper prints it, its tasks, the models it needs, and its loader.

    `load(models_folder, device)` returns the method ready to run. `in_paper` is False for rows
    of ours.
    """

    name: str
    tasks: tuple[str, ...]
    load: Load
    models: tuple[str, ...] = ()
    in_paper: bool = True

    @property
    def ours(self) -> bool:
        """Whether it is what the paper proposes."""
        return self.in_paper and self.name.startswith("MS-ODENet")


def _nothing(models: Path, device: str) -> Register:
    def register(moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]) -> Outcome:
        return Outcome(torch.zeros(1, 3, *grid.shape, device=moving.device))

    return register


def _model(models: Path, name: str, device: str, kind: type[Model]) -> Model:
    return load_model(weights_of(models, name), device, kind)


def _translated(load: Load) -> Load:
    """ "+I2I": the same row on the moving image as the GAN translates it."""

    def translated(models: Path, device: str) -> Register:
        encoder = _model(models, "encoder", device, Disentangler)
        return Translated(encoder, load(models, device))

    return translated


def _ants(*stages: str, translated: bool = False) -> Load:
    def load(models: Path, device: str) -> Register:
        from odereg_core.baselines.ants import AntsRigid, AntsSyn  # only who runs ANTs loads it

        # On translated images: see the search. The GAN's brightness is not the scanner's.
        rigid = AntsRigid(metric="GC") if translated else AntsRigid()
        if stages == ("rigid",):
            return rigid
        first = rigid if "rigid" in stages else None
        return AntsSyn(first)

    return load


def _regression(name: str, kind: type[VoxelMorph] | type[Rcn]) -> Load:
    return lambda models, device: Regression(_model(models, name, device, kind))


def _after_rigid(load: Load) -> Load:
    """ "VM*": the row after our rigid model."""

    def after_rigid(models: Path, device: str) -> Register:
        return AfterRigid(_model(models, "rigid", device, MSODENet), load(models, device))

    return after_rigid


def _optimiser(*transforms: str) -> Load:
    def load(models: Path, device: str) -> Register:
        return Optimiser(load_content(weights_of(models, "encoder"), device), transforms)

    return load


def _newton(letters: str, task: str, *transforms: str) -> Method:
    return Method(
        f"Gauss-Newton ({letters})",
        (task,),
        lambda models, device: Newton(transforms),
        in_paper=False,
    )


REFINING = 15
"""Steps of Adam in the rows that refine ours."""


def _msodenet(*stages: str, refining: int = 0) -> Load:
    def load(models: Path, device: str) -> Register:
        files = [weights_of(models, name) for name in stages]
        cascade = load_cascade("+".join(stages), files, device)

        def register(
            moving: Tensor, fixed: Tensor, grid: Grid, contrasts: tuple[str, str]
        ) -> Outcome:
            if cascade.grid != grid:
                raise InputError(f"{files[0]}: a model of another grid than the cohort's")
            result = cascade(moving, fixed)
            if refining:
                refine(result, moving, fixed, refining)
            return Outcome(result.displacement(), nfe=result.nfe)

        return register

    return load


def _ours(letters: str, task: str, *stages: str) -> Method:
    return Method(f"MS-ODENet({letters})", (task,), _msodenet(*stages), models=stages)


def _refined(letters: str, task: str, *stages: str) -> Method:
    load = _msodenet(*stages, refining=REFINING)
    return Method(f"refined MS-ODENet({letters})", (task,), load, stages, in_paper=False)


_VM, _VM_I2I = _regression("vm", VoxelMorph), _translated(_regression("vm_i2i", VoxelMorph))


def _ants_i2i(task: str, *stages: str) -> Method:
    load = _translated(_ants(*stages, translated=True))
    return Method("ANTs+I2I", (task,), load, models=("encoder",))


def _adam(letters: str, task: str, *transforms: str) -> Method:
    load = _optimiser(*transforms)
    return Method(f"Adam on Eq. 4 ({letters})", (task,), load, ("encoder",), in_paper=False)


METHODS: dict[str, Method] = {
    "none": Method("no registration", tuple(MOTIONS), _nothing, in_paper=False),
    "ants_rigid": Method("ANTs", ("rigid",), _ants("rigid")),
    "ants_i2i_rigid": _ants_i2i("rigid", "rigid"),
    "adam_r": _adam("R", "rigid", "rigid"),
    "newton_r": _newton("R", "rigid", "rigid"),
    "msodenet_r": _ours("R", "rigid", "rigid"),
    "refined_r": _refined("R", "rigid", "rigid"),
    "ants_syn": Method("ANTs", ("deformable",), _ants("syn")),
    "ants_i2i_syn": _ants_i2i("deformable", "syn"),
    "vm": Method("VM", ("deformable",), _VM, ("vm",)),
    "vm_i2i": Method("VM+I2I", ("deformable",), _VM_I2I, ("vm_i2i", "encoder")),
    "vm_told": Method(
        "VM+GN", ("deformable",), _regression("vm_told", VoxelMorph), ("vm_told",), in_paper=False
    ),
    "adam_b": _adam("B", "deformable", "bspline"),
    "newton_d": _newton("D", "deformable", "dense"),
    "msodenet_d": _ours("D", "deformable", "dense"),
    "msodenet_b": _ours("B", "deformable", "bspline"),
    "refined_b": _refined("B", "deformable", "bspline"),
    "ants_rigid_syn": Method("ANTs", ("hybrid",), _ants("rigid", "syn")),
    "ants_i2i_rigid_syn": _ants_i2i("hybrid", "rigid", "syn"),
    "rcn": Method("RCN", ("hybrid",), _regression("rcn", Rcn), ("rcn",)),
    "vm_star": Method("VM*", ("hybrid",), _after_rigid(_VM), ("rigid", "vm")),
    "vm_star_i2i": Method(
        "VM*+I2I", ("hybrid",), _after_rigid(_VM_I2I), ("rigid", "vm_i2i", "encoder")
    ),
    "adam_rb": _adam("R+B", "hybrid", "rigid", "bspline"),
    "newton_rd": _newton("R+D", "hybrid", "rigid", "dense"),
    "msodenet_rd": _ours("R+D", "hybrid", "rigid", "dense"),
    "msodenet_rb": _ours("R+B", "hybrid", "rigid", "bspline"),
    "refined_rb": _refined("R+B", "hybrid", "rigid", "bspline"),
}
