"""Volumes of any orientation and kind against nibabel, SciPy and known functions of the world."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nibabel.orientations import aff2axcodes, axcodes2ornt, inv_ornt_aff, ornt_transform
from nibabel.processing import resample_from_to
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.volume import (
    Volume,
    centre_of_mass,
    foreground,
    normalise,
    resample,
    save_nifti,
)
from odereg_core.warp import warp

DATA = Path(__file__).parents[2] / "shared" / "data"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (shared/data)")
CODES = [
    a + b + c
    for a in "RLAPSI"
    for b in "RLAPSI"
    for c in "RLAPSI"
    if {frozenset("RL"), frozenset("AP"), frozenset("SI")}
    == {next(p for p in map(frozenset, ("RL", "AP", "SI")) if x in p) for x in (a, b, c)}
]


def affine_of(codes, spacing=(1.0, 2.0, 3.0), tilt=(0.0, 0.0, 0.0), shift=(5.0, -7.0, 11.0)):
    affine = np.eye(4)
    affine[:3, :3] = 0
    for axis, (target, sign) in enumerate(axcodes2ornt(codes)):
        affine[int(target), axis] = sign * spacing[axis]
    affine[:3, :3] = Rotation.from_rotvec(tilt).as_matrix() @ affine[:3, :3]
    affine[:3, 3] = shift
    return affine.astype(np.float32).astype(np.float64)


def write(path, data, affine=None, **header):
    image = nib.Nifti1Image(data, affine_of("RAS") if affine is None else affine)
    for key, value in header.items():
        image.header[key] = value
    nib.save(image, path)
    return path


def ball(shape=(12, 10, 8), seed=0):
    return np.random.default_rng(seed).integers(-300, 2000, shape).astype(np.int16)


def test_all_orientations_there_are():
    assert len(CODES) == 48


@pytest.mark.parametrize("codes", CODES)
def test_every_orientation_is_read_as_ras_and_written_back_as_it_was(tmp_path, codes):
    data, affine = ball(), affine_of(codes, tilt=(0.1, -0.2, 0.15))
    path = write(tmp_path / "a.nii", data, affine)
    volume = Volume.load(path)
    theirs = nib.as_closest_canonical(nib.load(path))
    assert aff2axcodes(volume.affine) == ("R", "A", "S")
    assert np.array_equal(volume.data, theirs.get_fdata(dtype=np.float32))
    assert np.allclose(volume.affine, theirs.affine, atol=1e-9)
    volume.save(tmp_path / "b.nii.gz")
    back = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(back.get_fdata(), data)
    assert np.array_equal(back.affine, affine)
    assert int(back.header["sform_code"]) == int(back.header["qform_code"]) == 1
    assert back.header.get_xyzt_units()[0] == "mm"
    assert np.allclose(back.get_qform(), affine, atol=1e-4)


@pytest.mark.parametrize("codes", ["PIR", "LSA"])
def test_native_takes_components_along(tmp_path, codes):
    volume = Volume.load(write(tmp_path / "a.nii", ball(), affine_of(codes)))
    data, affine = volume.with_data(np.moveaxis(volume.world(), 0, -1)).native()
    index = (3, 2, 5)
    assert np.array_equal(affine, affine_of(codes))
    assert np.allclose(data[index], affine[:3, :3] @ index + affine[:3, 3])


@pytest.mark.parametrize("kind", ["u1", "<i2", ">i2", "u2", "<i4", "<f4", ">f4", "<f8", ">f8"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_every_number_type_is_read(tmp_path, kind, suffix):
    data = np.random.default_rng(0).integers(0, 200, (7, 6, 5))
    header = nib.Nifti1Header(endianness=">" if kind.startswith(">") else "<")
    image = nib.Nifti1Image(data.astype(kind), affine_of("LAS"), header)
    image.set_data_dtype(np.dtype(kind))
    nib.save(image, tmp_path / f"a{suffix}")
    volume = Volume.load(tmp_path / f"a{suffix}")
    assert volume.data.dtype == np.float32
    assert np.array_equal(volume.data, data[::-1])


def test_slope_and_intercept_are_applied(tmp_path):
    data = ball()
    image = nib.Nifti1Image(data, np.eye(4))
    image.header.set_slope_inter(0.5, -3)
    nib.save(image, tmp_path / "a.nii")
    raw = np.asarray(nib.load(tmp_path / "a.nii").dataobj.get_unscaled())
    assert np.allclose(Volume.load(tmp_path / "a.nii").data, raw * 0.5 - 3)


@pytest.mark.parametrize("shape", [(7, 6, 5, 1), (7, 6, 5, 1, 1)])
def test_a_series_of_one_is_a_volume(tmp_path, shape):
    volume = Volume.load(write(tmp_path / "a.nii", ball(shape)))
    assert volume.shape == (7, 6, 5)


def test_geometry_is_the_worlds(tmp_path):
    affine = affine_of("LPS", spacing=(1.0, 2.0, 3.5), tilt=(0.2, 0.1, -0.1))
    volume = Volume.load(write(tmp_path / "a.nii", ball(), affine))
    assert np.allclose(volume.spacing, (1.0, 2.0, 3.5), atol=1e-5)
    # The centre of the field of view does not depend on the order the voxels come in.
    middle = affine[:3, :3] @ ((np.array([12, 10, 8]) - 1) / 2) + affine[:3, 3]
    assert np.allclose(volume.centre, middle)
    assert np.allclose(volume.index(volume.world()), np.indices(volume.shape), atol=1e-9)
    assert np.allclose(volume.index(volume.affine[:3, 3]), 0, atol=1e-9)


RGB = np.zeros((5, 5, 5), [("R", "u1"), ("G", "u1"), ("B", "u1")])
SINGULAR = np.diag([1.0, 1.0, 0.0, 1.0])
FLAT = np.array([[1.0, 1, 0, 0], [0, 1e-9, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
UNBOUND = np.ones((5, 5, 5), np.float32)
UNBOUND[2, 3, 1], UNBOUND[0, 0, 0] = np.nan, np.inf


@pytest.mark.parametrize(
    ("data", "affine", "fault"),
    [
        (ball((6, 5)), None, "3-D volume"),
        (ball((6, 5, 4, 2)), None, "3-D volume"),
        (ball((6, 5, 3)), None, "too small"),
        (RGB, None, "scalar volume"),
        (np.ones((5, 5, 5), np.complex64), None, "scalar volume"),
        (ball(), SINGULAR, "singular"),
        (ball(), FLAT, "singular"),
        (UNBOUND, None, "2 voxels are not finite"),
        (np.full((5, 5, 5), 1e300), None, "not finite"),
    ],
)
def test_what_is_no_scan_is_refused_in_one_sentence(tmp_path, data, affine, fault):
    image = nib.Nifti1Image(data, None)
    image.set_sform(affine_of("RAS") if affine is None else affine, 1)
    nib.save(image, tmp_path / "a.nii")
    refused(tmp_path / "a.nii", fault)


def refused(path, fault):
    with pytest.raises(InputError, match=fault) as caught:
        Volume.load(path).checked()
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message


def test_damaged_files_are_refused_in_one_sentence(tmp_path):
    refused(tmp_path / "missing.nii", "no such file")
    refused(tmp_path, "is a folder")
    whole = write(tmp_path / "whole.nii.gz", ball((20, 20, 20))).read_bytes()
    plain = gzip.decompress(whole)
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 255
    for name, content, fault in (
        ("cut.nii.gz", whole[: len(whole) // 2], "cannot be read|not a readable"),
        ("header.nii.gz", whole[:60], "not a readable"),
        ("flipped.nii.gz", bytes(flipped), "cannot be read|not a readable"),
        ("cut.nii", plain[:-200], "cannot be read"),
        ("text.nii", b"these are words" * 40, "not a readable"),
        ("empty.nii.gz", b"", "not a readable"),
        ("bare.nii.gz", plain, "not a readable"),
        ("image.png", b"\x89PNG", "not a readable"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        refused(path, fault)
    nib.save(nib.MGHImage(np.ones((5, 5, 5), np.float32), np.eye(4)), tmp_path / "a.mgz")
    refused(tmp_path / "a.mgz", "not a NIfTI file")


@given(st.data())
@settings(max_examples=150, deadline=None)
@pytest.mark.filterwarnings("ignore")
def test_any_damage_is_an_input_error_or_harmless(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("fuzz") / "a.nii", ball((6, 5, 4)))
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, 351), max_size=5)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)) | st.just(len(content)))])
    try:
        volume = Volume.load(path)
    except InputError as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    else:
        assert np.isfinite(volume.data).all()
        assert np.isfinite(volume.world()).all()


def test_a_constant_image_is_refused_and_a_constant_mask_is_not(tmp_path):
    path = write(tmp_path / "a.nii", np.full((5, 5, 5), 7, np.int16))
    assert Volume.load(path).data.max() == 7
    refused(path, "every voxel is 7")


def test_saving_is_whole_or_not_at_all(tmp_path):
    volume = Volume.load(write(tmp_path / "a.nii", ball()))
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written"):
        volume.save(tmp_path / "file" / "b.nii.gz")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.nii", "file"]


def test_save_nifti_of_vectors_has_the_intent(tmp_path):
    save_nifti(tmp_path / "a.nii", np.zeros((5, 4, 3, 1, 3), np.float32), np.eye(4), "vector")
    assert nib.load(tmp_path / "a.nii").header["intent_code"] == 1007


# Intensities


@given(st.integers(0, 1000), st.floats(0.01, 1e4))
@settings(max_examples=25, deadline=None)
def test_normalising_is_the_percentile_and_forgets_the_unit(seed, unit):
    rng = np.random.default_rng(seed)
    data = rng.gamma(4, 50, (9, 9, 9)).astype(np.float32)
    mask = rng.random(data.shape) > 0.4
    data[~mask] = 0
    result = normalise(data, mask)
    assert result.dtype == np.float32
    assert result.min() >= 0
    assert result.max() == 1
    assert np.array_equal(result != 0, mask)
    expected = np.clip(data / np.percentile(data[mask], 99.5), 1e-3, 1)
    assert np.allclose(result[mask], expected[mask], atol=1e-5)
    assert np.allclose(normalise((data * unit).astype(np.float32), mask), result, atol=1e-4)


def test_signed_scans_are_shifted_and_stay_in_order():
    rng = np.random.default_rng(0)
    data = rng.normal(-200, 100, (20, 20, 20)).astype(np.float32)
    mask = np.zeros(data.shape, bool)
    mask[3:17, 3:17, 3:17] = True
    result = normalise(data, mask)
    assert (result[~mask] == 0).all()
    assert 0 < result[mask].min() < result[mask].max() == 1
    order = np.argsort(data[mask])
    assert (np.diff(result[mask][order]) >= 0).all()
    assert np.median(result[mask]) == pytest.approx(0.55, abs=0.1)


def head(stripped):
    """A bright ball with a dark core in noise (or in zeros), and a bright speck far off."""
    x, y, z = np.indices((40, 36, 30)) - np.array([22, 17, 14]).reshape(3, 1, 1, 1)
    radius = np.sqrt(x**2 + y**2 + z**2)
    inside = radius < 11
    data = np.where(inside, 300 + 20 * np.sin(x / 3), 0).astype(np.float32)
    if not stripped:
        data += np.abs(np.random.default_rng(0).normal(0, 10, data.shape)).astype(np.float32)
        data[1:3, 1:3, 1:3] = 500
    return data, inside


@pytest.mark.parametrize("stripped", [True, False])
def test_the_foreground_is_the_ball(tmp_path, stripped):
    data, inside = head(stripped)
    affine = affine_of("LPS", spacing=(1.0, 1.5, 2.0), tilt=(0.1, 0.2, 0.0))
    volume = Volume.load(write(tmp_path / "a.nii", data, affine))
    mask = foreground(volume)
    # In the file's own order, to compare with the ball as it was drawn.
    assert np.array_equal(volume.with_data(mask.astype(np.float32)).native()[0] > 0, inside)
    centre = affine[:3, :3] @ [22, 17, 14] + affine[:3, 3]
    assert np.allclose(centre_of_mass(volume, mask), centre, atol=0.05)


# Resampling


def smooth(world):
    x, y, z = world / 15
    return (np.sin(x) + np.cos(y + 0.4 * z) + 0.5 * np.sin(z - x)).astype(np.float32)


@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "ASL"])
def test_resampling_keeps_every_point_in_its_place(tmp_path, codes):
    affine = affine_of(codes, spacing=(1.5, 1.2, 1.8), tilt=(0.15, -0.1, 0.2))
    empty = Volume.load(write(tmp_path / "a.nii", np.zeros((40, 44, 38), np.float32), affine))
    volume = empty.with_data(smooth(empty.world()))
    grid = Grid((16, 14, 12), (1.9, 2.1, 2.0))
    centre = volume.centre + np.array([1.0, -2.0, 3.0])
    ours = resample(volume, grid, centre)
    assert ours.shape == (1, 1, *grid.shape)
    assert ours.dtype == torch.float32
    expected = smooth(grid.points(dtype=torch.float64)[0].numpy() + centre.reshape(3, 1, 1, 1))
    assert np.abs(ours[0, 0].numpy() - expected).max() < 0.03


@pytest.mark.parametrize("codes", ["RAS", "LPI"])
@pytest.mark.parametrize("mode", ["linear", "nearest"])
def test_resampling_to_a_finer_grid_is_nibabels(tmp_path, codes, mode):
    rng = np.random.default_rng(1)
    data = rng.integers(0, 5, (14, 13, 12)).astype(np.float32)
    affine = affine_of(codes, spacing=(2.0, 2.5, 3.0), tilt=(0.2, 0.1, -0.1))
    path = write(tmp_path / "a.nii", data, affine)
    volume, grid = Volume.load(path), Grid((15, 16, 12), (1.3, 1.4, 1.7))
    target = np.diag([*grid.spacing, 1.0])
    target[:3, 3] = volume.centre - (np.array(grid.shape) - 1) / 2 * grid.spacing
    order = 1 if mode == "linear" else 0
    theirs = resample_from_to(nib.load(path), (grid.shape, target), order=order).get_fdata()
    ours = resample(volume, grid, volume.centre, mode)[0, 0].numpy()
    index = volume.index(
        grid.points(dtype=torch.float64)[0].numpy() + volume.centre[:, None, None, None]
    )
    top = np.array(volume.shape).reshape(3, 1, 1, 1) - 1
    away = np.abs(index - np.floor(index) - 0.5).min(0) > 1e-6  # from a tie of two nearest voxels
    interior = ((index >= 0) & (index <= top)).all(0) & (away | (mode == "linear"))
    assert interior.mean() > 0.3
    assert np.abs(ours - theirs)[interior].max() < 1e-4
    assert (ours[((index < -1) | (index > top + 1)).any(0)] == 0).all()


@pytest.mark.parametrize(("change", "same"), [(0.0, True), (1e-4, False), (2e-5, True)])
def test_one_grid_is_one_at_every_corner(change, same):
    """240 voxels of 1.0001 mm end 0.024 mm past as many of 1 mm."""
    one, other = (np.diag([1.0 + c, 1.0, 1.0, 1.0]) for c in (0.0, change))
    orientation = np.array([[0, 1], [1, 1], [2, 1.0]])
    a, b = (Volume(np.zeros((240, 4, 4), np.float32), m, orientation) for m in (one, other))
    assert a.same_grid(b) == b.same_grid(a) == same


def test_voxels_that_coincide_are_copied(tmp_path):
    volume = Volume.load(
        write(tmp_path / "a.nii", ball((9, 8, 7)), affine_of("LPS", (1.0, 1.0, 1.0)))
    )
    grid = Grid((13, 8, 5), (1.0, 1.0, 1.0))
    ours = resample(volume, grid, volume.centre)[0, 0].numpy()
    expected = np.pad(volume.data, ((2, 2), (0, 0), (0, 0)))[:, :, 1:-1]
    assert np.array_equal(ours, expected)


def test_downsampling_averages_rather_than_aliases(tmp_path):
    stripes = np.zeros((48, 48, 48), np.float32)
    stripes[::2] = 1  # at the limit of what 1 mm voxels hold; at 3 mm it is grey
    volume = Volume.load(write(tmp_path / "a.nii", stripes, affine_of("RAS", (1.0, 1.0, 1.0))))
    ours = resample(volume, Grid((12, 12, 12), (3.0, 3.0, 3.0)), volume.centre)[0, 0].numpy()
    assert np.abs(ours - 0.5).max() < 0.1
    # Along an axis as coarse as the grid nothing is blurred.
    coarse = Volume.load(write(tmp_path / "b.nii", stripes, affine_of("RAS", (3.0, 1.0, 1.0))))
    ours = resample(coarse, Grid((12, 12, 12), (3.0, 3.0, 3.0)), coarse.centre)[0, 0].numpy()
    assert set(np.round(ours, 3).ravel().tolist()) == {0.0, 1.0}


def test_downsampling_keeps_the_centre_and_the_mass():
    grid = Grid((60, 60, 60), (1.0, 1.0, 1.0))
    points = grid.points(dtype=torch.float64)[0].numpy()
    centre = np.array([3.0, -5.0, 2.0])
    blob = np.exp(-((points - centre.reshape(3, 1, 1, 1)) ** 2).sum(0) / (2 * 4.0**2))
    affine = np.eye(4)
    affine[:3, 3] = -29.5
    volume = Volume(blob.astype(np.float32), affine, axcodes2ornt("RAS"))
    coarse = Grid((20, 20, 20), (3.0, 3.0, 3.0))
    ours = resample(volume, coarse, np.zeros(3))[0, 0].double().numpy()
    assert ours.sum() * 27 == pytest.approx(blob.sum(), rel=0.02)
    weights = ours / ours.sum()
    where = (coarse.points(dtype=torch.float64)[0].numpy() * weights).sum((1, 2, 3))
    assert np.allclose(where, centre, atol=0.05)
    # Second moments add: the blob's, and the Gaussian's whose full width at half maximum is what
    # 1 mm voxels lack to 3 mm ones.
    along = coarse.axes(dtype=torch.float64)[0].numpy() - centre[0]
    variance = (weights.sum((1, 2)) * along**2).sum()
    assert variance == pytest.approx(4.0**2 + (3**2 - 1**2) / (8 * np.log(2)), abs=0.2)


def test_nearest_invents_no_label(tmp_path):
    labels = np.random.default_rng(0).choice([0, 1, 2, 4], (20, 18, 16)).astype(np.uint8)
    affine = affine_of("LAS", (1.0, 1.1, 1.2), tilt=(0.3, 0.1, 0.2))
    volume = Volume.load(write(tmp_path / "a.nii", labels, affine))
    ours = resample(volume, Grid((9, 9, 9), (2.5, 2.5, 2.5)), volume.centre, "nearest")
    assert set(ours.unique().tolist()) == {0, 1, 2, 4}


def test_a_warp_on_the_grid_is_a_resampling_at_another_centre():
    """The volume's mm and the grid's are the same: moving the one is warping on the other."""
    data = gaussian_filter(np.random.default_rng(0).random((20, 18, 16)), 1.0).astype(np.float32)
    affine = np.diag([2.0, 2.0, 3.0, 1.0])
    volume = Volume(data, affine, axcodes2ornt("RAS"))
    grid = Grid((20, 18, 16), (2.0, 2.0, 3.0))
    shift = np.array([2.7, -1.3, 4.1])
    moved = resample(volume, grid, volume.centre + shift)
    u = torch.from_numpy(shift).float().reshape(1, 3, 1, 1, 1).expand(1, 3, *grid.shape)
    warped = warp(resample(volume, grid, volume.centre), u, grid)
    assert torch.allclose(moved, warped, atol=1e-4)


# Real scans


@real
@pytest.mark.parametrize("contrast", ["t1", "t1ce", "t2", "flair"])
def test_a_real_scan_from_the_scanner(tmp_path, contrast):
    path = DATA / "native" / "TCGA-FG-6692" / f"{contrast}.nii.gz"
    file = nib.load(path)
    assert aff2axcodes(file.affine) == ("L", "A", "S")
    volume = Volume.load(path).checked()
    assert aff2axcodes(volume.affine) == ("R", "A", "S")
    assert np.allclose(np.sort(volume.spacing), np.sort(file.header.get_zooms()), atol=1e-3)
    mask = foreground(volume)
    assert 0.1 < mask.mean() < 0.7
    litres = mask.sum() * volume.spacing.prod() / 1e6
    assert 1.0 < litres < 6.0  # a head, with skull
    assert np.linalg.norm(centre_of_mass(volume, mask) - volume.centre) < 60
    image = normalise(volume.data, mask)
    assert image.min() == 0
    assert image.max() == 1
    volume.save(tmp_path / "b.nii.gz")
    back = nib.load(tmp_path / "b.nii.gz")
    assert np.array_equal(back.affine.astype(np.float32), file.affine.astype(np.float32))
    assert np.array_equal(back.get_fdata(dtype=np.float32), file.get_fdata(dtype=np.float32))


@real
def test_a_real_stripped_scans_foreground_is_what_is_not_zero():
    volume = Volume.load(DATA / "brats_layout" / "TCGA-DU-7294" / "TCGA-DU-7294_t1.nii.gz")
    assert aff2axcodes(nib.load(volume.path).affine) == ("L", "P", "S")
    mask = foreground(volume)
    assert np.array_equal(mask, volume.data != 0)
    assert 0.9 < mask.sum() / 1e6 < 2.0  # litres of brain


def test_orientation_is_nibabels_own(tmp_path):
    affine = affine_of("PIR")
    volume = Volume.load(write(tmp_path / "a.nii", ball(), affine))
    assert np.array_equal(
        ornt_transform(axcodes2ornt("PIR"), axcodes2ornt("RAS")), volume.orientation
    )
    assert np.allclose(volume.affine, affine @ inv_ornt_aff(volume.orientation, (12, 10, 8)))
