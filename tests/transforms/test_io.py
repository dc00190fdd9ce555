"""Transform files against ITK: SimpleITK and ANTs warp with ours as SciPy does; we read theirs."""

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import axcodes2ornt
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.transforms import BSpline, Dense, Rigid, compose
from odereg_core.transforms.io import (
    read_affine_mat,
    read_displacement,
    write_affine_mat,
    write_displacement,
)
from odereg_core.volume import Volume, save_nifti
from odereg_core.warp import voxels, warp

LPS = np.array([-1.0, -1.0, 1.0])
ORIENTATIONS = ("RAS", "LPS", "PIR", "SAL")


def oblique(rng, shape, spacing, codes="RAS"):
    """An affine (float32 values, as a file holds them) of that orientation, tilted, off-centre."""
    order = axcodes2ornt(codes)  # of file axis i: its place among the RAS axes, and its sign
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (target, sign) in enumerate(order):
        affine[int(target), axis] = sign * spacing[axis]
    affine[:3, :3] = Rotation.from_rotvec(rng.normal(0, 0.2, 3)).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = rng.normal(0, 1, 3) - affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    return affine.astype(np.float32).astype(np.float64)


def scene(folder, seed, codes):
    """Fixed and moving files on different oblique anisotropic grids, and u at the fixed voxels."""
    rng = np.random.default_rng(seed)
    fixed_shape, moving_shape = (14, 12, 10), (13, 15, 11)
    fixed_affine = oblique(rng, fixed_shape, (2.0, 2.5, 3.5), codes)
    moving_affine = oblique(rng, moving_shape, (2.9, 2.7, 3.2), "LAS")
    moving = gaussian_filter(rng.random(moving_shape), 1.0).astype(np.float32)
    moving = (moving - moving.min()) / np.ptp(moving)
    field = np.stack([gaussian_filter(rng.normal(0, 30, fixed_shape), 2.0) for _ in range(3)])
    field = (field + rng.normal(0, 3, (3, 1, 1, 1))).astype(np.float32)
    save_nifti(folder / "fixed.nii.gz", rng.random(fixed_shape).astype(np.float32), fixed_affine)
    save_nifti(folder / "moving.nii.gz", moving, moving_affine)
    return fixed_affine, moving, moving_affine, field


def world(affine, shape):
    index = np.indices(shape, dtype=np.float64)
    return np.tensordot(affine[:3, :3], index, 1) + affine[:3, 3].reshape(3, 1, 1, 1)


def scipy_warp(moving, moving_affine, points):
    """The moving image at points in RAS mm, and where all neighbours lie inside it."""
    back = np.linalg.inv(moving_affine)
    index = np.tensordot(back[:3, :3], points, 1) + back[:3, 3].reshape(3, 1, 1, 1)
    top = np.array(moving.shape).reshape(3, 1, 1, 1) - 1
    interior = ((index > 1e-3) & (index < top - 1e-3)).all(0)
    assert interior.mean() > 0.3
    return map_coordinates(moving, index, order=1, mode="nearest"), interior


