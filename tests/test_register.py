"""`odereg register`: its files, that other tools reproduce them, real scans, and bad input."""

import json
from pathlib import Path

import ants
import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
import torch
from typer.testing import CliRunner

from odereg_core import cli
from odereg_core.errors import InputError
from odereg_core.registration import register
from odereg_core.volume import Volume
from odereg_core.weights import load_model, save_model

REAL = Path(__file__).resolve().parent.parent.parent / "shared" / "data"


@pytest.fixture(scope="module")
def turning(untrained, tmp_path_factory):
    """Weights of a model that returns one rotation and shift, whatever it sees."""
    model = load_model(untrained / "rigid.safetensors")
    with torch.no_grad():
        model.networks[0].head[-1].bias[:6].copy_(
            torch.tensor([0.01, -0.005, 0.015, 0.02, -0.01, 0.015])
        )
    path = tmp_path_factory.mktemp("turning") / "rigid.safetensors"
    save_model(path, model)
    return path


def blob(path, shape, spacing, turn=0.0, flip=False, dtype=np.float32, seed=0):
    """A smooth head-like object on an oblique, anisotropic grid."""
    c, s = np.cos(turn), np.sin(turn)
    affine = np.eye(4)
    affine[:3, :3] = np.array([[c, -s, 0], [s, c, 0], [0, 0, 1]]) @ np.diag(spacing)
    if flip:
        affine[:3, 0] *= -1
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2) + [12.0, -7.0, 30.0]
    world = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3].reshape(3, 1, 1, 1)
    centred = world - np.array([12.0, -7.0, 30.0]).reshape(3, 1, 1, 1)
    r = np.sqrt(((centred / np.array([60, 75, 55]).reshape(3, 1, 1, 1)) ** 2).sum(0))
    texture = np.sin(centred[0] / 9) * np.cos(centred[1] / 11 + seed) + np.sin(centred[2] / 8)
    data = np.where(r < 1, 500 + 120 * texture, 0).clip(0)
    nib.save(nib.Nifti1Image(data.astype(dtype), affine), path)
    return path


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    moving = blob(folder / "moving.nii.gz", (60, 70, 40), (2.5, 2.5, 4.0), 0.2, True, np.int16)
    fixed = blob(folder / "fixed.nii", (50, 64, 48), (3.0, 2.6, 3.1), -0.3, seed=1)
    return moving, fixed


@pytest.fixture(scope="module")
def result(scans, turning, tmp_path_factory):
    out = tmp_path_factory.mktemp("result")
    register(*scans, weights=turning, device="cpu").save(out)
    return out


def test_files_and_report(scans, result):
    names = {p.name for p in result.iterdir()}
    assert names == {"warped.nii.gz", "displacement.nii.gz", "affine.mat", "report.json"}
    fixed, warped = nib.load(scans[1]), nib.load(result / "warped.nii.gz")
    assert warped.shape == fixed.shape
    np.testing.assert_allclose(warped.affine, fixed.affine, atol=1e-5)
    report = json.loads((result / "report.json").read_text())
    assert report["transform"] == "rigid" and report["seconds"] > 0
    assert len(report["function_evaluations"]) == 3
    assert report["displacement_mm"]["mean"] > 1
    assert {"device", "libraries", "commit", "odereg_core"} <= set(report)


