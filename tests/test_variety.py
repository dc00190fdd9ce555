"""However a scan is stored, the map found in the world is the same: one pair, many files."""

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import axcodes2ornt, io_orientation, ornt_transform
from nibabel.processing import resample_from_to
from scipy.ndimage import distance_transform_edt
from scipy.spatial.transform import Rotation

from data_prep import phantom
from odereg_core.errors import InputError
from odereg_core.registration import register
from odereg_core.volume import Volume

SPACING = 3.0


def rigid(degrees, shift):
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("xyz", degrees, degrees=True).as_matrix()
    matrix[:3, 3] = shift
    return matrix


TRUTH = rigid((12, -9, 25), (6.0, -8.0, 5.0))
"""Fixed to moving, RAS world mm."""


def image(data, affine, dtype=np.float32):
    made = nib.Nifti1Image(np.asarray(data, dtype), affine)
    made.set_sform(affine, 1)
    made.set_qform(affine, 1)
    return made


@pytest.fixture(scope="module")
def pair():
    """T1 and, moved by the inverse of TRUTH, T2 and tumour of one subject: images on one grid."""
    volumes = phantom.subject(77, 1, SPACING)
    affine = np.diag([SPACING] * 3 + [1.0])
    affine[:3, 3] = -SPACING * (np.array(volumes["t1"].shape) - 1) / 2
    moving = image(volumes["t1"], affine)

    def moved(data, order):
        # What lies at TRUTH p lies at p now: the voxels' places go the other way.
        return resample_from_to(
            image(data, np.linalg.inv(TRUTH) @ affine), (data.shape, affine), order=order
        )

    return {
        "moving": moving,
        "fixed": image(np.rint(moved(volumes["t2"], 1).get_fdata()), affine),
        "moving seg": image(volumes["seg"], affine, np.uint8),
        "fixed seg": image(moved(volumes["seg"], 0).get_fdata(), affine, np.uint8),
    }


def found(folder, moving, fixed, **options):
    """The matrix found, of images saved under any names."""
    paths = []
    for name, (one, suffix) in {"moving": moving, "fixed": fixed}.items():
        paths.append(folder / f"{name}{suffix}")
        nib.save(one, paths[-1])
    return register(*paths, device="cpu", **options)


def distance(matrix, other, pair):
    """The largest distance in mm between two maps over the fixed image's brain."""
    inside = np.argwhere(pair["fixed"].get_fdata() > 0)
    world = nib.affines.apply_affine(pair["fixed"].affine, inside)
    one, two = (nib.affines.apply_affine(m, world) for m in (matrix, other))
    return np.linalg.norm(one - two, axis=1).max()


