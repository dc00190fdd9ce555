"""The rows of Table 1. A new one is an entry here, and a file in `baselines` where it is new."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from odereg_core.baselines.base import Outcome, Register
from odereg_core.grid import Grid
from odereg_core.weights import load_model

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


def _ants_rigid(models: Path, device: str) -> Register:
    from odereg_core.baselines.ants import AntsRigid  # only those who run ANTs load it

    return AntsRigid()


def _msodenet(transform: str) -> Load:
    def load(models: Path, device: str) -> Register:
        model = load_model(models / f"{transform}.safetensors", device)

        def register(moving: Tensor, fixed: Tensor, grid: Grid) -> Outcome:
            result = model(moving, fixed)
            return Outcome(model.displacement(result), result.theta, result.nfe)

        return register

    return load


METHODS: dict[str, Method] = {
    "none": Method("no registration", ("rigid",), _nothing, in_paper=False),
    "ants_rigid": Method("ANTs", ("rigid",), _ants_rigid),
    "msodenet_r": Method("MS-ODENet(R)", ("rigid",), _msodenet("rigid"), models=("rigid",)),
}
