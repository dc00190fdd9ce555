"""Metrics against closed forms and other libraries."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import dice as scipy_dice

from odereg_core import metrics
from odereg_core.grid import Grid
from odereg_core.transforms import Rigid

GRID = Grid((16, 14, 12), (2.0, 2.5, 3.0))


@given(st.integers(0, 1000))
@settings(max_examples=25, deadline=None)
def test_dice_is_scipys(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(2, 1, 5, 5, 5, generator=generator) < 0.4 for _ in range(2))
    flat = zip(a.flatten(1).numpy(), b.flatten(1).numpy(), strict=True)
    expected = [1 - scipy_dice(x, y) for x, y in flat]
    assert metrics.dice(a, b).tolist() == pytest.approx(expected)
    assert torch.equal(metrics.dice(a, b), metrics.dice(b, a))


def test_dice_at_the_ends():
    full, empty = (
        torch.ones(1, 1, 3, 3, 3, dtype=torch.bool),
        torch.zeros(1, 1, 3, 3, 3, dtype=torch.bool),
    )
    assert metrics.dice(full, full) == 1
    assert metrics.dice(full, empty) == 0
    assert metrics.dice(empty, empty) == 1


def test_rmse_phi_of_a_shift_is_its_length():
    u = torch.tensor([3.0, -4.0, 12.0]).reshape(1, 3, 1, 1, 1).expand(1, 3, *GRID.shape)
    mask = torch.rand(1, 1, *GRID.shape) < 0.5
    assert metrics.rmse_phi(u, torch.zeros_like(u)).item() == pytest.approx(13)
    assert metrics.rmse_phi(u, torch.zeros_like(u), mask).item() == pytest.approx(13)


def test_rmse_is_over_the_mask_alone():
    a, b = torch.zeros(1, 1, 4, 4, 4), torch.zeros(1, 1, 4, 4, 4)
    mask = torch.zeros(1, 1, 4, 4, 4, dtype=torch.bool)
    mask[..., :2] = True
    b[..., 0], b[..., 3] = 1.0, 100.0
    assert metrics.rmse(a, b, mask).item() == pytest.approx(math.sqrt(0.5))


def test_jacobian_of_an_affine_map_is_its_determinant():
    matrix = torch.tensor([[1.1, 0.2, 0.0], [-0.1, 0.9, 0.3], [0.05, 0.0, 1.2]])
    points = GRID.points()
    u = torch.einsum("ij,bjxyz->bixyz", matrix, points) - points
    j = metrics.jacobian_determinant(u, GRID)
    assert torch.allclose(j, torch.linalg.det(matrix).expand_as(j), atol=1e-4)
    assert metrics.folding(u, GRID) == 0
    assert metrics.log_jacobian_std(u, GRID).item() == pytest.approx(0, abs=1e-4)
    rotation = Rigid().displacement(torch.tensor([[0.4, 0.3, -0.9, 3.0, 1.0, 2.0]]), GRID)
    assert torch.allclose(metrics.jacobian_determinant(rotation, GRID), torch.ones(1), atol=1e-4)


def test_jacobian_is_simpleitks_inside():
    generator = torch.Generator().manual_seed(0)
    u = torch.randn(1, 3, *GRID.shape, generator=generator)
    field = sitk.GetImageFromArray(u[0].permute(3, 2, 1, 0).double().numpy(), isVector=True)
    field.SetSpacing(GRID.spacing)
    theirs = sitk.GetArrayFromImage(sitk.DisplacementFieldJacobianDeterminant(field)).T
    ours = metrics.jacobian_determinant(u, GRID)[0, 0].numpy()
    inner = (slice(1, -1),) * 3
    np.testing.assert_allclose(ours[inner], theirs[inner], atol=1e-4)


def test_a_mirror_folds_everywhere():
    u = torch.zeros(1, 3, *GRID.shape)
    u[:, 0] = -2 * GRID.points()[:, 0]
    assert metrics.folding(u, GRID) == 1


def test_hausdorff_of_two_boxes():
    a, b = (torch.zeros(1, 1, *GRID.shape, dtype=torch.bool) for _ in range(2))
    a[..., 4:8, 4:8, 4:8] = True
    b[..., 4:8, 4:8, 6:10] = True
    assert metrics.hausdorff95(a, b, GRID).item() == pytest.approx(6.0)
    assert metrics.hausdorff95(a, torch.zeros_like(b), GRID).isnan().all()


def test_spread_of_log_jacobian_is_of_the_map_inside_the_mask():
    """Half the grid is stretched twofold along x, half left alone: log |J| is log 2 or 0."""
    x = GRID.points()[:, :1]
    u = torch.cat([x.clamp_min(0), torch.zeros_like(x), torch.zeros_like(x)], 1)
    mask = ((x.abs() > 4) & (x.abs() < 12)).expand(1, 1, *GRID.shape)
    spread = metrics.log_jacobian_std(u, GRID, mask).item()
    assert spread == pytest.approx(math.log(2) / 2, rel=1e-4)
    assert metrics.log_jacobian_std(u, GRID, mask & (x > 0)).item() == pytest.approx(0, abs=1e-4)
