"""Laws that must hold for every parameterisation, and agreement with tools we did not write."""

import math
from functools import partial

import numpy as np
import pytest
import scipy.linalg
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.interpolate import BSpline as ScipyBSpline
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from odereg_core.grid import Grid
from odereg_core.transforms import TRANSFORMS, BSpline, Dense, Rigid, affine_after, compose, invert
from odereg_core.warp import voxels, warp

GRID = Grid((12, 10, 14), (3.0, 4.0, 2.5))
ALL = [Rigid(), BSpline(11.0, (2.0, -3.0, 4.0)), Dense()]

angles = st.lists(st.floats(-1.3, 1.3), min_size=3, max_size=3)
shifts = st.lists(st.floats(-20, 20), min_size=3, max_size=3)


def random_theta(transform, batch=2, scale=1.0, dtype=torch.float64):
    like = transform.identity(batch, GRID, dtype=dtype)
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(3), dtype=dtype)
    return noise * scale * 0.1 * transform.unit(like)


sizes = st.tuples(*[st.integers(3, 9)] * 3)
spacings = st.tuples(*[st.floats(0.4, 6)] * 3)


@given(st.sampled_from(ALL), sizes, spacings, st.integers(1, 3))
@settings(max_examples=40, deadline=None)
def test_zero_is_the_identity(transform, size, spacing, batch):
    grid = Grid(size, spacing)
    theta = transform.identity(batch, grid)
    u = transform.displacement(theta, grid)
    assert u.shape == (batch, 3, *size) and not u.any()
    points = torch.randn(batch, 3, 7, 1, 2) * 20
    assert torch.equal(transform.map(theta, points, grid), points)
    image = torch.rand(batch, 2, *size)
    assert torch.allclose(warp(image, u, grid), image, atol=1e-5)


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
    # Along random directions where theta is long, else entry by entry.
    check = partial(torch.autograd.gradcheck, fast_mode=transform.name == "bspline")
    generator = torch.Generator().manual_seed(0)
    theta = transform.identity(1, grid, dtype=torch.float64)
    theta = torch.randn(theta.shape, generator=generator, dtype=torch.float64).requires_grad_()
    assert check(lambda p: transform.displacement(p, grid), theta)
    points = torch.randn(1, 3, 4, 2, 1, generator=generator, dtype=torch.float64) * 4 + 0.3
    assert check(lambda p: transform.map(p, points, grid), theta)
    image = torch.rand(1, 1, *grid.shape, generator=generator, dtype=torch.float64)
    image.requires_grad_()
    assert check(lambda x, p: warp(x, transform.displacement(p, grid), grid), (image, theta))


@pytest.mark.parametrize("transform", ALL, ids=lambda t: t.name)
def test_coordinates_stay_float32_under_bf16_autocast(transform):
    """At 100 mm bfloat16 knows half millimetres; a warp in it would be off by as much."""
    theta, other = (random_theta(transform, dtype=torch.float32, scale=s) for s in (5.0, -3.0))
    image = torch.rand(2, 1, *GRID.shape, generator=torch.Generator().manual_seed(1))
    rigid = random_theta(Rigid(), dtype=torch.float32, scale=5.0)

    def numbers():
        u = transform.displacement(theta, GRID)
        yield u
        yield transform.map(theta, GRID.points(), GRID)
        yield compose(Rigid(), rigid, u, GRID)
        yield invert(u, GRID, iterations=3)
        yield warp(image, u, GRID)
        yield transform.rate(theta, other)
        yield transform.towards(theta, other)
        yield transform.field(theta, GRID)
        yield transform.resample(theta, GRID, Grid((6, 5, 7), (6.0, 8.0, 5.0)))

    expected = list(numbers())
    with torch.autocast("cpu", torch.bfloat16):
        # That autocast is on, and would have rounded.
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16
        got = list(numbers())
    for mine, right in zip(got, expected, strict=True):
        assert mine.dtype == torch.float32 and torch.equal(mine, right)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: t.name)
def test_half_precision_theta_is_widened(transform):
    theta = random_theta(transform, dtype=torch.float32).bfloat16()
    u = transform.displacement(theta, GRID)
    assert u.dtype == torch.float32
    assert torch.equal(u, transform.displacement(theta.float(), GRID))
    assert compose(transform, theta, u.bfloat16(), GRID).dtype == torch.float32


