"""Networks that answer with the whole displacement at once: the learned baselines of Table 1.

They take moving and fixed (B, 1, X, Y, Z) in [0, 1] and the grid these lie on, and return u in mm,
(B, 3, X, Y, Z). What they find is in voxels of that grid, so one network serves every grid.
"""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odereg_core.box import box_of, put_back
from odereg_core.descriptor import REACH_MM, look, newton_step, shared
from odereg_core.grid import Grid
from odereg_core.precision import full_precision
from odereg_core.transforms import Dense, affine_after, compose
from odereg_core.warp import warp

Image = Float[Tensor, "b 1 x y z"]
Displacement = Float[Tensor, "b 3 x y z"]
CHANNELS = (16, 32, 32, 32, 32, 32)
CELL = 2
"""Voxels along an edge of what VoxelMorph's U-Net sees as one."""
SMOOTH_MM = 24.0
"""Sigma of the Gaussian over what a U-Net finds."""
TOLD_MM = 6.0
"""Of the voxels whose Gauss-Newton step it can be told."""
AFFINE_MM = 12.0
"""Of what the affine network sees as one voxel, on every grid that is not coarser."""


@full_precision
def smoothed(u: Displacement, sigma_mm: float, grid: Grid) -> Displacement:
    """u under a Gaussian, on a grid no coarser than half of `sigma_mm`; beyond the edge nothing
    counts."""
    from monai.networks.layers.simplelayers import GaussianFilter

    factor = [max(1, int(sigma_mm / 2 / spacing)) for spacing in grid.spacing]
    size = [-(-n // f) for n, f in zip(grid.shape, factor, strict=True)]
    sigma = [sigma_mm / h * m / n for h, m, n in zip(grid.spacing, size, grid.shape, strict=True)]
    gaussian = GaussianFilter(3, sigma).to(u.device)
    coarse = F.interpolate(u, size=size, mode="area")
    coarse = gaussian(coarse) / gaussian(torch.ones_like(coarse))
    return F.interpolate(coarse, size=grid.shape, mode="trilinear")


def told(both: Float[Tensor, "b 2 x y z"], spacing: float) -> Float[Tensor, "b 4 _x _y _z"]:
    """Of moving and fixed images, for every cell: the Gauss-Newton step that our dynamics are told,
    in voxels, and how much of the cell lies in both heads.

    The step is that between images averaged to voxels of `TOLD_MM` or a little less: at 3 mm it
    takes 4.5 mm to 3.6, at 6 mm to 2.7 (validation pairs of the synthetic cohort).
    """
    times = 2 ** max(0, math.floor(math.log2(TOLD_MM / spacing)))
    coarse = F.avg_pool3d(both.float(), times)
    one, two = (look(image) for image in coarse.split(1, dim=1))
    inside = shared(one, two)
    step = times * newton_step(one, two, inside, 1, REACH_MM / (times * spacing))
    cells = [n // CELL for n in both.shape[2:]]
    return F.interpolate(torch.cat([step, inside], dim=1), size=cells, mode="trilinear")


class VoxelMorph(nn.Module):
    """VoxelMorph [5]: one U-Net, MONAI's, from both images to the displacement.

    Its field has half the images' resolution, as VoxelMorph's code allows; the values of 2^3 voxels
    come in as channels, so nothing of the images is lost, and a step of training takes half as
    long. What the U-Net finds is smoothed by a Gaussian of `smooth_mm`, under which nothing finer
    is left. Mutual information alone leaves a voxel free to slide along every edge: Adam on it, on
    five validation pairs of the synthetic cohort 4.4 mm apart, ends at 4.0 mm with the penalty on
    gradients alone, and at 2.1, 1.3 and 0.9 mm with Gaussians of 12, 18 and 24 mm as well.

    With `told`, which is not VoxelMorph's, it also sees the Gauss-Newton step that our dynamics
    are told, and what it finds is added to that.
    """

    FORMAT = "odereg-voxelmorph-3"

    def __init__(self, smooth_mm: float = SMOOTH_MM, told: bool = False):
        from monai.networks.nets.voxelmorph import VoxelMorphUNet

        super().__init__()
        self.smooth_mm, self.told = smooth_mm, told
        self.unet = VoxelMorphUNet(3, 2 * CELL**3 + 4 * told, 32, CHANNELS, (16, 16))
        *layers, last = (m for m in self.unet.modules() if isinstance(m, nn.Conv3d))
        for layer in layers:  # torch's own start loses two thirds of the variance in each
            nn.init.kaiming_normal_(layer.weight, 0.2)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(last.weight, std=1e-5)
        nn.init.zeros_(last.bias)

    def forward(self, moving: Image, fixed: Image, grid: Grid) -> Displacement:
        from monai.networks.utils import pixelunshuffle

        both = torch.cat([moving, fixed], dim=1)
        at = box_of(both > 0)
        heads = both[..., *at]
        x, y, z = heads.shape[2:]
        rest = [(-n) % (CELL * 2 ** (len(CHANNELS) // 2)) for n in (z, y, x)]
        padded = F.pad(heads, [p for n in rest for p in (0, n)])
        cells = pixelunshuffle(padded, 3, CELL)
        step = 0.0
        if self.told:
            known = told(padded, max(grid.spacing))
            cells, step = torch.cat([cells, known.to(cells.dtype)], dim=1), known[:, :3]
        found = self.unet(cells.contiguous(memory_format=torch.channels_last_3d)).float() + step
        i, j, k = (-(-n // CELL) for n in (x, y, z))
        coarse = Grid((i, j, k), tuple(CELL * h for h in grid.spacing))
        spacing = torch.tensor(grid.spacing, device=moving.device)[:, None, None, None]
        u = smoothed(found[:, :, :i, :j, :k] * spacing, self.smooth_mm, coarse)
        u = F.interpolate(u, scale_factor=CELL, mode="trilinear")[:, :, :x, :y, :z]
        return put_back(u, at, moving, outside="edge")

    def describe(self) -> dict:
        """What is needed to build the model again."""
        return {"smooth_mm": self.smooth_mm, "told": self.told}

    @classmethod
    def build(cls, spec: dict) -> VoxelMorph:
        """The model that `describe` described."""
        return cls(**spec)


class AffineRegression(nn.Module):
    """Strided convolutions and one linear layer to an affine map: A (B, 3, 3) and b (B, 3) in mm,
    about the grid's centre."""

    def __init__(self, width: int = 16, cells: int = 3):
        super().__init__()
        widths = [2, width, 2 * width, 4 * width, 4 * width]
        self.convolutions = nn.Sequential(
            *(
                nn.Sequential(nn.Conv3d(i, o, 3, 2, padding=1), nn.LeakyReLU(0.1))
                for i, o in itertools.pairwise(widths)
            ),
            nn.AdaptiveAvgPool3d(cells),
        )
        self.linear = nn.Linear(widths[-1] * cells**3, 12)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, moving: Image, fixed: Image, grid: Grid) -> tuple[Tensor, Tensor]:
        x = torch.cat([moving, fixed], dim=1)
        size = [
            min(n, round(mm / AFFINE_MM)) for n, mm in zip(grid.shape, grid.extent, strict=True)
        ]
        found = self.linear(self.convolutions(F.adaptive_avg_pool3d(x, size)).flatten(1)).float()
        matrix = torch.eye(3, device=x.device) + found[:, :9].unflatten(1, (3, 3))
        return matrix, 20 * found[:, 9:]


class Rcn(nn.Module):
    """Recursive cascaded networks [32]: an affine network, then `cascades` dense ones, each of
    which sees the moving image as warped so far.

    The maps are composed and the moving image itself is warped, once for each network.
    """

    FORMAT = "odereg-rcn-3"

    def __init__(self, cascades: int = 2, smooth_mm: float = SMOOTH_MM):
        super().__init__()
        self.affine = AffineRegression()
        self.dense = nn.ModuleList(VoxelMorph(smooth_mm) for _ in range(cascades))
        self.smooth_mm = smooth_mm

    def stages(
        self, moving: Image, fixed: Image, grid: Grid, cascades: int | None = None
    ) -> tuple[Displacement, Tensor, list[Displacement]]:
        """u of the whole map, A of the affine stage, and u of each dense stage by itself: of the
        first `cascades` of them, or of all."""
        matrix, offset = self.affine(moving, fixed, grid)
        inner = torch.zeros(len(moving), 3, *grid.shape, device=moving.device)
        parts: list[Displacement] = []
        for network in self.dense[:cascades]:
            so_far = affine_after(inner, grid, matrix, offset)
            parts.append(network(warp(moving, so_far, grid), fixed, grid))
            inner = compose(Dense(), inner, parts[-1], grid)
        return affine_after(inner, grid, matrix, offset), matrix, parts

    def forward(self, moving: Image, fixed: Image, grid: Grid) -> Displacement:
        return self.stages(moving, fixed, grid)[0]

    def describe(self) -> dict:
        """What is needed to build the model again."""
        return {"cascades": len(self.dense), "smooth_mm": self.smooth_mm}

    @classmethod
    def build(cls, spec: dict) -> Rcn:
        """The model that `describe` described."""
        return cls(**spec)
