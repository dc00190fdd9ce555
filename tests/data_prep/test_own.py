"""A cohort of one's own: layouts, contrasts, masks or none, grids of their own, and its faults."""

import nibabel as nib
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from data_prep import own
from data_prep.own import build, find
from odereg_core.errors import InputError
from odereg_core.profiles import load_profile
from odereg_core.train.registration import train

BIDS = "{subject}/anat/{subject}_{contrast}.nii.gz"


def write(path, seed=0, spacing=(5.0, 6.0, 7.0), shift=(0.0, 0.0, 0.0), labels=False):
    """A stripped head 150 mm wide, on a grid of its own."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = tuple(int(180 / s) for s in spacing)
    affine = np.diag([-spacing[0], spacing[1], spacing[2], 1.0])
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    world = np.tensordot(affine[:3, :3], np.indices(shape), 1) + affine[:3, 3, None, None, None]
    radius = np.linalg.norm(world - np.reshape(shift, (3, 1, 1, 1)), axis=0)
    texture = gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    data = np.where(radius < 75, 100 + 400 * texture, 0)
    if labels:
        data = np.where(radius < 20, 7, 0)
    nib.save(nib.Nifti1Image(data.astype(np.int16), affine), path)


@pytest.fixture
def bids(tmp_path):
    """Four subjects of two contrasts, of other grids, two of them with a lesion."""
    for number in range(1, 5):
        folder = tmp_path / "in" / f"sub-{number:02d}" / "anat"
        write(folder / f"sub-{number:02d}_T1w.nii.gz", number)
        write(folder / f"sub-{number:02d}_PDw.nii.gz", 10 + number, (4.0, 4.0, 9.0))
        if number < 3:
            write(folder / f"sub-{number:02d}_lesion.nii.gz", labels=True)
    return tmp_path / "in"


def test_any_layout_and_contrasts_are_prepared_and_trained_on(tmp_path, bids, tiny_profile):
    profile = load_profile(tiny_profile)
    cohort = build(bids, tmp_path / "out", profile, BIDS, mask="lesion")
    assert cohort.contrasts == ("PDw", "T1w")
    assert {part: len(names) for part, names in cohort.split.items()} == {
        "train": 2, "val": 1, "test": 1,
    }  # fmt: skip
    assert cohort.names("test")[0] in ("sub-01", "sub-02")  # those with a mask
    for number in range(1, 5):
        subject = cohort.load(f"sub-{number:02d}")
        assert (subject.seg is not None) == (number < 3)
        pd, t1 = (image > 0 for image in subject.images)
        assert 2 * (pd & t1).sum() / (pd.sum() + t1.sum()) > 0.9  # aligned, whatever their grids
        litres = float(t1.sum()) * 6.0**3 / 1e6
        assert litres == pytest.approx(4 / 3 * np.pi * 0.75**3, rel=0.1)
    assert set(cohort.load("sub-01").seg.unique().tolist()) == {0, 7}
    assert train("rigid", profile, cohort, tmp_path / "models", "cpu").exists()


def test_without_masks_any_subject_can_be_a_test_subject(tmp_path, bids, tiny_profile):
    cohort = build(bids, tmp_path / "out", load_profile(tiny_profile), BIDS, ("T1w", "PDw"), "none")
    assert cohort.contrasts == ("T1w", "PDw")
    assert all(cohort.load(name).seg is None for name in cohort.names("test"))
    again = build(bids, tmp_path / "out", load_profile(tiny_profile), BIDS, ("T1w", "PDw"), "none")
    assert again.split == cohort.split


@pytest.mark.parametrize(
    ("pattern", "path"),
    [
        ("{contrast}/{subject}-{contrast}.nii.gz", "T1/IXI002-Guys-T1.nii.gz"),
        ("{subject}_{contrast}.nii", "IXI002-Guys_T1.nii"),
        ("site/{subject}/{contrast}.nii.gz", "site/IXI002-Guys/T1.nii.gz"),
    ],
)
def test_patterns(tmp_path, pattern, path):
    write(tmp_path / path)
    write(tmp_path / path.replace("T1", "T2"))
    (subject,), faults = find(tmp_path, pattern)
    assert subject.name == "IXI002-Guys" and list(subject.images) == ["T1", "T2"] and not faults
    assert subject.images["T1"] == tmp_path / path


def test_named_contrasts_tell_where_a_subjects_name_ends(tmp_path):
    for subject in ("sub_01", "sub_02"):
        for contrast in ("T1w", "T2w", "lesion"):
            write(tmp_path / f"{subject}_{contrast}.nii.gz", labels=contrast == "lesion")
    subjects, faults = find(tmp_path, "{subject}_{contrast}.nii.gz", ("T1w", "T2w"), "lesion")
    assert [subject.name for subject in subjects] == ["sub_01", "sub_02"] and not faults
    assert all(subject.mask and list(subject.images) == ["T1w", "T2w"] for subject in subjects)


def test_a_mask_that_lies_elsewhere_is_a_fault(tmp_path, bids, tiny_profile):
    write(bids / "sub-01" / "anat" / "sub-01_lesion.nii.gz", labels=True)
    path = bids / "sub-01" / "anat" / "sub-01_lesion.nii.gz"
    image = nib.load(path)
    affine = image.affine.copy()
    affine[:3, 3] += 1000
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), affine), path)
    with pytest.raises(InputError, match=r"lesion\.nii\.gz: none of the mask lies in"):
        build(bids, tmp_path / "out", load_profile(tiny_profile), BIDS, mask="lesion")


def test_too_few_subjects_without_masks_is_told_as_that(tmp_path, bids):
    with pytest.raises(InputError, match=r"wants 20 test subjects, .* there are 4 subjects$"):
        build(bids, tmp_path / "out", load_profile("demo"), BIDS, ("T1w", "PDw"), "none")


def test_other_braces_of_a_pattern_are_a_files_own(tmp_path):
    write(tmp_path / "a_T1{0}.nii.gz")
    write(tmp_path / "a_T2{0}.nii.gz")
    write(tmp_path / "b_T2{0}.nii.gz")
    subjects, (fault,) = find(tmp_path, "{subject}_{contrast}{0}.nii.gz")
    assert [subject.name for subject in subjects] == ["a", "b"]
    assert "b: the contrast T1 is missing" in fault and fault.endswith("b_T1{0}.nii.gz)")


def test_all_faults_are_told_and_nothing_is_written(tmp_path, bids, capsys):
    (bids / "sub-01" / "anat" / "sub-01_PDw.nii.gz").unlink()
    write(bids / "sub-02" / "anat" / "sub-02_PDw.nii.gz", shift=(60, 0, 0))
    (bids / "sub-03" / "anat" / "sub-03_T1w.nii.gz").write_bytes(b"no scan")
    arguments = [str(bids), str(tmp_path / "out"), "--pattern", BIDS, "--mask", "lesion"]
    assert own.main([*arguments, "--profile", "smoke", "--jobs", "1"]) == 2
    said = capsys.readouterr().err
    assert "3 faults, nothing written" in said
    assert "sub-01: the contrast PDw is missing" in said
    assert "sub-02" in said and "contrasts must be aligned" in said
    assert "sub-03" in said and "not a readable NIfTI" in said
    assert not (tmp_path / "out").exists()


def test_what_is_no_cohort_is_refused(tmp_path, bids):
    for arguments, words in (
        ((bids / "nowhere",), "no such folder"),
        ((bids, "{subject}.nii.gz"), r"needs both \{subject\} and \{contrast\}"),
        ((bids,), "no file lies where the pattern"),
        ((bids, BIDS, ("T1w",)), "two contrasts or more"),
        ((bids, BIDS, ("T1w", "PDw", "T1w")), "named twice in: T1w, PDw, T1w"),
        ((bids, f"{bids}/{BIDS}"), "is none below"),
        ((bids, "{subject}/**{contrast}.nii.gz"), "the pattern"),  # Python 3.13 takes it
    ):
        with pytest.raises(InputError, match=words):
            find(*arguments)