def test_simpleitk_reproduces_the_warp_from_either_file(scans, result):
    moving = sitk.ReadImage(str(scans[0]), sitk.sitkFloat32)
    fixed = sitk.ReadImage(str(scans[1]), sitk.sitkFloat32)
    ours = nib.load(result / "warped.nii.gz").get_fdata()
    field = sitk.ReadImage(str(result / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    for transform in (
        sitk.ReadTransform(str(result / "affine.mat")),
        sitk.DisplacementFieldTransform(field),
    ):
        theirs = sitk.Resample(moving, fixed, transform, sitk.sitkLinear, 0.0)
        difference = np.abs(sitk.GetArrayFromImage(theirs).T - ours)
        scale = ours.max()
        assert np.percentile(difference, 99) < 1e-3 * scale
        assert (difference > 0.01 * scale).mean() < 0.002  # rims of the field of view
    assert ours.std() > 50


def test_simpleitk_reproduces_the_warp_of_a_scan_that_is_cut_off(scans, turning, tmp_path):
    """Where the head goes on past the field of view its outermost voxels reach half a voxel out."""
    image = nib.load(scans[0])
    cut = image.slicer[12:-12, 14:-14, 8:-8]
    nib.save(cut, tmp_path / "cut.nii.gz")
    register(tmp_path / "cut.nii.gz", scans[1], weights=turning, device="cpu").save(tmp_path / "o")
    moving = sitk.ReadImage(str(tmp_path / "cut.nii.gz"), sitk.sitkFloat32)
    fixed = sitk.ReadImage(str(scans[1]), sitk.sitkFloat32)
    whole = sitk.ReadTransform(str(tmp_path / "o" / "affine.mat"))
    theirs = sitk.GetArrayFromImage(sitk.Resample(moving, fixed, whole, sitk.sitkLinear, 0.0)).T
    ours = nib.load(tmp_path / "o" / "warped.nii.gz").get_fdata()
    assert (theirs > 100).sum() > 5000
    assert (np.abs(theirs - ours) > 1).sum() < 10  # places within rounding of the rim


def test_nothing_of_the_users_is_written_over_or_removed(scans, turning, tmp_path):
    """In the scans' own folder: labels that look like results stay, inputs refuse."""
    for name, source in (("m.nii.gz", scans[0]), ("labels_mine.nii.gz", scans[0])):
        (tmp_path / name).write_bytes(source.read_bytes())
    options = {"weights": turning, "device": "cpu"}
    for _ in range(2):
        register(tmp_path / "m.nii.gz", scans[1], labels=scans[0], **options).save(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert {"m.nii.gz", "labels_mine.nii.gz", "labels_moving.nii.gz", "warped.nii.gz"} <= names
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    for again in (
        register(tmp_path / "warped.nii.gz", scans[1], **options),
        register(scans[0], scans[1], labels=tmp_path / "labels_moving.nii.gz", **options),
    ):
        with pytest.raises(InputError, match="would replace it"):
            again.save(tmp_path)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before
    # Without labels a second registration takes its predecessor's away, and no others.
    register(tmp_path / "m.nii.gz", scans[1], **options).save(tmp_path)
    assert names - {path.name for path in tmp_path.iterdir()} == {"labels_moving.nii.gz"}


def test_labels_and_masks_that_lie_elsewhere_are_refused(scans, turning, tmp_path):
    image = nib.load(scans[0])
    away = image.affine.copy()
    away[:3, 3] += 1000
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), away), tmp_path / "away.nii.gz")
    one = np.zeros(image.shape, np.uint8)
    one[30, 35, 20] = 1
    nib.save(nib.Nifti1Image(one, image.affine), tmp_path / "one.nii.gz")
    nib.save(nib.Nifti1Image(0 * one, image.affine), tmp_path / "none.nii.gz")
    large = one.astype(np.int32) * (2**24 + 1)
    nib.save(nib.Nifti1Image(large, image.affine), tmp_path / "large.nii.gz")
    for name, how, words in (
        ("away", "labels", "no label lies within"),
        ("large", "labels", "labels lie below 16777216"),
        ("away", "moving_mask", "no voxel of this mask lies within"),
        ("none", "moving_mask", "this mask is empty"),
        ("one", "moving_mask", "only 0 voxels of 6 mm are left"),
    ):
        path = tmp_path / f"{name}.nii.gz"
        with pytest.raises(InputError, match=words) as error:
            register(*scans, weights=turning, device="cpu", **{how: path})
        assert str(path) in str(error.value)


def test_what_a_header_leaves_open_is_warned_of(scans, turning, tmp_path):
    image = nib.load(scans[0])
    data, affine = np.asarray(image.dataobj), image.affine
    nowhere, twice = (nib.Nifti1Image(data, affine) for _ in range(2))
    nowhere.set_sform(affine, 0)
    nowhere.set_qform(affine, 0)
    moved = affine.copy()
    moved[0, 3] += 30
    twice.set_qform(moved, 1)
    twice.set_sform(affine, 1)
    sheared = affine.copy()
    sheared[:3, 1] += 0.2 * affine[:3, 0]
    for other, words in (
        (nowhere, "neither by an sform nor by a qform"),
        (twice, "an sform and a qform 30.0 mm apart"),
        (nib.Nifti1Image(data, sheared), "not at right angles"),
        (image, None),
    ):
        nib.save(other, tmp_path / "scan.nii.gz")
        scan = tmp_path / "scan.nii.gz"
        report = register(scan, scans[1], weights=turning, device="cpu").report
        said = [text for text in report["warnings"] if "header of the moving" in text]
        assert (words in said[0] and len(said) == 1) if words else not said


def test_arguments_of_other_types_are_named(scans, turning):
    image = nib.load(scans[0])
    with pytest.raises(TypeError, match="moving: a file or a Volume is needed, not a Nifti1Image"):
        register(image, scans[1])
    with pytest.raises(TypeError, match=r"fixed_mask: .* not a ndarray"):
        register(*scans, fixed_mask=np.ones((3, 3, 3)))
    with pytest.raises(InputError, match="refine: -3 steps"):
        register(*scans, weights=turning, refine=-3)
    holed = Volume.load(scans[0])
    holed.data[30, 35, 20] = np.nan
    with pytest.raises(InputError, match="1 voxels are not finite"):
        register(holed, scans[1], weights=turning, device=torch.device("cpu"))


def test_ants_reproduces_the_warp(scans, result):
    moving, fixed = (ants.image_read(str(p)) for p in scans)
    ours = nib.load(result / "warped.nii.gz").get_fdata()
    for name in ("affine.mat", "displacement.nii.gz"):
        theirs = ants.apply_transforms(fixed, moving, [str(result / name)]).numpy()
        difference = np.abs(theirs - ours)
        assert np.percentile(difference, 99) < 1e-3 * ours.max()


