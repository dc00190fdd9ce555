"""Gauss-Newton on a descriptor brings back motions known beforehand, across contrasts."""

import pytest
import torch
import torch.nn.functional as F

from odereg_core.baselines.newton import Newton
from odereg_core.grid import Grid
from odereg_core.metrics import rmse_phi
from odereg_core.transforms import BSpline, Rigid, compose
from odereg_core.warp import warp

GRID = Grid((40, 40, 32), (4.0,) * 3)
MOTION = torch.tensor([[0.06, -0.04, 0.05, 3.0, -2.0, 2.0]])


@pytest.fixture(scope="module")
def head():
    rng = torch.Generator().manual_seed(0)
    rough = torch.rand(1, 1, 20, 20, 16, generator=rng)
    noise = F.interpolate(rough, GRID.shape, mode="trilinear", align_corners=True)
    radii = torch.tensor([60.0, 65.0, 50.0]).reshape(1, 3, 1, 1, 1)
    return noise.clamp(0.05, 0.95), ((GRID.points() / radii).square().sum(1, keepdim=True) < 1)


def deformation() -> torch.Tensor:
    spline = BSpline(40.0)
    rng = torch.Generator().manual_seed(1)
    control = 3 * torch.randn(1, 3, *spline.control_shape(GRID), generator=rng)
    return spline.displacement(control, GRID)


@pytest.mark.parametrize(
    ("transforms", "left"), [(("rigid",), 0.1), (("dense",), 0.5), (("rigid", "dense"), 0.3)]
)
def test_it_undoes_a_motion(head, transforms, left):
    image, brain = head
    u = deformation() if "dense" in transforms else torch.zeros(1, 3, *GRID.shape)
    if "rigid" in transforms:
        u = compose(Rigid(), MOTION, u, GRID)
    fixed = warp((1 - image) * brain, u, GRID)
    # On voxels of 4 mm, of grains of 8: wider than the neighbourhoods that suit brains at 3 mm.
    found = Newton(transforms, reach_mm=22.6)(image * brain, fixed, GRID, ("", ""))
    inside = fixed > 0
    error = rmse_phi(found.displacement, u, inside)
    begun = rmse_phi(torch.zeros_like(u), u, inside)
    assert float(error) < left * float(begun)
    assert found.nfe == 30 * ("rigid" in transforms) + 10 * ("dense" in transforms)
