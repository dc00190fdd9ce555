"""The simulated motions of section 3.2. They serve evaluation only; training draws its own."""

from __future__ import annotations

import zlib
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from odereg_core.grid import Grid
from odereg_core.transforms import BSpline, Rigid, compose


@dataclass(frozen=True)
class SimulatedMap:
    """One simulated map phi~ = phi_R∘phi_D; `theta` in rad and mm, `control` in mm."""

    theta: Float[Tensor, "1 6"]
    control: Float[Tensor, "1 3 nx ny nz"] | None
    spline: BSpline | None

    def displacement(self, grid: Grid) -> Float[Tensor, "1 3 x y z"]:
        """u~ in mm at the voxels of any grid of the field of view it was drawn for."""
        if self.control is None or self.spline is None:
            return Rigid().displacement(self.theta, grid)
        return compose(Rigid(), self.theta, self.spline.displacement(self.control, grid), grid)


@dataclass(frozen=True)
class Motion:
    """A distribution of maps: U(±rotation_deg), U(±translation_mm) and N(0, control_mm^2)."""

    rotation_deg: float = 0.0
    translation_mm: float = 0.0
    control_mm: float = 0.0
    control_spacing_mm: float = 40.0

    def draw(self, rng: np.random.Generator, grid: Grid) -> SimulatedMap:
        """One map. NumPy draws it, in float64, so that it is the same on every machine."""
        limits = np.repeat([np.deg2rad(self.rotation_deg), self.translation_mm], 3)
        theta = torch.from_numpy(rng.uniform(-1, 1, 6) * limits)[None].float()
        if not self.control_mm:
            return SimulatedMap(theta, None, None)
        half = self.control_spacing_mm / 2
        spline = BSpline(self.control_spacing_mm, tuple(rng.uniform(-half, half, 3)))
        control = rng.normal(0, self.control_mm, (1, 3, *spline.control_shape(grid)))
        return SimulatedMap(theta, torch.from_numpy(control).float(), spline)


MOTIONS = {
    "rigid": Motion(rotation_deg=75, translation_mm=20),
    "deformable": Motion(control_mm=8),
    "hybrid": Motion(rotation_deg=40, translation_mm=10, control_mm=8),
}


def pair_generator(seed: int, task: str, *names: str) -> np.random.Generator:
    """The generator of one pair's motion: a function of the seed and the pair's names alone."""
    key = zlib.crc32("/".join((task, *names)).encode())
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, key])))
