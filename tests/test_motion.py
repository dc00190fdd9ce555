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


def test_the_draw_is_pinned():
    """These numbers were drawn once; another machine or NumPy that draws others breaks every
    result."""
    theta = MOTIONS["rigid"].draw(pair_generator(7, "rigid", "a", "t1", "t2"), GRID).theta
    expected = [0.83926988, -0.09827688, -0.89812642, 14.90600586, -10.09990120, 1.27074909]
    np.testing.assert_allclose(theta[0].numpy(), expected, rtol=1e-6)


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
