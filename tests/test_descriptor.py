"""The Gauss-Newton step between two descriptors against SciPy and a step known beforehand."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter, shift
from scipy.optimize import least_squares

from odereg_core.descriptor import mind, newton_step


def smooth_image(seed: int = 0, shape: tuple[int, ...] = (28, 26, 24)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=shape)
    smooth = gaussian_filter(noise, 1.5)
    return (smooth - smooth.min()) / np.ptp(smooth)


def tensor(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image)[None, None].float()


@pytest.mark.parametrize("stride", [1, 2])
def test_it_finds_a_small_shift_whatever_the_contrast(stride):
    image = smooth_image()
    wanted = np.array([0.3, -0.2, 0.25])
    fixed = shift(image, -wanted, order=5, mode="nearest")  # fixed(p) = image(p + wanted)
    everywhere = torch.ones(1, 1, *image.shape)
    step = newton_step(mind(tensor(image)), mind(tensor(1 - fixed)), everywhere, stride)
    assert step.shape == (1, 3, *(-(-n // stride) for n in image.shape))
    inner = step[0, :, 4:-4, 4:-4, 4:-4].mean((1, 2, 3)).numpy()
    np.testing.assert_allclose(inner, wanted, atol=0.06)


def test_it_is_the_least_squares_solution_where_one_neighbourhood_counts():
    one, two = (tensor(smooth_image(seed, (3, 3, 3))) for seed in (1, 2))
    inside = torch.zeros(1, 1, 3, 3, 3)
    inside[..., 1, 1, 1] = 1
    looks = [torch.cat([image, image.square(), image.sin()], 1) for image in (one, two)]
    found = newton_step(*looks, inside, boxes=0)[0, :, 1, 1, 1].numpy()
    mean, ahead = ((looks[0] + looks[1]) / 2)[0].numpy(), (looks[1] - looks[0])[0, :, 1, 1, 1]
    slopes = np.stack([(mean.take(2, a) - mean.take(0, a))[:, 1, 1] / 2 for a in (1, 2, 3)], 1)

    def residual(step):
        return np.concatenate([slopes @ step - ahead.numpy(), 1e-3**0.5 * step])

    wanted = np.clip(least_squares(residual, np.zeros(3)).x, -3, 3)
    np.testing.assert_allclose(found, wanted, atol=1e-3)


def test_swapped_images_turn_it_round_and_nothing_inside_leaves_it_at_zero():
    one, two = (mind(tensor(smooth_image(seed))) for seed in (3, 4))
    everywhere = torch.ones(1, 1, *one.shape[2:])
    there, back = newton_step(one, two, everywhere), newton_step(two, one, everywhere)
    torch.testing.assert_close(there, -back, atol=1e-4, rtol=1e-3)
    assert not newton_step(one, two, 0 * everywhere).any()
