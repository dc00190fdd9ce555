"""Laws that must hold for every parameterisation, and agreement with tools we did not write."""

import math

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline as ScipyBSpline
from scipy.spatial.transform import Rotation

from odereg_core.grid import Grid
from odereg_core.transforms import TRANSFORMS, BSpline, Dense, Rigid, compose, invert

GRID = Grid((12, 10, 14), (3.0, 4.0, 2.5))
ALL = [Rigid(), BSpline(11.0, (2.0, -3.0, 4.0)), Dense()]

angles = st.lists(st.floats(-1.3, 1.3), min_size=3, max_size=3)
shifts = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


def random_theta(transform, batch=2, scale=1.0, dtype=torch.float64):
    like = transform.identity(batch, GRID, dtype=dtype)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return noise * scale * 0.1 * transform.unit(like)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: t.name)
def test_zero_is_the_identity(transform):
    theta = transform.identity(2, GRID)
    assert not transform.displacement(theta, GRID).any()
    points = GRID.points()
    assert torch.allclose(transform.map(theta, points, GRID), points.expand(2, -1, -1, -1, -1))


@pytest.mark.parametrize("transform", ALL, ids=lambda t: t.name)
def test_map_and_displacement_agree_on_the_grid(transform):
    theta = random_theta(transform)
    points = GRID.points(dtype=torch.float64)
    u = transform.displacement(theta, GRID)
    assert torch.allclose(transform.map(theta, points, GRID) - points, u, atol=1e-9)


@pytest.mark.parametrize("transform", [Rigid(), BSpline(11.0)], ids=lambda t: t.name)
def test_theta_means_the_same_map_at_every_scale(transform):
    fine, coarse = Grid((16, 8, 24), (2.0, 3.0, 1.5)), Grid((8, 4, 12), (4.0, 6.0, 3.0))
    like = transform.identity(1, fine, dtype=torch.float64)
    theta = torch.randn(like.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    points = coarse.points(dtype=torch.float64)
    on_coarse = transform.displacement(transform.resample(theta, fine, coarse), coarse)
    assert torch.allclose(points + on_coarse, transform.map(theta, points, fine), atol=1e-9)


def test_dense_resampling_keeps_an_affine_field():
    coarse, fine = Grid((8, 8, 8), (4.0, 4.0, 4.0)), Grid((16, 16, 16), (2.0, 2.0, 2.0))
    field = coarse.points() * torch.tensor([0.1, -0.2, 0.05]).reshape(1, 3, 1, 1, 1)
    expected = fine.points() * torch.tensor([0.1, -0.2, 0.05]).reshape(1, 3, 1, 1, 1)
    inner = (..., slice(1, -1), slice(1, -1), slice(1, -1))  # the edge half voxel is held constant
    assert torch.allclose(Dense().resample(field, coarse, fine)[inner], expected[inner], atol=1e-5)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: t.name)
