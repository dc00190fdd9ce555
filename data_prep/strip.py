"""Skull stripping without downloaded weights, or with a tool that the user has installed.

The template way (Klein et al. 2010 compare such): a head is registered to an atlas whose brain is
known, and the brain is carried over. The atlas is ICBM 2009a as nilearn bundles it, a brain without
a skull; fluid, skull, scalp, face and neck are put around it as `data_prep.heads` does, on average
thicknesses, for the affine stage to hold on to. Mutual information makes the contrast immaterial.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import ants
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import (
    binary_closing,
    binary_dilation,
    binary_fill_holes,
    binary_opening,
)
from torch import Tensor

from data_prep.heads import TISSUES, Build, shells
from data_prep.phantom import BRAIN_CENTRE, Lattice, Sequence, sample, signal, template
from odereg_core.baselines.ants import scratch, to_ants
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.volume import largest_part, save_nifti

TOOLS = ("template", "mri_synthstrip", "hd-bet")


@cache
def atlas(spacing: float) -> tuple[Tensor, Tensor, Grid]:
    """The atlas's head as a T1w would show it in [0, 1], its brain (0 or 1), and their grid."""
    lattice = Lattice(spacing)
    maps, middle = template(spacing)
    centre = np.asarray(BRAIN_CENTRE, np.float32).reshape(3, 1, 1, 1)
    gm, wm, csf, brain, _ = sample(maps, lattice.points() - centre, middle)
    mask = brain > 0.5
    outer = shells(lattice, mask, Build())
    t1 = Sequence(2000, 3, 950)
    level = {name: signal(tissue, t1) for name, tissue in TISSUES.items()}
    image = (level["wm"] * wm + level["gm"] * gm + level["csf"] * csf) * mask
    image = image + sum(level[name] * part for name, part in outer.items())
    image = np.clip(image / np.percentile(image[mask], 99.5), 0, 2) / 2
    grid = Grid(lattice.shape, (spacing,) * 3)
    return (
        torch.from_numpy(image.astype(np.float32))[None, None],
        torch.from_numpy(mask.astype(np.float32))[None, None],
        grid,
    )


def strip(image: Tensor, grid: Grid, tool: str = "template") -> Tensor:
    """The brain (1, 1, X, Y, Z) in {0, 1} of a head in [0, 1] on `grid`, axes along RAS.

    `tool`: `template`, or the name of an installed program. Raises InputError for a program that is
    not there or fails.
    """
    if tool == "template":
        return by_template(image, grid)
    return by_program(image, grid, tool)


def by_template(image: Tensor, grid: Grid) -> Tensor:
    """The atlas's brain, brought to the head by an affine map, then SyN, both on mutual
    information; SyN looks at the brain and two centimetres around it alone."""
    spacing = max(2.0, min(grid.spacing))
    moving, brain, atlas_grid = atlas(spacing)
    fixed = to_ants(image, grid)
    head, mask = to_ants(moving, atlas_grid), to_ants(brain, atlas_grid)
    shrink = tuple(max(1, round(mm / min(grid.spacing))) for mm in (12.0, 8.0, 4.0))
    with scratch() as folder:
        affine = ants.registration(
            fixed, head, "Affine", outprefix=str(folder / "affine"), aff_metric="mattes",
            aff_random_sampling_rate=0.25, aff_shrink_factors=shrink,
            aff_smoothing_sigmas=(3, 2, 1), aff_iterations=(500, 250, 100),
        )["fwdtransforms"]  # fmt: skip
        near = _carried(mask, fixed, affine)
        around = binary_dilation(near, iterations=max(1, round(20 / min(grid.spacing))))
        where = to_ants(torch.from_numpy(around.astype(np.float32))[None, None], grid)
        whole = ants.registration(
            fixed, head, "SyNOnly", initial_transform=affine[0], mask=where,
            outprefix=str(folder / "syn"), syn_metric="mattes", reg_iterations=(60, 40, 0),
        )["fwdtransforms"]  # fmt: skip
        found = _carried(mask, fixed, whole)
    return torch.from_numpy(_tidied(found, grid).astype(np.float32))[None, None]


def _carried(mask: Any, fixed: Any, transforms: list[str]) -> NDArray[np.bool_]:
    image: Any = ants.apply_transforms(fixed, mask, transforms)
    return image.numpy() > 0.5


def _tidied(mask: NDArray[np.bool_], grid: Grid) -> NDArray[np.bool_]:
    """The largest part, without spurs and holes narrower than about 4 mm."""
    steps = max(1, round(2 / min(grid.spacing)))
    opened = binary_opening(mask, iterations=steps)
    mask = mask & np.asarray(binary_closing(opened, iterations=steps), bool)
    return binary_fill_holes(largest_part(mask))  # type: ignore[return-value]


def choose_tool(tool: str) -> str:
    """`auto` is an installed program where there is one, else the template. Raises InputError for a
    program that is not installed."""
    if tool == "auto":
        return next((name for name in TOOLS[1:] if shutil.which(name)), TOOLS[0])
    if tool not in TOOLS:
        raise InputError(f"no stripping tool '{tool}'; there are: auto, {', '.join(TOOLS)}")
    if tool != "template" and not shutil.which(tool):
        raise InputError(f"{tool} is not installed here; --tool template needs nothing")
    return tool


def by_program(image: Tensor, grid: Grid, tool: str) -> Tensor:
    """The brain as SynthStrip (Hoopes et al. 2022) or HD-BET (Isensee et al. 2019) finds it."""
    with tempfile.TemporaryDirectory(prefix="odereg-strip-") as name:
        head, brain = Path(name) / "head.nii.gz", Path(name) / "brain.nii.gz"
        affine = np.diag([*grid.spacing, 1.0])
        save_nifti(head, image[0, 0].numpy(), affine)
        command = [tool, "-i", str(head), "-o", str(brain)]
        if tool == "hd-bet":
            command += ["-device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode or not brain.exists():
            last = (done.stderr or done.stdout).strip().splitlines()[-1:] or ["no message"]
            raise InputError(f"{tool} failed ({last[0]})")
        found = ants.image_read(str(brain)).numpy() != 0
    return torch.from_numpy(found.astype(np.float32))[None, None]
