"""The rows of Table 1. A new one is an entry here, and a file in `baselines` where it is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odereg_core.baselines.base import Outcome, Register
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.motion import MOTIONS
from odereg_core.register import load_cascade

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


def _nothing(models: Path, device: str) -> Register:
    def register(moving: Tensor, fixed: Tensor, grid: Grid) -> Outcome:
        return Outcome(torch.zeros(1, 3, *grid.shape, device=moving.device))

    return register


def _ants(*, rigid: bool = False, syn: bool = False) -> Load:
    def load(models: Path, device: str) -> Register:
        from odereg_core.baselines.ants import AntsRigid, AntsSyn  # only who runs ANTs loads it

        first = AntsRigid() if rigid else None
        return AntsSyn(first) if syn else AntsRigid()

    return load


def _msodenet(*stages: str) -> Load:
    def load(models: Path, device: str) -> Register:
        files = [models / f"{name}.safetensors" for name in stages]
        cascade = load_cascade("+".join(stages), files, device)

        def register(moving: Tensor, fixed: Tensor, grid: Grid) -> Outcome:
            if cascade.grid != grid:
                raise InputError(f"{files[0]}: a model of another grid than the cohort's")
            result = cascade(moving, fixed)
            return Outcome(result.displacement(), nfe=result.nfe)

        return register

    return load


def _ours(letters: str, task: str, *stages: str) -> Method:
    return Method(f"MS-ODENet({letters})", (task,), _msodenet(*stages), models=stages)


METHODS: dict[str, Method] = {
    "none": Method("no registration", tuple(MOTIONS), _nothing, in_paper=False),
    "ants_rigid": Method("ANTs", ("rigid",), _ants(rigid=True)),
    "ants_syn": Method("ANTs", ("deformable",), _ants(syn=True)),
    "ants_rigid_syn": Method("ANTs", ("hybrid",), _ants(rigid=True, syn=True)),
    "msodenet_r": _ours("R", "rigid", "rigid"),
    "msodenet_d": _ours("D", "deformable", "dense"),
    "msodenet_b": _ours("B", "deformable", "bspline"),
    "msodenet_rd": _ours("R+D", "hybrid", "rigid", "dense"),
    "msodenet_rb": _ours("R+B", "hybrid", "rigid", "bspline"),
}
