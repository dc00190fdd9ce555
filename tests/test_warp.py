"""The warp against SciPy and SimpleITK, and the laws of resampling."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import map_coordinates

from odereg_core.grid import Grid
from odereg_core.transforms import BSpline, Rigid
from odereg_core.warp import sample, voxels, warp

GRID = Grid((13, 11, 9), (2.0, 3.0, 4.5))


def random_pair(seed=0, scale=6.0):
    generator = torch.Generator().manual_seed(seed)
    image = torch.rand(2, 1, *GRID.shape, generator=generator)
    spline = BSpline(12.0)
    control = torch.randn(spline.identity(2, GRID).shape, generator=generator) * scale
    return image, spline.displacement(control, GRID)


@given(st.integers(0, 50), st.floats(0.1, 15))
@settings(max_examples=15, deadline=None)
def test_linear_is_scipys_map_coordinates(seed, scale):
    image, u = random_pair(seed, scale)
    ours = warp(image, u, GRID)
    index = voxels(GRID.points() + u, GRID).numpy()
    # Where neighbours are inside the volume the two agree; at its rim conventions differ.
    top = np.array(GRID.shape).reshape(1, 3, 1, 1, 1) - 1
    interior = ((index >= 0) & (index <= top)).all(1)
    for b in range(2):
        theirs = map_coordinates(image[b, 0].numpy(), index[b], order=1, mode="nearest")
        error = np.abs(ours[b, 0].numpy() - theirs)[interior[b]]
        assert error.size == 0 or error.max() < 1e-5


def test_linear_and_nearest_are_simpleitks():
    image, u = random_pair(scale=4.0)
    labels = (image * 5).round()
    for mode, interpolator, data in (
        ("linear", sitk.sitkLinear, image),
        ("nearest", sitk.sitkNearestNeighbor, labels),
    ):
        moving = sitk.GetImageFromArray(data[0, 0].numpy().T)
        origin = [-(n - 1) / 2 * s for n, s in zip(GRID.shape, GRID.spacing, strict=True)]
        field = sitk.GetImageFromArray(u[0].permute(3, 2, 1, 0).double().numpy(), isVector=True)
        for thing in (moving, field):
            thing.SetSpacing(GRID.spacing)
            thing.SetOrigin(origin)
        result = sitk.Resample(moving, moving, sitk.DisplacementFieldTransform(field), interpolator)
        theirs = sitk.GetArrayFromImage(result).T
        ours = warp(data, u, GRID, mode=mode)[0, 0].numpy()
        index = voxels(GRID.points() + u, GRID)[0].numpy()
        top = np.array(GRID.shape).reshape(3, 1, 1, 1) - 1
        interior = ((index > 0) & (index < top)).all(0)
        # Nearest may fall on either side of a tie.
        tie = (np.abs(index % 1 - 0.5) < 1e-3).any(0) & (mode == "nearest")
        assert interior.sum() > 300
        np.testing.assert_allclose(ours[interior & ~tie], theirs[interior & ~tie], atol=1e-5)


def test_zero_displacement_returns_the_image():
    image, u = random_pair()
    assert torch.allclose(warp(image, torch.zeros_like(u), GRID), image, atol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_a_shift_pulls_back(axis):
    """u = +1 voxel along an axis shows, at p, what lies one voxel further: not the other way
    round."""
    image, u = random_pair()
    u = torch.zeros_like(u)
    u[:, axis] = GRID.spacing[axis]
    shifted = warp(image, u, GRID)
    n = GRID.shape[axis]
    expected = image.narrow(axis + 2, 1, n - 1)
    assert torch.allclose(shifted.narrow(axis + 2, 0, n - 1), expected, atol=1e-5)
    assert not shifted.select(axis + 2, n - 1).any()  # beyond the image lie zeros


def test_outside():
    image, u = random_pair()
    far = torch.full_like(u, 1e4)
    assert not warp(image, far, GRID).any()
    corner = image[:, :, -1, -1, -1].reshape(2, 1, 1, 1, 1).expand_as(image)
    index = voxels(GRID.points() + far, GRID)
    assert torch.allclose(sample(image, index, outside="edge"), corner)
    assert not sample(image, index).any()


def test_types():
    image, u = random_pair()
    assert warp(image.double(), u.double(), GRID).dtype == torch.float64
    half = warp(image.bfloat16(), u, GRID)
    assert half.dtype == torch.bfloat16
    with torch.autocast("cpu", torch.bfloat16):
        mixed = warp(image, u, GRID)
    assert torch.equal(mixed, warp(image, u, GRID))  # coordinates stay float32
    rough = warp(image, u.bfloat16(), GRID)
    assert (rough - warp(image, u.bfloat16().float(), GRID)).abs().max() == 0


def test_a_large_volume_is_warped_slab_by_slab_to_the_same_bits():
    grid = Grid((30, 350, 250), (2.0, 1.0, 1.5))
    assert math.prod(grid.shape) > 2**21  # more than one slab
    image = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(0))
    u = Rigid().displacement(torch.tensor([[0.2, -0.1, 0.3, 9.0, -5.0, 4.0]]), grid)
    whole = warp(image, u, grid)  # gradients could be asked for, so nothing is cut
    with torch.no_grad():
        assert torch.equal(warp(image, u, grid), whole)
        half = warp(image.bfloat16(), u, grid)
    assert torch.equal(half, warp(image.bfloat16(), u, grid))


def test_what_lies_on_another_grid_is_refused():
    image, u = random_pair()
    with pytest.raises(ValueError, match="image"):
        warp(image[:, :, 1:], u, GRID)
    with pytest.raises(ValueError, match="displacement"):
        warp(image, u[..., 1:], GRID)


def test_sample_at_voxel_centres():
    image, _ = random_pair()
    index = voxels(GRID.points(), GRID).expand(2, -1, -1, -1, -1)
    assert torch.allclose(sample(image, index), image, atol=1e-6)