@given(angles, shifts)
@settings(max_examples=30, deadline=None)
def test_rigid_inverse_and_matrix(angle, shift):
    rigid, theta = Rigid(), torch.tensor([angle + shift], dtype=torch.float64)
    product = rigid.matrix(rigid.inverse(theta)) @ rigid.matrix(theta)
    assert torch.allclose(product[0], torch.eye(4, dtype=torch.float64), atol=1e-10)
    assert torch.allclose(rigid.from_matrix(rigid.matrix(theta)), theta, atol=1e-8)
    points = torch.randn(1, 3, 20, dtype=torch.float64) * 100
    there = rigid.map(theta, points)
    assert torch.allclose(rigid.map(rigid.inverse(theta), there), points, atol=1e-9)


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


@given(angles, shifts, angles, shifts)
@settings(max_examples=20, deadline=None)
def test_composition_of_rigid_maps_is_the_product_of_their_matrices(angle, shift, other, away):
    rigid = Rigid()
    outer, inner = (
        torch.tensor([values], dtype=torch.float64) for values in (angle + shift, other + away)
    )
    u = compose(rigid, outer, rigid.displacement(inner, GRID), GRID)
    product = (rigid.matrix(outer) @ rigid.matrix(inner))[0]
    points = GRID.points(dtype=torch.float64)
    expected = torch.einsum("ij,bjxyz->bixyz", product[:3, :3], points)
    expected = expected + product[:3, 3].reshape(1, 3, 1, 1, 1) - points
    assert torch.allclose(u, expected, atol=1e-9)


@given(st.sampled_from(ALL), angles, shifts, angles, shifts, st.floats(0, 20))
@settings(max_examples=30, deadline=None)
def test_composition_laws(transform, angle, shift, other, away, scale):
    """phi∘1 = 1∘phi = phi, and (R∘S)∘phi = R∘(S∘phi) for rigid R and S."""
    rigid, theta = Rigid(), random_theta(transform, batch=1, scale=scale)
    u = transform.displacement(theta, GRID)
    assert torch.allclose(compose(transform, theta, torch.zeros_like(u), GRID), u, atol=1e-9)
    same = transform.identity(1, GRID, dtype=torch.float64)
    assert torch.allclose(compose(transform, same, u, GRID), u, atol=1e-9)
    r, s = (torch.tensor([values], dtype=torch.float64) for values in (angle + shift, other + away))
    both = rigid.from_matrix(rigid.matrix(r) @ rigid.matrix(s))
    left = compose(rigid, both, u, GRID)
    right = compose(rigid, r, compose(rigid, s, u, GRID), GRID)
    assert torch.allclose(left, right, atol=1e-7)


def test_the_hybrid_resamples_once():
    """x(phi_R(phi_D(p))) is SciPy's one interpolation at that point; two would blur the image."""
    grid = Grid((24, 20, 18), (2.0, 2.5, 3.0))
    image = torch.rand(1, 1, *grid.shape, generator=torch.Generator().manual_seed(4))
    theta = torch.tensor([[0.2, -0.1, 0.3, 2.0, -1.0, 1.5]])
    shape = BSpline(20.0).identity(1, grid).shape
    control = 2 * torch.randn(shape, generator=torch.Generator().manual_seed(5))
    inner = BSpline(20.0).displacement(control, grid)
    u = compose(Rigid(), theta, inner, grid)
    place = (grid.points() + inner)[0].numpy()
    matrix = Rigid().matrix(theta)[0].numpy()
    place = np.tensordot(matrix[:3, :3], place, 1) + matrix[:3, 3].reshape(3, 1, 1, 1)
    index = voxels(torch.from_numpy(place)[None], grid)[0].numpy()
    expected = map_coordinates(image[0, 0].numpy(), index, order=1, mode="grid-constant")
    once = warp(image, u, grid)[0, 0].numpy()
    assert np.abs(once - expected).max() < 1e-4
    twice = warp(warp(image, Rigid().displacement(theta, grid), grid), inner, grid)[0, 0].numpy()
    middle = (slice(5, -5),) * 3
    assert twice[middle].std() < 0.9 * once[middle].std()


