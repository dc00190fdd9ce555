"""Loss terms against closed forms."""

import math

import pytest
import torch

from odereg_core.grid import Grid
from odereg_core.losses import regularity, self_loss, velocity_loss
from odereg_core.transforms import TRANSFORMS, Rigid

GRID = Grid((12, 10, 8), (4.0, 3.0, 5.0))


@pytest.mark.parametrize("name", TRANSFORMS)
def test_l_self_has_no_units_and_asks_for_nothing_unseen(name):
    transform = TRANSFORMS[name]()
    like = torch.zeros_like(transform.identity(2, GRID))
    truth, inside = like + transform.unit(like), torch.zeros(2, 1, *GRID.shape)
    inside[:, :, 2:6] = 1
    loss = self_loss(like, truth, transform, GRID, inside)
    assert float(loss) == pytest.approx(1, rel=1e-5)
    if name == "dense":
        assert self_loss(like, truth * (1 - inside), transform, GRID, inside) == 0


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