@pytest.fixture(scope="module")
def plain(pair, tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    return found(folder, (pair["moving"], ".nii.gz"), (pair["fixed"], ".nii.gz"))


def test_the_pair_is_registered(plain, pair):
    assert distance(np.eye(4), TRUTH, pair) > 40
    assert distance(plain.matrix, TRUTH, pair) < 2


def turned(one, codes):
    """The same voxels in another order."""
    return one.as_reoriented(ornt_transform(io_orientation(one.affine), axcodes2ornt(codes)))


def scaled(one):
    """int16 with slope and intercept that give the very same values."""
    made = nib.Nifti1Image(((one.get_fdata() + 1000) * 2).astype(np.int16), one.affine)
    made.header.set_slope_inter(0.5, -1000.0)
    return made


def big_endian(one):
    header = nib.Nifti1Header(endianness=">")
    header.set_data_dtype(np.dtype(">f8"))
    return nib.Nifti1Image(one.get_fdata(), one.affine, header)


def series(one):
    return image(one.get_fdata()[..., None], one.affine)


SAME = {
    "LPS": (lambda one: turned(one, "LPS"), ".nii.gz"),
    "PIR": (lambda one: turned(one, "PIR"), ".nii"),
    "int16 with slope and intercept": (scaled, ".nii.gz"),
    "float64, big-endian": (big_endian, ".nii"),
    "4-D of one volume": (series, ".nii.gz"),
}


@pytest.mark.parametrize("name", SAME)
def test_files_that_hold_the_same_voxels(tmp_path, pair, name):
    """What is registered is the same, so that is, too."""
    change, suffix = SAME[name]
    for one in (pair["moving"], pair["fixed"]):
        nib.save(one, tmp_path / "plain.nii.gz")
        nib.save(change(one), tmp_path / f"other{suffix}")
        plain, other = (Volume.load(tmp_path / f) for f in ("plain.nii.gz", f"other{suffix}"))
        assert other.same_grid(plain) and not other.doubts
        np.testing.assert_allclose(other.data, plain.data, rtol=1e-6)


@pytest.mark.parametrize("which", ["moving", "fixed"])
def test_another_unit_of_intensity(tmp_path, pair, plain, which):
    files = {key: (pair[key], ".nii.gz") for key in ("moving", "fixed")}
    one = pair[which]
    files[which] = image(one.get_fdata() * 1e-4, one.affine, np.float64), ".nii.gz"
    result = found(tmp_path, **files)
    assert result.report["start"] == "shared grid"
    assert distance(result.matrix, plain.matrix, pair) < 0.02


def resampled(one, spacing=(3.0, 3.0, 3.0), degrees=(0, 0, 0), margin=30.0):
    """The same object on another grid of the world."""
    shape = np.ceil((np.array(one.shape) * SPACING + margin) / spacing).astype(int)
    affine = rigid(degrees, (0, 0, 0)) @ np.diag([*spacing, 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((shape - 1) / 2) + (2.0, -3.0, 1.0)
    data = resample_from_to(one, (tuple(shape), affine), order=1).get_fdata()
    return image(data, affine)


OTHER = {
    "a wider field of view": lambda one: resampled(one, margin=45.0),
    "a cropped field of view": lambda one: one.slicer[4:-4, 3:-5, :],
    "finer voxels": lambda one: resampled(one, (1.7, 1.9, 2.1)),
    "thick slices": lambda one: resampled(one, (2.0, 2.0, 5.5)),
    "oblique": lambda one: resampled(one, degrees=(8, -11, 14)),
    "oblique, thick, flipped": lambda one: turned(
        resampled(one, (2.0, 2.0, 5.0), (10, 5, -15)), "LIP"
    ),
}


@pytest.mark.parametrize("which", ["moving", "fixed"])
@pytest.mark.parametrize("name", OTHER)
def test_the_same_object_on_other_grids(tmp_path, pair, plain, name, which):
    files = {key: (pair[key], ".nii.gz") for key in ("moving", "fixed")}
    files[which] = OTHER[name](pair[which]), ".nii.gz"
    result = found(tmp_path, **files)
    assert result.report["start"] == "centres of mass"
    assert distance(result.matrix, plain.matrix, pair) < 1


def dice(a, b):
    return 2 * (a & b).sum() / (a.sum() + b.sum())


def test_labels_are_carried_along_by_nearest_voxels(tmp_path, pair):
    """Two label files, one on another grid than the moving scan; no label is invented."""
    nib.save(pair["moving seg"], tmp_path / "seg.nii.gz")
    fine = resample_from_to(pair["moving seg"], resampled(pair["moving"], (2.0, 2.0, 2.0)), order=0)
    nib.save(turned(fine, "LPS"), tmp_path / "fine.nii.gz")
    result = found(
        tmp_path,
        (pair["moving"], ".nii.gz"),
        (turned(pair["fixed"], "PIR"), ".nii.gz"),
        labels=[tmp_path / "seg.nii.gz", tmp_path / "fine.nii.gz"],
    )
    result.save(tmp_path / "out")
    truth = turned(pair["fixed seg"], "PIR")
    for name in ("seg", "fine"):
        carried = nib.load(tmp_path / "out" / f"labels_{name}.nii.gz")
        assert carried.get_data_dtype() == np.int16
        np.testing.assert_allclose(carried.affine, truth.affine, atol=1e-4)
        data = np.asarray(carried.dataobj)
        assert set(np.unique(data)) <= {0, 1, 2, 4}
        assert dice(data > 0, truth.get_fdata() > 0) > 0.8
    (tmp_path / "other").mkdir()
    nib.save(pair["moving seg"], tmp_path / "other" / "seg.nii")
    with pytest.raises(InputError, match="second file of labels called 'seg'"):
        register(
            tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz",
            labels=[tmp_path / "seg.nii.gz", tmp_path / "other" / "seg.nii"],
        )  # fmt: skip
    nib.save(image(pair["moving"].get_fdata() / 7, pair["moving"].affine), tmp_path / "x.nii")
    with pytest.raises(InputError, match="labels are whole numbers"):
        register(tmp_path / "moving.nii.gz", tmp_path / "fixed.nii.gz", labels=[tmp_path / "x.nii"])


def with_skull(one, thick_mm=9.0):
    """A shell of fat around the brain, and its mask: what a stripper has to take away."""
    brain = one.get_fdata() > 0
    outside = distance_transform_edt(~brain, sampling=SPACING)
    shell = (outside > 6) & (outside < 6 + thick_mm)
    data = np.where(shell, 1.5 * np.percentile(one.get_fdata()[brain], 99), one.get_fdata())
    noise = np.random.default_rng(0).rayleigh(data[brain].mean() / 50, data.shape)
    return image(data + noise, one.affine), image(brain, one.affine, np.uint8)


def test_brain_masks_make_a_head_with_skull_as_good_as_a_stripped_one(tmp_path, pair, plain):
    masks = {}
    files = {}
    for name in ("moving", "fixed"):
        head, mask = with_skull(pair[name])
        # The mask on a grid of its own, as another tool may leave it.
        mask = resample_from_to(mask, resampled(mask, (2.0, 2.5, 3.5)), order=0)
        nib.save(turned(mask, "LPI"), tmp_path / f"{name}_mask.nii.gz")
        masks[f"{name}_mask"] = tmp_path / f"{name}_mask.nii.gz"
        files[name] = head, ".nii.gz"
    result = found(tmp_path, **files, **masks)
    assert result.report["start"] == "shared grid"
    assert distance(result.matrix, plain.matrix, pair) < 1
    # The warped scan is the whole one, skull and all.
    assert result.warped.data.max() > 1.2 * pair["moving"].get_fdata().max()


def test_a_mask_that_lies_elsewhere_is_refused(tmp_path, pair):
    far = pair["fixed"].affine.copy()
    far[:3, 3] += 1000
    nib.save(image(np.ones((9, 9, 9)), far, np.uint8), tmp_path / "mask.nii")
    files = {name: (pair[name], ".nii") for name in ("moving", "fixed")}
    with pytest.raises(InputError, match=r"mask.nii: no voxel of this mask lies within .*moving"):
        found(tmp_path, **files, moving_mask=tmp_path / "mask.nii")
