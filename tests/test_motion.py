"""The motions of section 3.2: ranges, and the same map on every machine."""

import math

import numpy as np
import pytest
import torch

from odereg_core.grid import Grid
from odereg_core.metrics import folding
from odereg_core.motion import MOTIONS, pair_generator
from odereg_core.transforms import Rigid

GRID = Grid((20, 20, 14), (12.0, 12.0, 12.0))


def draws(task, n=300):
    return [MOTIONS[task].draw(pair_generator(0, task, str(i)), GRID) for i in range(n)]


@pytest.mark.parametrize(("task", "degrees", "mm"), [("rigid", 75, 20), ("hybrid", 40, 10)])
def test_rigid_ranges_are_the_papers(task, degrees, mm):
    theta = torch.cat([d.theta for d in draws(task)])
    angle, shift = theta[:, :3].rad2deg().abs(), theta[:, 3:].abs()
    assert angle.max() <= degrees
    assert shift.max() <= mm
    # U(-a, a) has standard deviation a / sqrt(3).
    assert angle.square().mean().sqrt().item() == pytest.approx(degrees / math.sqrt(3), rel=0.05)
    assert shift.square().mean().sqrt().item() == pytest.approx(mm / math.sqrt(3), rel=0.05)


@pytest.mark.parametrize("task", ["deformable", "hybrid"])
def test_control_noise_is_the_papers(task):
    control = torch.cat([d.control.flatten() for d in draws(task, 20)])
    assert control.mean().abs() < 0.2
    assert control.std().item() == pytest.approx(8, rel=0.02)


def test_the_deformation_is_near_diffeomorphic():
    fine = Grid((40, 40, 28), (6.0, 6.0, 6.0))
    fields = [
        MOTIONS["deformable"].draw(pair_generator(0, "d", str(i)), fine).displacement(fine)
        for i in range(10)
    ]
    assert torch.cat([folding(u, fine) for u in fields]).mean() < 0.002


def test_a_pairs_motion_depends_on_its_names_alone():
    names = ("hybrid", "subject", "t1", "t2")
    once = MOTIONS["hybrid"].draw(pair_generator(7, *names), GRID)
    again = MOTIONS["hybrid"].draw(pair_generator(7, *names), GRID)
    other = MOTIONS["hybrid"].draw(pair_generator(7, *names[:-1], "flair"), GRID)
    assert torch.equal(once.displacement(GRID), again.displacement(GRID))
    assert not torch.equal(once.theta, other.theta)


PINNED = [  # task, subject, moving, fixed; theta in rad and mm; one control; u at one voxel, mm
    ("rigid", "BraTS20_Training_001", "t1", "t2",
     [0.58886, -0.32031, 1.01380, 15.53826, -11.93405, -2.39334], None,
     [24.4888, -85.9913, -7.3740]),
    ("rigid", "BraTS20_Training_001", "t2", "t1",
     [1.04984, -0.35398, -1.09557, 5.93511, 6.03487, 7.15311], None,
     [30.6064, 31.5437, 3.2454]),
    ("deformable", "BraTS20_Training_001", "flair", "t1ce",
     [0.0] * 6, [0.91898, -2.78022, -5.16669], [0.2029, -1.9398, -1.2809]),
    ("deformable", "BraTS20_Training_002", "flair", "t1ce",
     [0.0] * 6, [7.50937, 7.62750, -1.11329], [1.1555, 3.5991, 1.3583]),
    ("hybrid", "BraTS20_Training_369", "t1ce", "flair",
     [0.14335, -0.63198, -0.23952, -3.26911, 2.74473, 6.28318],
     [4.95592, -6.86941, -5.27372], [-3.6395, 9.4427, -24.1713]),
]  # fmt: skip


@pytest.mark.parametrize("pinned", PINNED, ids=lambda p: "-".join(p[:4]))
def test_the_draw_is_pinned(pinned):
    """These numbers were drawn once; another machine or NumPy that draws others breaks every
    result."""
    *names, theta, control, u = pinned
    drawn = MOTIONS[names[0]].draw(pair_generator(7, *names), GRID)
    np.testing.assert_allclose(drawn.theta[0].numpy(), theta, atol=1e-5)
    if control is None:
        assert drawn.control is None
    else:
        np.testing.assert_allclose(drawn.control[0, :, 4, 4, 3].numpy(), control, atol=1e-5)
    np.testing.assert_allclose(drawn.displacement(GRID)[0, :, 5, 12, 8].numpy(), u, atol=1e-3)


def test_the_hybrid_is_rigid_after_deformation():
    drawn = draws("hybrid", 1)[0]
    inner = drawn.spline.displacement(drawn.control, GRID)
    points = GRID.points()
    expected = Rigid().map(drawn.theta, points + inner) - points
    assert torch.allclose(drawn.displacement(GRID), expected, atol=1e-4)


def test_one_map_on_every_grid_of_the_field_of_view():
    drawn = draws("hybrid", 1)[0]
    fine = Grid((60, 60, 42), (4.0, 4.0, 4.0))  # every third voxel centre coincides with GRID's
    middle = drawn.displacement(fine)[..., 1::3, 1::3, 1::3]
    assert torch.allclose(middle, drawn.displacement(GRID), atol=1e-3)