def test_simpleitk_reproduces_a_hybrid_warp_and_its_labels(scans, turning, untrained, tmp_path):
    """A dense stage that shifts all points by d, then the rigid map: the exported field is
    R (p + d) + t on the fixed scan's oblique grid, as ITK composes the two."""
    model = load_model(untrained / "dense.safetensors")
    with torch.no_grad():
        model.networks[0].head.bias[:3] = torch.tensor([0.15, -0.3, 0.2])
    save_model(tmp_path / "dense.safetensors", model)
    tissue, image = tmp_path / "tissue.nii.gz", nib.load(scans[0])
    values = (np.asarray(image.dataobj) // 60).astype(np.int16)
    nib.save(nib.Nifti1Image(values, image.affine), tissue)
    weights = [turning, tmp_path / "dense.safetensors"]
    found = register(*scans, "rigid+dense", weights, device="cpu", labels=[tissue])
    found.save(tmp_path)

    d = found.trajectory.stages[1].theta[0].flatten(1).mean(1).double().numpy()
    assert min(abs(d)) > 1
    fixed = sitk.ReadImage(str(scans[1]), sitk.sitkFloat32)
    field = sitk.ReadImage(str(tmp_path / "displacement.nii.gz"), sitk.sitkVectorFloat64)
    rigid = sitk.ReadTransform(str(tmp_path / "affine.mat"))
    shift = sitk.TranslationTransform(3, (d * (-1, -1, 1)).tolist())  # ITK's axes are LPS
    ours, labels = (
        nib.load(tmp_path / name).get_fdata() for name in ("warped.nii.gz", "labels_tissue.nii.gz")
    )
    for whole in (
        sitk.CompositeTransform([rigid, shift]),  # the last is applied to a point first
        sitk.DisplacementFieldTransform(field),
    ):
        theirs, nearest = (
            sitk.GetArrayFromImage(sitk.Resample(sitk.ReadImage(str(path)), fixed, whole, how)).T
            for path, how in ((scans[0], sitk.sitkLinear), (tissue, sitk.sitkNearestNeighbor))
        )
        assert np.percentile(np.abs(theirs - ours), 99) < 2e-3 * ours.max()  # theirs are whole
        assert len(np.unique(labels)) > 5
        assert (labels != nearest).mean() < 0.005  # points half-way between two voxels


def test_one_grid_turns_about_its_centre(scans, untrained):
    result = register(scans[0], scans[0], weights=untrained / "rigid.safetensors", device="cpu")
    assert result.report["start"] == "shared grid"
    assert np.abs(result.displacement).max() < 1e-3
    np.testing.assert_allclose(result.warped.data, Volume.load(scans[0]).data, atol=0.1)


def test_different_grids_start_at_the_centres_of_mass(tmp_path, scans, untrained):
    far = nib.load(scans[0])
    affine = far.affine.copy()
    affine[:3, 3] += [300.0, -200.0, 100.0]
    nib.save(nib.Nifti1Image(np.asarray(far.dataobj), affine), tmp_path / "far.nii.gz")
    result = register(
        tmp_path / "far.nii.gz", scans[0], weights=untrained / "rigid.safetensors", device="cpu"
    )
    assert result.report["start"] == "centres of mass"
    shift = result.displacement.reshape(3, -1).mean(1)
    np.testing.assert_allclose(shift, [300.0, -200.0, 100.0], atol=0.5)
    error = np.abs(result.warped.data - Volume.load(scans[0]).data)
    assert error.mean() < 5


@pytest.mark.skipif(not REAL.exists(), reason="the real volumes are not beside this repository")
def test_real_scans_in_brats_space_and_as_the_scanner_gave_them(tmp_path, turning):
    brats = REAL / "brats_layout" / "TCGA-FG-6692"
    native = REAL / "native" / "TCGA-FG-6692"
    for moving, fixed in (
        (brats / "TCGA-FG-6692_t1.nii.gz", brats / "TCGA-FG-6692_t2.nii.gz"),
        (native / "t2.nii.gz", native / "flair.nii.gz"),
        (native / "t1ce.nii.gz", brats / "TCGA-FG-6692_t1ce.nii.gz"),
    ):
        register(moving, fixed, weights=turning, device="cpu").save(tmp_path)
        warped, target = nib.load(tmp_path / "warped.nii.gz"), nib.load(fixed)
        assert warped.shape == target.shape
        np.testing.assert_allclose(warped.affine, target.affine, atol=1e-3)
        a, b = warped.get_fdata() > 20, target.get_fdata() > 20
        assert 2 * (a & b).sum() / (a.sum() + b.sum()) > 0.5  # the heads overlap


def test_help_reads_well():
    answer = CliRunner().invoke(cli.app, ["--help"])
    assert answer.exit_code == 0
    for command in ("register", "register-batch", "train", "evaluate", "merge", "info"):
        assert command in answer.output
        assert CliRunner().invoke(cli.app, [command, "--help"]).exit_code == 0


def test_the_package_has_one_function_register_however_often_it_is_asked_for():
    import odereg_core
    import odereg_core.registration

    for _ in range(2):
        assert odereg_core.register is odereg_core.registration.register
