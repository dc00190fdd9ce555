"""Loss terms against closed forms."""

import math

import pytest
import torch

from odereg_core.grid import Grid
from odereg_core.losses import regularity, self_loss, velocity_loss
from odereg_core.train.draws import smooth_field
from odereg_core.transforms import TRANSFORMS, BSpline, Dense, Rigid

GRID = Grid((12, 10, 8), (4.0, 3.0, 5.0))


def test_l_self_of_a_rigid_motion_has_no_units():
    """75° or 20 mm off in every number, whichever: one."""
    truth = torch.tensor([[math.radians(75)] * 3 + [20.0] * 3])
    anywhere = torch.ones(1, 1, *GRID.shape)
    assert float(self_loss(0 * truth, truth, Rigid(), GRID, anywhere)) == pytest.approx(1, rel=1e-5)


@pytest.mark.parametrize("name", ["bspline", "dense"])
def test_l_self_of_a_deformation_is_in_mm2_and_asks_for_nothing_unseen(name):
    transform = TRANSFORMS[name]()
    theta = torch.randn(transform.identity(2, GRID).shape)
    inside = torch.zeros(2, 1, *GRID.shape)
    inside[:, :, 2:6] = 1
    loss = self_loss(theta, theta - 1.5, transform, GRID, inside)
    assert float(loss) == pytest.approx(1.5**2, rel=1e-4)
    if name == "dense":
        assert self_loss(0 * theta, 1 - inside.expand_as(theta), transform, GRID, inside) == 0


def test_the_weights_of_section_3_1_let_a_motion_be_found_whole():
    """The least L_self + lambda_reg L_reg along a motion's own line lies near that motion."""
    grid = Grid((40, 40, 28), (6.0, 6.0, 6.0))
    everywhere = torch.ones(4, 1, *grid.shape)
    for transform, weight in ((BSpline(), 2.0), (Dense(), 10.0)):
        like = transform.identity(4, grid)
        points = transform.control_grid(grid) if isinstance(transform, BSpline) else grid
        truth = smooth_field(4, 8.0, points, like, torch.Generator().manual_seed(0))
        whole = self_loss(like, truth, transform, grid, everywhere)
        rough = regularity(transform.displacement(truth, grid), grid)
        share = float(whole / (whole + weight * rough))  # of (1 - s)^2 whole + s^2 weight rough
        assert share > 0.97


def test_l_reg_of_an_affine_field_is_its_mean_squared_gradient():
    matrix = torch.tensor([[0.1, 0.0, -0.2], [0.3, 0.05, 0.0], [0.0, 0.0, 0.4]])
    u = torch.einsum("ij,bjxyz->bixyz", matrix, GRID.points())
    assert float(regularity(u, GRID)) == pytest.approx(float(matrix.square().mean()), rel=1e-4)
    assert float(regularity(torch.ones_like(u), GRID)) == 0


@pytest.mark.parametrize("name", TRANSFORMS)
def test_velocity_loss_is_relative_and_zero_at_the_target(name):
    transform = TRANSFORMS[name]()
    target = torch.randn(transform.identity(2, GRID).shape) * 0.1
    inside = torch.ones(2, 1, *GRID.shape)
    assert float(velocity_loss(target, target, transform, GRID, inside, 5.0)) == 0
    # Doing nothing costs r^2 / (r^2 + floor^2), below one
    square = transform.field(target, GRID).square().sum(1).flatten(1).mean(1)
    wanted = float((square / (square + 25)).mean())
    nothing = velocity_loss(torch.zeros_like(target), target, transform, GRID, inside, 5.0)
    assert float(nothing) == pytest.approx(wanted, rel=1e-4)


def test_velocity_loss_sees_the_inside_alone():
    """A rotation about the centre costs nothing where only the centre is looked at."""
    odd = Grid((9, 9, 9), (4.0, 4.0, 4.0))
    inside = torch.zeros(1, 1, *odd.shape)
    inside[..., 4, 4, 4] = 1
    turn = torch.tensor([[0, 0, math.radians(10), 0, 0, 0]])
    still = torch.zeros(1, 6)
    assert float(velocity_loss(turn, still, Rigid(), odd, inside, 4.0)) == pytest.approx(
        0, abs=1e-9
    )
    assert float(velocity_loss(turn, still, Rigid(), odd, torch.ones_like(inside), 4.0)) > 0.01
