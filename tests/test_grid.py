"""Grids: where voxels lie."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from odereg_core.grid import Grid
from odereg_core.transforms import Rigid

shapes = st.tuples(*[st.integers(1, 12)] * 3)
spacings = st.tuples(*[st.floats(0.5, 6)] * 3)


@given(shapes, spacings)
def test_points_are_centred_and_spaced(shape, spacing):
    points = Grid(shape, spacing).points(dtype=torch.float64)
    assert points.shape == (1, 3, *shape)
    assert torch.allclose(points.mean((2, 3, 4)), torch.zeros(1, 3, dtype=torch.float64), atol=1e-9)
    for axis in range(3):
        steps = points[0, axis].diff(dim=axis)
        assert torch.allclose(steps, torch.full_like(steps, spacing[axis]))


@given(shapes, spacings)
def test_a_pyramid_keeps_the_field_of_view(shape, spacing):
    fine = Grid(tuple(4 * n for n in shape), spacing)
    levels = fine.pyramid(3)
    assert levels[-1] == fine
    assert [level.shape for level in levels[:2]] == [shape, tuple(2 * n for n in shape)]
    for level in levels:
        assert level.extent == pytest.approx(fine.extent)


def test_bad_grids_are_refused():
    with pytest.raises(ValueError, match="three positive sizes"):
        Grid((0, 2, 2), (1, 1, 1))
    with pytest.raises(ValueError, match="three positive spacings"):
        Grid((2, 2, 2), (1, -1, 1))
    with pytest.raises(ValueError, match="not divisible"):
        Grid((3, 4, 4), (1, 1, 1)).coarsened(2)


def test_gradients_flow_where_inference_was_first():
    grid = Grid((7, 6, 5), (1.5, 2.0, 2.5))
    with torch.inference_mode():
        Rigid().displacement(torch.zeros(1, 6), grid)
    theta = torch.zeros(1, 6, requires_grad=True)
    Rigid().displacement(theta, grid).square().sum().backward()
    assert theta.grad is not None
