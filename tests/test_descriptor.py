"""The Gauss-Newton step between two descriptors against SciPy and a step known beforehand."""

from itertools import combinations

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, shift
from scipy.optimize import least_squares

from odereg_core.box import box_of, put_back
from odereg_core.descriptor import (
    context,
    look,
    mind,
    newton_step,
    newton_twist,
    normal_equations,
    shared,
)
from odereg_core.grid import Grid
from odereg_core.transforms import Rigid
from odereg_core.warp import warp


def smooth_image(
    seed: int = 0, shape: tuple[int, ...] = (28, 26, 24), sigma: float = 1.5
) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = gaussian_filter(noise, sigma)
    return (smooth - smooth.min()) / np.ptp(smooth)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image)[None, None].float()


def test_the_context_is_that_of_all_close_pairs_among_a_voxel_and_its_neighbours():
    image = np.random.default_rng(0).random((4, 5, 3)).astype(np.float32)
    found = context(tensor(image))[0]
    offsets = np.array([[0, 0, 0], *np.eye(3, dtype=int), *-np.eye(3, dtype=int)])
    pairs = [(a, b) for a, b in combinations(offsets, 2) if np.linalg.norm(a - b) < 1.5]
    assert len(pairs) == found.shape[0] == 18
    padded = np.pad(image, 1)
    for place in np.ndindex(*image.shape):
        value = [[padded[tuple(np.array(place) + 1 + o)] for o in pair] for pair in pairs]
        d = np.array([(a - b) ** 2 for a, b in value])
        wanted = np.sort(np.exp(-d / d.mean()))
        np.testing.assert_allclose(np.sort(found[(slice(None), *place)].numpy()), wanted, rtol=1e-4)


@pytest.mark.parametrize(("describe", "sigma"), [(context, 3.0), (mind, 1.5)])
@pytest.mark.parametrize("stride", [1, 2])
def test_it_finds_a_small_shift_whatever_the_contrast(stride, describe, sigma):
    """What single voxels say changes over a voxel; what patches say, over three."""
    image = smooth_image(sigma=sigma)
    wanted = np.array([0.3, -0.2, 0.25])
    fixed = shift(image, -wanted, order=5, mode="nearest")  # fixed(p) = image(p + wanted)
    everywhere = torch.ones(1, 1, *image.shape)
    step = newton_step(*(describe(tensor(x)) for x in (image, 1 - fixed)), everywhere, stride, 3.6)
    assert step.shape == (1, 3, *(-(-n // stride) for n in image.shape))
    inner = step[0, :, 4:-4, 4:-4, 4:-4].mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(inner, wanted, atol=0.06)


def test_it_is_the_least_squares_solution_where_one_neighbourhood_counts():
    one, two = (tensor(smooth_image(seed, (3, 3, 3))) for seed in (1, 2))
    inside = torch.zeros(1, 1, 3, 3, 3)
    inside[..., 1, 1, 1] = 1
    looks = [torch.cat([image, image.square(), image.sin()], 1) for image in (one, two)]
    found = newton_step(*looks, inside, 1, 0)[0, :, 1, 1, 1].numpy()
    mean, ahead = ((looks[0] + looks[1]) / 2)[0].numpy(), (looks[1] - looks[0])[0, :, 1, 1, 1]
    slopes = np.stack([(mean.take(2, a) - mean.take(0, a))[:, 1, 1] / 2 for a in (1, 2, 3)], 1)

    def residual(step):
        return np.concatenate([slopes @ step - ahead.numpy(), 1e-3**0.5 * step])

    wanted = np.clip(least_squares(residual, np.zeros(3)).x, -3, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


@pytest.mark.parametrize("at", [(3, 4, 5), (0, 0, 0)])
def test_what_lies_about_the_heads_is_left_out_and_changes_nothing(at):
    """Two heads in a large volume, in its middle and in its corner, against all of it computed."""
    images = torch.zeros(2, 1, 20, 18, 16)
    for image, seed in zip(images, (1, 2), strict=True):
        head = tensor(smooth_image(seed, (9, 8, 7)))[0].clamp_min(0.3)
        image[..., *(slice(i, i + n) for i, n in zip(at, head.shape[1:], strict=True))] = head
    looks = [look(image[None]) for image in images]
    for found, image in zip(looks, images, strict=True):
        torch.testing.assert_close(found, context(image[None]) * (image > 0))
    inside = shared(*looks)
    box = box_of(inside)
    assert inside[..., *box].sum() == inside.sum() == 9 * 8 * 7
    assert inside[..., *box].numel() <= 11 * 10 * 9
    whole = torch.cat(normal_equations(*looks, inside), 1)
    part = torch.cat(normal_equations(*(x[..., *box] for x in (*looks, inside))), 1)
    torch.testing.assert_close(put_back(part, box, inside), whole)


def test_swapped_images_turn_it_round_and_nothing_inside_leaves_it_at_zero():
    one, two = (context(tensor(smooth_image(seed))) for seed in (3, 4))
    everywhere = torch.ones(1, 1, *one.shape[2:])
    there, back = (newton_step(a, b, everywhere, 1, 2) for a, b in ((one, two), (two, one)))
    torch.testing.assert_close(there, -back, atol=1e-4, rtol=1e-3)
    assert not newton_step(one, two, 0 * everywhere, 1, 2).any()


def test_the_twist_is_that_between_two_images_in_the_warped_ones_frame():
    """A smooth image and itself moved by a small rigid motion, of another contrast."""
    grid = Grid((28, 26, 24), (2.0, 2.5, 3.0))
    image, motion = tensor(smooth_image()), torch.tensor([[0.02, -0.015, 0.03, 0.5, -0.4, 0.6]])
    fixed = warp(1 - image, Rigid().displacement(motion, grid), grid)
    inside = torch.zeros_like(image)
    inside[..., 3:-3, 3:-3, 3:-3] = 1
    found = newton_twist(mind(image), mind(fixed), inside, grid)
    wanted = Rigid().towards(torch.zeros(1, 6), motion)
    torch.testing.assert_close(found[:, :3], wanted[:, :3], atol=0.007, rtol=0)
    torch.testing.assert_close(found[:, 3:], wanted[:, 3:], atol=0.15, rtol=0)


def test_the_twist_of_every_voxel_by_itself_is_that_of_all():
    """The normal equations add up: autograd's Gauss-Newton step of the same linear model."""
    grid = Grid((6, 5, 4), (2.0, 3.0, 4.0))
    one, two = (torch.rand(1, 4, *grid.shape) for _ in range(2))
    everywhere = torch.ones(1, 1, *grid.shape)
    down, normal = normal_equations(one, two, everywhere)
    normal = normal[:, [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(1, (3, 3))

    def change(twist):
        v = Rigid().field(twist[None], grid) / torch.tensor(grid.spacing).reshape(3, 1, 1, 1)
        return torch.einsum("bixyz,bijxyz,bjxyz->", v, normal, v) - 2 * (down * v).sum()

    zero = torch.zeros(6)
    gradient = torch.autograd.functional.jacobian(change, zero)
    hessian = torch.autograd.functional.hessian(change, zero)
    wanted = -torch.linalg.solve(hessian + 1e-4 * torch.diag(hessian.diagonal()), gradient)
    found = newton_twist(one, two, everywhere, grid)[0]
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-3)
    with torch.autocast("cpu", dtype=torch.bfloat16):  # products of coordinates: never in less
        assert torch.equal(newton_twist(one, two, everywhere, grid)[0], found)