@given(st.integers(0, 1000), st.floats(0.1, 4), st.booleans())
@settings(max_examples=12, deadline=None)
def test_fixed_point_inverse(seed, control_mm, dense):
    """phi∘phi^-1 = 1 to a micrometre as the field is sampled, to 0.2 mm for the spline itself."""
    grid = Grid((24, 24, 24), (3.0, 3.0, 3.0))
    transform = Dense() if dense else BSpline(25.0)
    shape = BSpline(25.0).identity(1, grid).shape
    control = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * control_mm
    u = BSpline(25.0).displacement(control, grid)
    v = invert(u, grid)
    middle = (..., slice(5, -5), slice(5, -5), slice(5, -5))
    both = compose(transform, u if dense else control, v, grid)
    assert both[middle].abs().max() < (1e-3 if dense else 0.2)
    assert compose(Dense(), v, u, grid)[middle].abs().max() < 0.2
    assert u[middle].abs().max() > 0.2 * control_mm


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


@settings(max_examples=25, deadline=None)
@given(st.lists(st.floats(-1.2, 1.2), min_size=12, max_size=12))
def test_rigid_towards_is_the_matrix_logarithm(numbers):
    rigid = Rigid()
    scale = torch.tensor([1, 1, 1, 20, 20, 20], dtype=torch.float64)
    theta, target = (torch.tensor(numbers, dtype=torch.float64).reshape(2, 1, 6) * scale).unbind(0)
    delta = torch.linalg.inv(rigid.matrix(theta)) @ rigid.matrix(target)
    if float(delta[0, :3, :3].trace()) < -0.9:  # near half a turn the logarithm is not unique
        return
    log = scipy.linalg.logm(delta[0].numpy()).real
    wanted = [log[2, 1], log[0, 2], log[1, 0], *log[:3, 3]]
    found = rigid.towards(theta, target)[0].numpy()
    np.testing.assert_allclose(found, wanted, atol=1e-5)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: t.name)
def test_the_velocity_towards_a_target_leads_there(transform):
    """Followed by small steps of d theta / dt = rate(theta, v) for unit time."""
    theta, target = (random_theta(transform, scale=s) for s in (3.0, -2.0))
    velocity = transform.towards(theta, target)
    for _ in range(400):
        middle = theta + transform.rate(theta, velocity) / 800
        theta = theta + transform.rate(middle, velocity) / 400
    reached, wanted = (transform.displacement(p, GRID) for p in (theta, target))
    assert torch.allclose(reached, wanted, atol=1e-3)


@pytest.mark.parametrize("transform", ALL, ids=lambda t: t.name)
def test_field_is_how_a_small_velocity_moves_points(transform):
    velocity = random_theta(transform, scale=1.0)
    still = torch.zeros_like(velocity)
    step = 1e-5
    moved = transform.displacement(transform.rate(still, velocity) * step, GRID) / step
    assert torch.allclose(moved, transform.field(velocity, GRID), atol=1e-2, rtol=1e-3)


@pytest.mark.parametrize("offset", [(0.0, 0.0, 0.0), (4.0, -3.0, 2.0)])
def test_a_spline_on_aligned_points_is_the_spline_on_scattered_ones(offset):
    """Whole volumes along the axes go by a product of three bases; the value is the same."""
    grid, spline = Grid((20, 22, 18), (6.0, 6.0, 6.0)), BSpline(20.0, offset)
    theta = torch.randn(
        1, 3, *spline.control_shape(grid), generator=torch.Generator().manual_seed(0)
    )
    axes = [torch.linspace(-80, 70, n, dtype=torch.float64) + 0.3 for n in (13, 11, 9)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"))[None]
    aligned = spline.map(theta.double(), points, grid)
    scattered = spline.map(theta.double(), points.flatten(2), grid)
    torch.testing.assert_close(aligned.flatten(2), scattered, atol=1e-5, rtol=0)
    tilted = points.clone()
    tilted[0, 0, 3, 4, 5] += 1.0  # one point off the axes, and all are taken as scattered
    assert (spline.map(theta.double(), tilted, grid) - aligned).abs().max() > 0.5


def test_an_affine_map_after_a_field_is_a_composition():
    theta, u = random_theta(Rigid(), scale=5.0), random_theta(Dense())
    matrix = Rigid().matrix(theta)
    found = affine_after(u, GRID, matrix[:, :3, :3], matrix[:, :3, 3])
    torch.testing.assert_close(found, compose(Rigid(), theta, u, GRID))
    turned = torch.cat([theta[:, :3], 0 * theta[:, 3:]], 1)
    found = affine_after(u, GRID, matrix[:, :3, :3])
    torch.testing.assert_close(found, compose(Rigid(), turned, u, GRID))