def test_gradients_match_finite_differences(transform):
    grid = Grid((4, 3, 5), (9.0, 11.0, 8.0))
    theta = torch.randn_like(transform.identity(1, grid, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(lambda p: transform.displacement(p, grid), theta)
    points = torch.randn(1, 3, 4, 2, 1, dtype=torch.float64) * 4 + 0.3
    assert torch.autograd.gradcheck(lambda p: transform.map(p, points, grid), theta)


@given(angles, shifts)
@settings(max_examples=30, deadline=None)
def test_rigid_inverse_and_matrix(angle, shift):
    rigid, theta = Rigid(), torch.tensor([angle + shift], dtype=torch.float64)
    product = rigid.matrix(rigid.inverse(theta)) @ rigid.matrix(theta)
    assert torch.allclose(product[0], torch.eye(4, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(rigid.from_matrix(rigid.matrix(theta)), theta, atol=1e-8)


@given(angles, shifts)
@settings(max_examples=30, deadline=None)
def test_rigid_is_scipys_rotation_and_itks_euler_transform(angle, shift):
    theta = torch.tensor([angle + shift], dtype=torch.float64)
    matrix = Rigid().matrix(theta)[0].numpy()
    scipy = Rotation.from_euler("xyz", angle).as_matrix()  # extrinsic x, y, z: Rz Ry Rx
    np.testing.assert_allclose(matrix[:3, :3], scipy, atol=1e-12)
    itk = sitk.Euler3DTransform()
    itk.SetComputeZYX(True)
    itk.SetParameters([*angle, *shift])
    point = (3.0, -7.0, 11.0)
    ours = matrix[:3, :3] @ np.array(point) + matrix[:3, 3]
    np.testing.assert_allclose(ours, itk.TransformPoint(point), atol=1e-9)


@given(angles, shifts, angles, shifts)
@settings(max_examples=20, deadline=None)
def test_rigid_rate_is_motion_in_the_warped_frame(angle, shift, omega, velocity):
    """theta + h rate(theta, xi) is phi_theta∘exp(h xi), to first order in h."""
    rigid, h = Rigid(), 1e-5
    theta = torch.tensor([angle + shift], dtype=torch.float64)
    xi = torch.tensor([omega + velocity], dtype=torch.float64)
    (wx, wy, wz), v = omega, velocity
    generator = torch.zeros(4, 4, dtype=torch.float64)
    generator[:3, :3] = torch.tensor([[0, -wz, wy], [wz, 0, -wx], [-wy, wx, 0]])
    generator[:3, 3] = torch.tensor(v)
    expected = rigid.matrix(theta)[0] @ torch.matrix_exp(h * generator)
    got = rigid.matrix(theta + h * rigid.rate(theta, xi))[0]
    assert torch.allclose(got, expected, atol=5e-8)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_bspline_is_scipys_along_each_axis(axis):
    """A theta that varies along one axis only is SciPy's one-dimensional cubic spline."""
    spline = BSpline(11.0, (2.0, -3.0, 4.0))
    shape = spline.control_shape(GRID)
    values = np.random.default_rng(1).normal(size=shape[axis])
    theta = torch.from_numpy(values).reshape([-1 if a == axis else 1 for a in range(3)])
    theta = theta.expand(1, 3, *shape).double()
    u = spline.displacement(theta, GRID)[0, 0]
    along = u.movedim(axis, -1)[0, 0].numpy()
    n, x = shape[axis], GRID.axes(dtype=torch.float64)[axis].numpy()
    index = (x - spline.offset[axis]) / spline.spacing + (n - 1) / 2
    scipy = ScipyBSpline(np.arange(-2, n + 2), values, 3, extrapolate=False)
    np.testing.assert_allclose(along, scipy(index), atol=1e-10)


def test_bspline_is_simpleitks_in_three_dimensions():
    """The control lattice of ITK's B-spline transform over the same physical domain, same field."""
    grid, mesh = Grid((9, 9, 9), (5.0, 5.0, 5.0)), 4
    itk = sitk.BSplineTransform(3, 3)
    itk.SetTransformDomainOrigin([-20.0] * 3)
    itk.SetTransformDomainPhysicalDimensions([40.0] * 3)
    itk.SetTransformDomainMeshSize([mesh] * 3)
    rng = np.random.default_rng(0)
    control = rng.normal(size=(3, mesh + 3, mesh + 3, mesh + 3))
    itk.SetParameters(np.transpose(control, (0, 3, 2, 1)).ravel())  # x fastest
    spline = BSpline(10.0)
    points = torch.from_numpy(rng.uniform(-18, 18, (1, 3, 40)))
    ours = spline.map(torch.from_numpy(control)[None], points, grid)[0].T.numpy()
    theirs = [itk.TransformPoint(p) for p in points[0].T.tolist()]
    np.testing.assert_allclose(ours, theirs, atol=1e-9)


@given(st.floats(5, 40), st.integers(4, 30), st.floats(0.5, 5))
@settings(max_examples=30, deadline=None)
def test_bspline_basis_is_a_partition_of_unity(spacing, n, voxel):
    """Equal control displacements move every point of the grid alike, edges included."""
    grid = Grid((n, n, n), (voxel,) * 3)
    for offset in (0.0, spacing / 2, -spacing / 2):
        spline = BSpline(spacing, (offset, 0.0, 0.0))
        theta = torch.ones_like(spline.identity(1, grid, dtype=torch.float64))
        u = spline.displacement(theta, grid)
        assert torch.allclose(u, torch.ones_like(u), atol=1e-9)


def test_composition_is_evaluated_exactly():
    rigid, theta = Rigid(), torch.tensor([[0.3, -0.2, 0.5, 4.0, -3.0, 2.0]], dtype=torch.float64)
    other = torch.tensor([[-0.1, 0.4, 0.2, -5.0, 1.0, 2.0]], dtype=torch.float64)
    u = compose(rigid, theta, rigid.displacement(other, GRID), GRID)
    both = rigid.from_matrix(rigid.matrix(theta) @ rigid.matrix(other))
    assert torch.allclose(u, rigid.displacement(both, GRID), atol=1e-9)


def test_fixed_point_inverse():
    spline, grid = BSpline(25.0), Grid((24, 24, 24), (3.0, 3.0, 3.0))
    noise = torch.randn(spline.identity(1, grid).shape, generator=torch.Generator().manual_seed(0))
    u = spline.displacement(3 * noise, grid)
    v = invert(u, grid)
    middle = (..., slice(4, -4), slice(4, -4), slice(4, -4))
    both = compose(Dense(), u, v, grid)
    assert both[middle].abs().max() < 1e-3
    assert u[middle].abs().max() > 1


def test_unsuitable_parameters_are_refused():
    with pytest.raises(ValueError, match="spacing"):
        BSpline(0.0)
    with pytest.raises(ValueError, match="offset"):
        BSpline(10.0, (6.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="resample it"):
        Dense().displacement(torch.zeros(1, 3, 2, 2, 2), GRID)


def test_every_registered_transform_has_its_name():
    assert all(TRANSFORMS[name].name == name for name in TRANSFORMS)
    assert math.isclose(Rigid.ranges[0], math.radians(75))