def sitk_warp(folder, transform):
    fixed, moving = (sitk.ReadImage(str(folder / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    return sitk.GetArrayFromImage(sitk.Resample(moving, fixed, transform, sitk.sitkLinear)).T


def ants_warp(folder, path):
    fixed, moving = (ants.image_read(str(folder / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    warped = ants.apply_transforms(fixed, moving, [str(path)], interpolator="linear")
    return warped.numpy()


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_itk_warps_with_our_displacement_as_scipy_does(tmp_path, codes):
    fixed_affine, moving, moving_affine, field = scene(tmp_path, ORIENTATIONS.index(codes), codes)
    path = tmp_path / "displacement.nii.gz"
    write_displacement(path, torch.from_numpy(field), fixed_affine)
    ours, interior = scipy_warp(moving, moving_affine, world(fixed_affine, field.shape[1:]) + field)
    image = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    for theirs in (
        sitk_warp(tmp_path, sitk.DisplacementFieldTransform(image)),
        ants_warp(tmp_path, path),
    ):
        assert np.abs(theirs - ours)[interior].max() < 1e-4


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_itk_warps_with_our_affine_as_scipy_does(tmp_path, codes):
    fixed_affine, moving, moving_affine, field = scene(tmp_path, 7, codes)
    rng = np.random.default_rng(3)
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_rotvec([0.3, -0.2, 0.4]).as_matrix() * (1.1, 0.9, 1.0)
    matrix[:3, 3] = rng.normal(0, 3, 3)
    path = tmp_path / "affine.mat"
    write_affine_mat(path, matrix, rng.normal(0, 20, 3))
    points = world(fixed_affine, field.shape[1:])
    points = np.tensordot(matrix[:3, :3], points, 1) + matrix[:3, 3].reshape(3, 1, 1, 1)
    ours, interior = scipy_warp(moving, moving_affine, points)
    for theirs in (
        sitk_warp(tmp_path, sitk.ReadTransform(str(path))),
        ants_warp(tmp_path, path),
    ):
        assert np.abs(theirs - ours)[interior].max() < 1e-4


TOLERANCE = 1e-5
"""Of the intensity range, for linear interpolation at coordinates rounded to float32. Measured on
these volumes: below 1e-6."""


class Scene:
    """One grid for both images, as the warp has it, lying obliquely in two places of the world."""

    def __init__(self, folder, seed):
        rng = np.random.default_rng(seed)
        self.folder = folder
        self.grid = Grid((16, 14, 12), tuple(rng.uniform(1.5, 4, 3)))
        codes = ORIENTATIONS[seed % len(ORIENTATIONS)]
        self.fixed, self.moving = (
            oblique(rng, self.grid.shape, self.grid.spacing, codes) for _ in range(2)
        )
        image = gaussian_filter(rng.random(self.grid.shape), 0.8).astype(np.float32)
        image = (image - image.min()) / np.ptp(image)
        self.image = torch.from_numpy(image)[None, None]
        save_nifti(folder / "moving.nii.gz", image, self.moving)
        save_nifti(folder / "fixed.nii.gz", image[::-1], self.fixed)

    def frame(self, affine):
        """From mm about the grid's centre, along its axes, to RAS world mm."""
        matrix = np.eye(4)
        matrix[:3, :3] = affine[:3, :3] / self.grid.spacing
        matrix[:3, 3] = affine[:3, :3] @ ((np.array(self.grid.shape) - 1) / 2) + affine[:3, 3]
        return matrix

    def to_world(self, u):
        """Our displacement as ITK needs it: RAS world mm at the fixed image's voxels."""
        place = (self.grid.points(dtype=torch.float64) + u)[0].numpy()
        return at(self.frame(self.moving), place) - world(self.fixed, self.grid.shape)

    def from_world(self, target):
        """Our displacement to points of the moving image, given in RAS world mm."""
        place = at(np.linalg.inv(self.frame(self.moving)), target)
        return (torch.from_numpy(place)[None] - self.grid.points(dtype=torch.float64)).float()

    def error(self, u, theirs):
        """The largest difference from our warp, where all neighbours lie inside the image."""
        ours = warp(self.image, u.float(), self.grid)[0, 0].numpy()
        index = voxels(self.grid.points() + u.float(), self.grid)[0].numpy()
        top = np.array(self.grid.shape).reshape(3, 1, 1, 1) - 1
        interior = ((index > 1e-3) & (index < top - 1e-3)).all(0)
        assert interior.mean() > 0.3 and ours[interior].std() > 0.05
        return np.abs(theirs - ours)[interior].max()


def at(matrix, points):
    return np.tensordot(matrix[:3, :3], points, 1) + matrix[:3, 3].reshape(3, 1, 1, 1)


def drawn(kind, grid, seed):
    """u of a random map of each kind, and theta of its rigid part."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(1, 6, generator=generator) * torch.tensor([0.2] * 3 + [2.0] * 3)
    transform = {"rigid": Rigid(), "dense": Dense()}.get(kind, BSpline(11.0, (1.0, -2.0, 3.0)))
    control = torch.randn(transform.identity(1, grid).shape, generator=generator)
    if kind == "rigid":
        return theta, transform.displacement(theta, grid)
    u = transform.displacement(1.5 * control, grid)
    return theta, compose(Rigid(), theta, u, grid) if kind == "hybrid" else u


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
@pytest.mark.parametrize("kind", ["rigid", "bspline", "dense", "hybrid"])
def test_scipy_simpleitk_and_ants_reproduce_our_warp(tmp_path, kind, seed):
    scene = Scene(tmp_path, seed)
    theta, u = drawn(kind, scene.grid, seed)
    index = voxels(scene.grid.points() + u, scene.grid)[0].numpy()
    image = scene.image[0, 0].numpy()
    assert scene.error(u, map_coordinates(image, index, order=1, mode="nearest")) < TOLERANCE
    path = tmp_path / "displacement.nii.gz"
    write_displacement(path, scene.to_world(u).astype(np.float32), scene.fixed)
    field = sitk.ReadImage(str(path), sitk.sitkVectorFloat64)
    itk = sitk_warp(tmp_path, sitk.DisplacementFieldTransform(field))
    assert scene.error(u, itk) < TOLERANCE
    assert scene.error(u, ants_warp(tmp_path, path)) < TOLERANCE
    # And back in, by our own reader.
    back = read_displacement(path)[0].numpy() + world(scene.fixed, scene.grid.shape)
    assert (scene.from_world(back) - u).abs().max() < 1e-3
    if kind == "rigid":
        path = tmp_path / "affine.mat"
        matrix = Rigid().matrix(theta.double())[0].numpy()
        matrix = scene.frame(scene.moving) @ matrix @ np.linalg.inv(scene.frame(scene.fixed))
        write_affine_mat(path, matrix, scene.frame(scene.fixed)[:3, 3])
        assert scene.error(u, sitk_warp(tmp_path, sitk.ReadTransform(str(path)))) < TOLERANCE
        assert scene.error(u, ants_warp(tmp_path, path)) < TOLERANCE


def test_ants_syn_is_imported_and_reproduces_ants_warp(tmp_path):
    """A registration by ANTs, affine and warp, read by us and applied by our warp in one go."""
    scene = Scene(tmp_path, 5)
    _, truth = drawn("hybrid", scene.grid, 8)
    fixed = warp(scene.image, truth, scene.grid)[0, 0].numpy()
    save_nifti(tmp_path / "fixed.nii.gz", fixed, scene.fixed)
    images = [ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving")]
    result = ants.registration(
        *images, "SyN", aff_metric="meansquares", aff_sampling=8, aff_iterations=(20, 20),
        aff_shrink_factors=(2, 1), aff_smoothing_sigmas=(1, 0), syn_metric="meansquares",
        syn_sampling=8, reg_iterations=(10, 5), outprefix=str(tmp_path / "ants"),
    )  # fmt: skip
    field, affine = result["fwdtransforms"]
    assert field.endswith("1Warp.nii.gz") and affine.endswith("0GenericAffine.mat")
    inner, (outer, _) = read_displacement(field)[0].numpy(), read_affine_mat(affine)
    assert np.abs(inner).max() > 0.1 and np.abs(outer - np.eye(4)).max() > 0.01
    u = scene.from_world(at(outer, world(scene.fixed, scene.grid.shape) + inner))
    assert scene.error(u, result["warpedmovout"].numpy()) < TOLERANCE


@pytest.mark.parametrize("codes", ORIENTATIONS)
def test_a_field_on_a_volume_goes_to_its_files_own_grid_and_back(tmp_path, codes):
    fixed_affine, _, _, field = scene(tmp_path, 1, codes)
    fixed = Volume.load(tmp_path / "fixed.nii.gz")
    # u as a function of the world, so that what it should be in the file's order is known.
    u = np.sin(fixed.world() / 20).astype(np.float32)
    data, affine = fixed.with_data(np.moveaxis(u, 0, -1)).native()
    path = tmp_path / "displacement.nii.gz"
    write_displacement(path, np.moveaxis(data, -1, 0), affine)
    back, back_affine = read_displacement(path)
    assert back.shape == field.shape
    assert np.array_equal(back_affine, fixed_affine)
    assert np.allclose(back, np.sin(world(fixed_affine, field.shape[1:]) / 20), atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_displacement_round_trip_is_exact(tmp_path, suffix):
    rng = np.random.default_rng(0)
    field = torch.from_numpy(rng.normal(0, 9, (3, 7, 6, 5)).astype(np.float32))
    affine = oblique(rng, (7, 6, 5), (1.0, 1.5, 4.0), "ASL")
    write_displacement(tmp_path / f"u{suffix}", field, affine)
    back, back_affine = read_displacement(tmp_path / f"u{suffix}")
    assert torch.equal(back, field)
    assert np.array_equal(back_affine, affine)


def test_displacement_has_the_header_of_ants_own(tmp_path):
    scene(tmp_path, 4, "LPS")
    fixed, moving = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    result = ants.registration(
        fixed, moving, "SyNOnly", initial_transform="Identity", outprefix=str(tmp_path / "ants"),
        reg_iterations=(3,), syn_metric="meansquares",
    )  # fmt: skip
    theirs = tmp_path / "ants1Warp.nii.gz"
    if not theirs.exists():
        theirs = tmp_path / "ants0Warp.nii.gz"
    assert str(theirs) in result["fwdtransforms"]
    field, affine = read_displacement(theirs)
    assert field.abs().max() > 0.01
    # Read right: SciPy's warp with what we read is ANTs' own warp with the file.
    moving_file = nib.load(tmp_path / "moving.nii.gz")
    points = world(affine, field.shape[1:]) + field.numpy()
    ours, interior = scipy_warp(np.asarray(moving_file.dataobj), moving_file.affine, points)
    assert np.abs(ants_warp(tmp_path, theirs) - ours)[interior].max() < 1e-4
    # Written alike: the same header fields, and the same values, as ANTs' file.
    write_displacement(tmp_path / "ours.nii.gz", field, affine)
    first, second = nib.load(theirs), nib.load(tmp_path / "ours.nii.gz")
    for key in ("dim", "intent_code", "datatype", "sform_code", "qform_code"):
        assert np.array_equal(first.header[key], second.header[key]), key
    assert np.array_equal(np.asarray(first.dataobj), np.asarray(second.dataobj))
    assert np.allclose(first.affine, second.affine, atol=1e-5)


def test_simpleitks_displacement_is_read(tmp_path):
    rng = np.random.default_rng(5)
    vectors = rng.normal(0, 4, (6, 7, 8, 3))
    image = sitk.GetImageFromArray(vectors, isVector=True)
    image.SetSpacing((1.0, 2.0, 3.0))
    image.SetOrigin((-10.0, 5.0, 7.0))
    image.SetDirection(Rotation.from_rotvec([0.1, 0.2, -0.3]).as_matrix().ravel())
    sitk.WriteImage(image, str(tmp_path / "u.nii.gz"))
    field, affine = read_displacement(tmp_path / "u.nii.gz")
    index = (3, 4, 2)
    place = LPS * image.TransformIndexToPhysicalPoint(index)
    assert np.allclose(affine[:3, :3] @ index + affine[:3, 3], place, atol=1e-4)
    assert np.allclose(field[:, 3, 4, 2], LPS * vectors[2, 4, 3], atol=1e-5)


finite = st.floats(-200, 200, allow_nan=False)


@given(
    st.lists(st.floats(-3, 3), min_size=9, max_size=9),
    st.lists(finite, min_size=3, max_size=3),
    st.lists(finite, min_size=3, max_size=3),
)
@settings(max_examples=40, deadline=None)
def test_affine_means_the_same_to_itk_and_comes_back(tmp_path_factory, linear, shift, centre):
    path = tmp_path_factory.mktemp("mat") / "affine.mat"
    matrix = np.eye(4)
    matrix[:3, :3] += np.reshape(linear, (3, 3))
    if abs(np.linalg.det(matrix)) < 1e-3:
        matrix[:3, :3] = np.eye(3)
    matrix[:3, 3] = shift
    write_affine_mat(path, matrix, np.array(centre))
    back, back_centre = read_affine_mat(path)
    assert np.allclose(back, matrix, rtol=1e-12, atol=1e-9)
    assert np.array_equal(back_centre, np.array(centre))
    transform = sitk.ReadTransform(str(path))
    for point in np.random.default_rng(0).normal(0, 80, (4, 3)):
        theirs = LPS * transform.TransformPoint((LPS * point).tolist())
        assert np.allclose(theirs, matrix[:3, :3] @ point + matrix[:3, 3], rtol=1e-9, atol=1e-7)


def test_affine_file_is_ants_own_to_the_byte(tmp_path):
    rng = np.random.default_rng(2)
    # ANTs' Python side holds the numbers in float32.
    parameters = rng.normal(0, 1, 12).astype(np.float32).astype(np.float64)
    centre = rng.integers(-20, 20, 3).astype(np.float64)
    transform = ants.create_ants_transform(
        "AffineTransform", dimension=3, parameters=list(parameters), fixed_parameters=list(centre)
    )
    ants.write_transform(transform, str(tmp_path / "theirs.mat"))
    write_affine_mat(tmp_path / "ours.mat", *read_affine_mat(tmp_path / "theirs.mat"))
    ours, theirs = ((tmp_path / f"{n}.mat").read_bytes() for n in ("ours", "theirs"))
    # All but the last bits of the translation, which the centre went into and came out of.
    assert len(ours) == len(theirs)
    header = 20 + len("AffineTransform_double_3_3") + 1
    assert ours[: header + 9 * 8] == theirs[: header + 9 * 8]
    assert ours[header + 12 * 8 :] == theirs[header + 12 * 8 :]
    shift = slice(header + 9 * 8, header + 12 * 8)
    assert np.allclose(np.frombuffer(ours[shift]), np.frombuffer(theirs[shift]), atol=1e-12)
    again = ants.read_transform(str(tmp_path / "ours.mat"))
    assert np.allclose(again.parameters, parameters)


def test_a_registration_by_ants_is_read(tmp_path):
    scene(tmp_path, 6, "RAS")
    fixed, moving = (ants.image_read(str(tmp_path / f"{n}.nii.gz")) for n in ("fixed", "moving"))
    result = ants.registration(fixed, moving, "QuickRigid", outprefix=str(tmp_path / "ants"))
    (path,) = result["fwdtransforms"]
    matrix, _ = read_affine_mat(path)
    theirs = ants.read_transform(path)
    for point in np.random.default_rng(0).normal(0, 30, (4, 3)):
        expected = LPS * theirs.apply_to_point(tuple(LPS * point))
        assert np.allclose(matrix[:3, :3] @ point + matrix[:3, 3], expected, atol=1e-3)
    assert np.allclose(matrix[:3, :3] @ matrix[:3, :3].T, np.eye(3), atol=1e-5)


@pytest.mark.parametrize("zyx", [False, True])
def test_euler_angles_of_simpleitk_are_read(tmp_path, zyx):
    transform = sitk.Euler3DTransform((5.0, -8.0, 12.0), 0.3, -0.5, 0.7, (4.0, -2.0, 1.0))
    transform.SetComputeZYX(zyx)
    sitk.WriteTransform(transform, str(tmp_path / "euler.mat"))
    matrix, centre = read_affine_mat(tmp_path / "euler.mat")
    assert np.allclose(centre, LPS * transform.GetCenter())
    for point in np.random.default_rng(0).normal(0, 60, (4, 3)):
        theirs = LPS * transform.TransformPoint((LPS * point).tolist())
        assert np.allclose(theirs, matrix[:3, :3] @ point + matrix[:3, 3], atol=1e-9)


def test_what_is_no_affine_is_refused_in_one_sentence(tmp_path):
    missing, text, versor = (tmp_path / n for n in ("missing.mat", "text.mat", "versor.mat"))
    text.write_text("#Insight Transform File V1.0\nTransform: AffineTransform_double_3_3\n")
    sitk.WriteTransform(sitk.VersorRigid3DTransform(), str(versor))
    write_affine_mat(tmp_path / "whole.mat", np.eye(4), np.zeros(3))
    (tmp_path / "cut.mat").write_bytes((tmp_path / "whole.mat").read_bytes()[:90])
    write_affine_mat(tmp_path / "nan.mat", np.full((4, 4), np.nan), np.zeros(3))
    (tmp_path / "empty.mat").touch()
    for path, fault in (
        (missing, "no such file"),
        (text, "not a transform"),
        (versor, "VersorRigid3DTransform"),
        (tmp_path / "cut.mat", "not a transform"),
        (tmp_path / "empty.mat", "not a transform"),
        (tmp_path / "nan.mat", "not finite"),
    ):
        with pytest.raises(InputError, match=fault) as caught:
            read_affine_mat(path)
        assert str(path) in str(caught.value)
        assert "\n" not in str(caught.value)


def test_what_is_no_displacement_is_refused_in_one_sentence(tmp_path):
    scalar, plain = tmp_path / "scalar.nii.gz", tmp_path / "plain.nii.gz"
    save_nifti(scalar, np.zeros((5, 5, 5), np.float32), np.eye(4))
    save_nifti(plain, np.zeros((5, 5, 5, 1, 3), np.float32), np.eye(4))
    cut = tmp_path / "cut.nii"
    write_displacement(cut, torch.zeros(3, 5, 5, 5), np.eye(4))
    cut.write_bytes(cut.read_bytes()[:-100])
    for path, fault in (
        (tmp_path / "missing.nii.gz", "no such file"),
        (scalar, "shape"),
        (plain, "intent"),
        (cut, "cannot be read"),
    ):
        with pytest.raises(InputError, match=fault) as caught:
            read_displacement(path)
        assert str(path) in str(caught.value)


def test_wrong_shapes_are_refused(tmp_path):
    with pytest.raises(ValueError, match="3, X, Y, Z"):
        write_displacement(tmp_path / "u.nii.gz", torch.zeros(1, 3, 5, 5, 5), np.eye(4))
    with pytest.raises(ValueError, match="4, 4"):
        write_affine_mat(tmp_path / "a.mat", np.eye(3), np.zeros(3))
    assert not list(tmp_path.iterdir())
