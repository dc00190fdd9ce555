"""What training draws: its ranges, its meaning, and that it repeats."""

import math

import pytest
import torch

from odereg_core.grid import Grid
from odereg_core.profiles import MotionSection
from odereg_core.train.draws import (
    controls_of,
    motion,
    normal,
    rigid_theta,
    smooth_field,
    state,
)
from odereg_core.transforms import TRANSFORMS, BSpline, Rigid

GRID = Grid((20, 20, 14), (12.0, 12.0, 12.0))
LIKE = torch.zeros(1)
SETTINGS = MotionSection(rotation_deg=75, translation_mm=20, control_mm=8)


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def test_rigid_motions_fill_their_range():
    theta = rigid_theta(4000, 75, 20, LIKE, rng())
    assert theta[:, :3].abs().max() <= math.radians(75) and theta[:, 3:].abs().max() <= 20
    # U(-a, a) has standard deviation a / sqrt 3
    spread = theta.std(0) * 3**0.5
    torch.testing.assert_close(spread[:3], torch.full((3,), math.radians(75)), rtol=0.05, atol=0)
    torch.testing.assert_close(spread[3:], torch.full((3,), 20.0), rtol=0.05, atol=0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_noise_of_a_whole_image_is_drawn_where_it_lies_and_repeats(device):
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no GPU")
    like = torch.zeros(2, 1, 40, 40, 28, device=device)
    generator = rng(3)
    first, second = normal(like, generator), normal(like, generator)
    assert first.shape == like.shape and first.device == like.device
    assert torch.equal(first, normal(like, rng(3))) and not torch.equal(first, second)
    for noise in (first, second):  # within five standard errors of N(0, 1)
        assert abs(float(noise.mean())) < 5 / noise.numel() ** 0.5
        assert abs(float(noise.std()) - 1) < 5 / (2 * noise.numel()) ** 0.5


def test_smooth_fields_have_the_amplitude_asked_for():
    fields = torch.cat([smooth_field(16, 8.0, GRID, LIKE, rng(s)) for s in range(8)])
    # A cubic spline of white controls of deviation s has s 0.479^(3/2) on average; s ~ U(2, 8)
    wanted = 8 * (0.4375**0.5) * 0.479**1.5
    assert fields.std() == pytest.approx(wanted, rel=0.15)


def test_controls_of_reproduces_a_smooth_field():
    spline = BSpline()
    controls = spline.control_grid(GRID)
    values = smooth_field(4, 8.0, controls, LIKE, rng(1))
    inside = (..., slice(2, -2), slice(2, -2), slice(2, -2))
    there = spline.displacement(controls_of(values), controls)
    error = (there - values)[inside]
    assert error.square().mean().sqrt() < 0.1 * values[inside].square().mean().sqrt()
    worse = (spline.displacement(values, controls) - values)[inside]
    assert error.norm() < 0.5 * worse.norm()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_theta_and_displacement_say_the_same(name):
    transform = TRANSFORMS[name]()
    settings = SETTINGS.model_copy(update={"mixed": 0.0})
    drawn = motion(transform, settings, 3, GRID, LIKE, rng())
    torch.testing.assert_close(
        transform.displacement(drawn.theta, GRID), drawn.displacement, atol=1e-3, rtol=1e-4
    )
    again = motion(transform, settings, 3, GRID, LIKE, rng())
    assert torch.equal(drawn.theta, again.theta)


def test_mixed_examples_are_a_deformation_under_a_rigid_motion():
    settings = SETTINGS.model_copy(update={"mixed": 1.0})
    drawn = motion(Rigid(), settings, 4, GRID, LIKE, rng())
    rest = drawn.displacement - Rigid().displacement(drawn.theta, GRID)
    deviation = rest.flatten(1).std(1)
    assert (deviation > 0.3).all() and (deviation < 6).all()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_a_state_has_a_share_of_the_motion_left(name):
    transform = TRANSFORMS[name]()
    drawn, other = (motion(transform, SETTINGS, 64, GRID, LIKE, rng(s)) for s in (0, 1))
    near = state(transform, drawn, other, 0.0, 0.01, 0.02, rng(2))
    far = state(transform, drawn, other, 0.0, 0.5, 1.0, rng(2))

    def left(theta):
        velocity = transform.towards(theta, drawn.theta)
        return transform.field(velocity, GRID).flatten(1).norm(dim=1).median()

    assert left(near) < 0.1 * left(far)
    start = state(transform, drawn, other, 1.0, 0.5, 1.0, rng(2))
    assert not start.any()
