"""Direct optimisation recovers a known motion of any kind, and never ends above its start."""

import pytest
import torch

from odereg_core.grid import Grid
from odereg_core.losses import regularity
from odereg_core.optimise import optimise
from odereg_core.transforms import TRANSFORMS, BSpline, Rigid, compose
from odereg_core.warp import warp

GRID = Grid((24, 24, 20), (4.0, 4.0, 4.0))


def square(a, b, rng=None):
    return (a - b).square().flatten(1).mean(1)


def image(seed=0):
    x, y, z = GRID.points()[0]
    inside = (x / 38) ** 2 + (y / 42) ** 2 + (z / 32) ** 2 < 1
    texture = 0.5 + 0.2 * torch.sin(x / 9 + seed) + 0.2 * torch.cos(y / 8 - z / 10)
    return (texture * inside)[None, None]


def motion(name):
    rng = torch.Generator().manual_seed(1)
    if name == "rigid":
        return torch.tensor([[0.10, -0.06, 0.08, 3.0, -2.0, 1.5]])
    controls = torch.randn(1, 3, *BSpline(40.0).control_shape(GRID), generator=rng) * 3
    u = BSpline(40.0).displacement(controls, GRID)
    return u if name == "dense" else None


@pytest.mark.parametrize("name", TRANSFORMS)
def test_it_finds_a_known_motion(name):
    # A dense theta alone is free where the image is flat: it needs L_reg.
    transform = TRANSFORMS[name]()
    truth = motion("dense") if name == "bspline" else transform.displacement(motion(name), GRID)
    moving, fixed = image(), warp(image(), truth, GRID)
    theta, losses = optimise(
        square, transform, moving, fixed, GRID, transform.identity(1, GRID),
        steps=60, lr=0.05, lambda_reg=0.1 if name == "dense" else 0.0,
    )  # fmt: skip
    assert losses.shape == (61, 1)
    found = transform.displacement(theta, GRID)
    left = ((found - truth).square().sum(1, keepdim=True)[fixed > 0]).mean().sqrt()
    before = (truth.square().sum(1, keepdim=True)[fixed > 0]).mean().sqrt()
    assert left < {"rigid": 0.05, "bspline": 0.3, "dense": 0.6}[name] * before
    assert losses.min() < 0.3 * losses[0]


def test_under_an_outer_map_the_inner_is_found():
    turn = torch.tensor([[0.2, 0.1, -0.3, 5.0, 2.0, -4.0]])
    shift = torch.tensor([[0.0, 0, 0, 4.0, -3.0, 2.0]])
    u = compose(Rigid(), turn, Rigid().displacement(shift, GRID), GRID)
    fixed = warp(image(), u, GRID)
    theta, _ = optimise(
        square, Rigid(), image(), fixed, GRID, torch.zeros(1, 6),
        steps=80, lr=0.02, lambda_reg=0.0, outer=(Rigid(), turn),
    )  # fmt: skip
    assert (theta - shift)[:, 3:].abs().max() < 0.3 and theta[:, :3].abs().max() < 0.01


@pytest.mark.parametrize("lr", [0.02, 5.0])
def test_the_result_is_the_best_met_and_each_example_is_its_own(lr):
    moving = torch.cat([image(0), image(1)])
    fixed = torch.cat([warp(image(0), motion("dense"), GRID), image(1)])
    start = torch.zeros(2, 3, *BSpline().control_shape(GRID))
    settings = {"steps": 6, "lr": lr, "lambda_reg": 2.0}
    theta, losses = optimise(square, BSpline(), moving, fixed, GRID, start, **settings)
    assert torch.equal(theta[1], start[1])  # registered from the start: nothing is lower
    for i in range(2):
        u = BSpline().displacement(theta[i : i + 1], GRID)
        reached = square(warp(moving[i : i + 1], u, GRID), fixed[i : i + 1])
        reached = reached + 2.0 * regularity(u, GRID)
        torch.testing.assert_close(reached, losses[:, i].min()[None], rtol=1e-4, atol=1e-7)
    alone, _ = optimise(square, BSpline(), moving[:1], fixed[:1], GRID, start[:1], **settings)
    torch.testing.assert_close(alone, theta[:1], rtol=1e-3, atol=1e-3)


def test_no_steps_change_nothing_and_no_grad_does_not_stop_it():
    theta = motion("rigid")
    with torch.no_grad():
        same, losses = optimise(
            square, Rigid(), image(), image(), GRID, theta, steps=0, lr=0.1, lambda_reg=0.0
        )
        moved, _ = optimise(
            square, Rigid(), image(), image(), GRID, theta, steps=3, lr=0.02, lambda_reg=0.0
        )
    torch.testing.assert_close(same, theta)
    assert losses.shape == (1, 1)
    assert not torch.equal(moved, theta) and not moved.requires_grad
