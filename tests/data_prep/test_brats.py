"""From BraTS's layout to the prepared cohort: what is copied, what is refused, what is resumed."""

import shutil
from itertools import chain
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep import brats
from data_prep.brats import build, check, find, grid_centre, main, source_of, split
from odereg_core.cohort import CONTRASTS, Cohort
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.profiles import Profile, load_profile
from odereg_core.volume import Volume, normalise

DATA = Path(__file__).parents[3] / "shared" / "data" / "brats_layout"
real = pytest.mark.skipif(not DATA.is_dir(), reason="the real volumes are not here (shared/data)")
SHAPE = (12, 12, 9)
LPS = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 11], [0, 0, 1, 0], [0, 0, 0, 1]])


def profile(shape=(12, 12, 10), spacing=1.0, val=1, test=1, seed=0):
    smoke = load_profile("smoke").model_dump(exclude={"grid", "split", "models"})
    return Profile(
        **smoke,
        models={},
        grid={"shape": shape, "spacing": spacing},
        split={"val": val, "test": test, "seed": seed},
    )


def brain(seed):
    rng = np.random.default_rng(seed)
    data = rng.integers(50, 900, SHAPE).astype(np.int16)
    data[:2] = data[:, :2] = data[:, :, :1] = data[-2:] = 0
    return data


def write(path, data, affine=LPS):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(data, affine), path)


def add_subject(root, name, seed=0, mask=True, suffix=".nii.gz"):
    for index, contrast in enumerate(CONTRASTS):
        write(root / name / f"{name}_{contrast}{suffix}", brain(10 * seed + index))
    if mask:
        seg = np.zeros(SHAPE, np.uint8)
        seg[4:7, 4:8, 3:6], seg[5, 5, 4], seg[6, 7, 5] = 2, 1, 4
        write(root / name / f"{name}_seg{suffix}", seg)


@pytest.fixture
def root(tmp_path):
    for seed, name in enumerate(("s1", "s2", "s3", "s4")):
        add_subject(tmp_path / "in", name, seed, mask=name != "s2")
    return tmp_path / "in"


def listing(folder):
    return sorted(p.name for p in folder.rglob("*")) if folder.exists() else []


def test_at_equal_spacing_voxels_are_copied_and_padded(root, tmp_path):
    cohort = build(root, tmp_path / "out", profile())
    assert cohort.grid == Grid((12, 12, 10), (1.0, 1.0, 1.0))
    for name in ("s1", "s2"):
        subject = cohort.load(name)
        for index, contrast in enumerate(CONTRASTS):
            # From L, P to R, A by nibabel's own axes: two flips. Nine slices to ten: one more below
            # or above, none in between.
            data = nib.load(root / name / f"{name}_{contrast}.nii.gz").get_fdata()[::-1, ::-1]
            scaled = normalise(data.astype(np.float32), data != 0)
            expected = np.pad(scaled, ((0, 0), (0, 0), (0, 1))).astype(np.float16)
            assert np.array_equal(subject.images[index].numpy(), expected.astype(np.float32))
    seg = nib.load(root / "s1" / "s1_seg.nii.gz").get_fdata()[::-1, ::-1]
    assert np.array_equal(cohort.load("s1").seg.numpy(), np.pad(seg, ((0, 0), (0, 0), (0, 1))))
    assert cohort.load("s2").seg is None


@pytest.mark.parametrize("shape", [(240, 240, 155), (239, 241, 154), (10, 11, 12)])
def test_the_grids_centre_makes_equal_voxels_coincide(shape):
    grid = Grid((240, 240, 160), (1.0, 1.0, 1.0))
    affine = np.diag([1.0, 1.0, 1.0, 1.0])
    affine[:3, 3] = (0.0, -239.0, 7.5)
    volume = Volume(np.zeros(shape, np.float32), affine, np.eye(3))
    centre = grid_centre(volume, grid)
    assert np.abs(centre - volume.centre).max() <= 0.5
    first = centre + np.array([axis[0].item() for axis in grid.axes(dtype=torch.float64)])
    index = volume.index(first)
    assert np.array_equal(index, np.rint(index))
    # BraTS's 155 slices: two below, three above.
    assert shape[2] != 155 or index[2] == -2


def test_coarser_grids_keep_the_background_zero_and_the_labels(root, tmp_path):
    cohort = build(root, tmp_path / "out", profile((6, 6, 5), 2.0))
    subject = cohort.load("s1")
    assert subject.images.min() == 0
    assert 0 < subject.images.max() <= 1
    assert not subject.mask[0].any()  # zeros in the file
    assert subject.mask[2:4, 2:5, 2:4].all()
    assert set(subject.seg.unique().tolist()) <= {0, 1, 2, 4}
    assert (subject.seg > 0).any()


def test_the_split_is_by_subject_and_tests_only_those_with_masks():
    names = [f"BraTS20_Training_{i:03}" for i in range(1, 370)]
    others = [f"BraTS20_Validation_{i:03}" for i in range(1, 126)]
    paper = load_profile("paper")
    parts = split(names + others, names, paper)
    assert {k: len(v) for k, v in parts.items()} == {"train": 424, "val": 20, "test": 50}
    assert sorted(chain(*parts.values())) == sorted(names + others)
    assert set(parts["test"]) <= set(names)
    assert set(parts["val"] + parts["train"]) >= set(others)
    assert split((names + others)[::-1], names[::-1], paper) == parts
    assert parts == {k: sorted(v) for k, v in parts.items()}


def test_the_embedded_cohorts_counts_fit_their_profiles():
    for name, sizes in (("demo", (60, 10, 20)), ("smoke", (3, 1, 2))):
        chosen = load_profile(name)
        subjects = [f"s{i:02}" for i in range(chosen.cohort.subjects)]
        parts = split(subjects, subjects, chosen)
        assert tuple(len(parts[k]) for k in ("train", "val", "test")) == sizes


def test_too_few_subjects_or_masks_is_one_sentence(root, tmp_path):
    for wanted in (profile(test=4), profile(val=3), profile(val=1, test=3)):
        with pytest.raises(InputError, match="test subjects with a mask") as caught:
            build(root, tmp_path / "out", wanted)
        assert "4 subjects, 3 with a mask" in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_brats_own_layout_is_found(tmp_path):
    training = tmp_path / "MICCAI_BraTS2020_TrainingData"
    add_subject(training, "BraTS20_Training_001")
    add_subject(training, "BraTS20_Training_355", suffix=".nii", mask=False)
    odd = training / "BraTS20_Training_355" / "W39_1998.09.19_Segm.nii"
    write(odd, np.ones(SHAPE, np.uint8))
    (training / "name_mapping.csv").write_text("a,b\n")
    validation = tmp_path / "MICCAI_BraTS2020_ValidationData"
    add_subject(validation, "BraTS20_Validation_001", mask=False)
    subjects, faults = find(tmp_path)
    assert faults == []
    assert [s.name for s in subjects] == [
        "BraTS20_Training_001",
        "BraTS20_Training_355",
        "BraTS20_Validation_001",
    ]
    assert [s.mask and s.mask.name for s in subjects] == [
        "BraTS20_Training_001_seg.nii.gz",
        "W39_1998.09.19_Segm.nii",
        None,
    ]
    assert [s.name for s in find(training)[0]] == ["BraTS20_Training_001", "BraTS20_Training_355"]


def test_all_faults_are_told_at_once_and_nothing_is_written(tmp_path, capsys):
    root = tmp_path / "in"
    for seed, name in enumerate("abcdefghijk"):
        add_subject(root, name, seed)
    (root / "a" / "a_t2.nii.gz").unlink()
    write(root / "b" / "b_flair.nii.gz", brain(0)[:, :, :-1])
    write(root / "c" / "c_t1ce.nii.gz", brain(0), np.diag([-1.0, 1, 1, 1]))
    write(root / "d" / "d_seg.nii.gz", np.zeros(SHAPE, np.uint8))
    write(root / "e" / "e_seg.nii.gz", np.full(SHAPE, 3, np.uint8))
    whole = (root / "f" / "f_t2.nii.gz").read_bytes()
    (root / "f" / "f_t2.nii.gz").write_bytes(whole[: len(whole) // 2])
    (root / "g" / "g_t1.nii.gz").write_text("no image")
    write(root / "h" / "h_t1.nii.gz", np.zeros(SHAPE, np.int16))
    shifted = LPS.copy()
    shifted[0, 3] = 5
    write(root / "i" / "i_t2.nii.gz", brain(0), shifted)
    (root / "j").rename(root / "renamed")
    add_subject(root / "more", "k")
    expected = (
        ("a", "a_t2.nii.gz", "contrast t2 is missing"),
        ("b", "b_flair.nii.gz", "another grid than b_t1.nii.gz"),
        ("c", "c_t1ce.nii.gz", "oriented LAS, but c_t1.nii.gz LPS"),
        ("d", "d_seg.nii.gz", "mask is empty"),
        ("e", "e_seg.nii.gz", "the label 3"),
        ("f", "f_t2.nii.gz", "cannot be read"),
        ("g", "g_t1.nii.gz", "not a readable NIfTI"),
        ("h", "h_t1.nii.gz", "every voxel is 0"),
        ("i", "i_t2.nii.gz", "another grid"),
        ("renamed", "renamed", "named renamed_<contrast>"),
        ("k", "more", "found twice"),
    )
    assert main([str(root), str(tmp_path / "out"), "--profile", "smoke", "--jobs", "2"]) == 2
    captured = capsys.readouterr()
    lines = captured.err[captured.err.index("error: ") :].splitlines()
    assert lines[0] == f"error: {root}: 11 faults, nothing written:"
    assert len(lines) == 1 + len(expected)
    for name, file, fault in expected:
        (line,) = (x for x in lines[1:] if x.startswith(f"  {name}: "))
        assert file in line
        assert fault in line
    assert "Traceback" not in captured.err
    assert not (tmp_path / "out").exists()


def test_heads_of_another_unit_are_told(tmp_path, capsys):
    for seed, name in enumerate("abcde"):
        add_subject(tmp_path / "in", name, seed)
    for path in (tmp_path / "in" / "b").iterdir():
        image = nib.load(path)
        write(path, np.asarray(image.dataobj), image.affine @ np.diag([40.0, 40, 40, 1]))
    arguments = [str(tmp_path / "in"), str(tmp_path / "out"), "--profile", "smoke", "--jobs", "1"]
    assert main(arguments) == 2
    said = capsys.readouterr().err
    assert "1 fault, nothing written" in said and "of its head lies in the profile's field" in said


@pytest.mark.parametrize("make", [lambda p: None, lambda p: p.mkdir(), lambda p: p.touch()])
def test_a_folder_without_subjects_is_refused(tmp_path, capsys, make):
    make(tmp_path / "in")
    assert main([str(tmp_path / "in"), str(tmp_path / "out"), "--profile", "smoke"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_an_unknown_profile_is_refused(root, tmp_path, capsys):
    assert main([str(root), str(tmp_path / "out"), "--profile", "nothing"]) == 2
    assert "nothing" in capsys.readouterr().err


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def times(folder):
    return {p.name: p.stat().st_mtime_ns for p in folder.glob("*.safetensors")}


def test_jobs_change_nothing_and_runs_repeat_to_the_byte(root, tmp_path):
    build(root, tmp_path / "a", profile(), jobs=1)
    build(root, tmp_path / "b", profile(), jobs=2)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_a_run_that_was_cut_short_goes_on(root, tmp_path, monkeypatch):
    out, prepare = tmp_path / "out", brats.prepare

    def fails_on_third(subject, *rest):
        if subject.name == "s3":
            raise KeyboardInterrupt
        prepare(subject, *rest)

    monkeypatch.setattr(brats, "prepare", fails_on_third)
    with pytest.raises(KeyboardInterrupt):
        build(root, out, profile())
    assert listing(out) == ["s1.safetensors", "s2.safetensors"]
    with pytest.raises(InputError, match="no prepared cohort"):
        Cohort(out)
    monkeypatch.undo()
    before = times(out)
    build(root, out, profile())
    after = times(out)
    assert {name: after[name] for name in before} == before
    build(root, tmp_path / "at_once", profile())
    assert contents(out) == contents(tmp_path / "at_once")
    # Nor is it a whole cohort while some of its subjects are being made anew.
    write(root / "s3" / "s3_t2.nii.gz", brain(99))
    monkeypatch.setattr(brats, "prepare", fails_on_third)
    with pytest.raises(KeyboardInterrupt):
        build(root, out, profile())
    with pytest.raises(InputError, match="no prepared cohort"):
        Cohort(out)


def test_only_what_changed_is_prepared_anew(root, tmp_path):
    out = tmp_path / "out"
    build(root, out, profile())
    before = times(out)
    assert build(root, out, profile()).names("test")
    assert times(out) == before
    write(root / "s3" / "s3_t2.nii.gz", brain(99))
    shutil.rmtree(root / "s4")
    add_subject(root, "s5", 5)
    cohort = build(root, out, profile())
    after = times(out)
    assert {n for n in after if after[n] != before.get(n)} == {"s3.safetensors", "s5.safetensors"}
    assert sorted(chain(*cohort.split.values())) == ["s1", "s2", "s3", "s5"]
    (out / "s1.safetensors").write_bytes(b"damaged")
    build(root, out, profile()).load("s1")


def test_a_fault_in_a_later_run_leaves_the_cohort_as_it_was(root, tmp_path):
    out = tmp_path / "out"
    build(root, out, profile())
    before = contents(out)
    (root / "s3" / "s3_t2.nii.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match="1 fault, nothing written"):
        build(root, out, profile())
    assert contents(out) == before


def test_another_grid_does_not_overwrite_a_cohort(root, tmp_path):
    build(root, tmp_path / "out", profile())
    with pytest.raises(InputError, match="another grid"):
        build(root, tmp_path / "out", profile((6, 6, 5), 2.0))


def test_the_digest_knows_files_grid_and_roles(root):
    subjects, _ = find(root)
    grid = Grid((12, 12, 10), (1.0, 1.0, 1.0))
    first = source_of(subjects[0], grid)
    assert first == source_of(subjects[0], grid)
    others = [source_of(s, grid) for s in subjects[1:]]
    others.append(source_of(subjects[0], Grid((12, 12, 10), (1.0, 1.0, 2.0))))
    write(root / "s1" / "s1_seg.nii.gz", np.ones(SHAPE, np.uint8))
    others.append(source_of(subjects[0], grid))
    swapped = subjects[1].images
    swapped["t1"], swapped["t2"] = swapped["t2"], swapped["t1"]
    others.append(source_of(subjects[1], grid))
    assert len({first, *others}) == len(others) + 1


def test_the_command_reports_the_split(root, tmp_path, capsys):
    path = tmp_path / "small.yaml"
    path.write_text(
        "extends: smoke\nname: small\n"
        "grid: {shape: [12, 12, 12], spacing: 1.0}\nsplit: {val: 1, test: 2, seed: 0}\n"
    )
    assert main([str(root), str(tmp_path / "out"), "--profile", str(path), "--jobs", "2"]) == 0
    assert capsys.readouterr().out == "train: 1, val: 1, test: 2\n"
    assert Cohort(tmp_path / "out").settings["subjects"] == 4


@real
def test_real_volumes_pass_the_check():
    subjects, faults = find(DATA)
    assert [s.name for s in subjects] == ["TCGA-DU-7294", "TCGA-FG-6692"]
    assert faults == []
    assert check(subjects[0], load_profile("smoke").working_grid) == []


@real
def test_real_volumes_come_to_the_smoke_grid(tmp_path):
    # A third subject, for one to train, one to validate and one to test.
    root = tmp_path / "in"
    for source, name in (("TCGA-DU-7294", "a"), ("TCGA-DU-7294", "b"), ("TCGA-FG-6692", "c")):
        (root / name).mkdir(parents=True)
        for kind in (*CONTRASTS, "seg"):
            path = DATA / source / f"{source}_{kind}.nii.gz"
            (root / name / f"{name}_{kind}.nii.gz").symlink_to(path.resolve())
    small = load_profile("smoke").model_dump()
    small["split"] = {"val": 1, "test": 1, "seed": 0}
    cohort = build(root, tmp_path / "out", Profile(**small), jobs=2)
    subject = cohort.load("c")
    original = nib.load(DATA / "TCGA-FG-6692" / "TCGA-FG-6692_t1.nii.gz")
    brain_ml = (original.get_fdata() != 0).sum() / 1000
    assert subject.mask.sum() * 6**3 / 1000 == pytest.approx(brain_ml, rel=0.05)
    assert subject.images.max() <= 1
    # The brain's centre is where it was, in mm about the centre of the field of view.
    index = np.argwhere(nib.as_closest_canonical(original).get_fdata() != 0).mean(0)
    expected = index - (np.array(original.shape) - 1) / 2
    found = (cohort.grid.points()[0] * subject.mask).sum((1, 2, 3)) / subject.mask.sum()
    assert np.allclose(found, expected, atol=1.0)
    seg = nib.load(DATA / "TCGA-FG-6692" / "TCGA-FG-6692_seg.nii.gz").get_fdata() > 0
    assert (subject.seg > 0).sum() * 6**3 == pytest.approx(seg.sum(), rel=0.15)


@real
@pytest.mark.slow
def test_a_real_volume_at_the_papers_grid_is_copied(tmp_path):
    subjects, _ = find(DATA)
    grid = load_profile("paper").working_grid
    brats.prepare(subjects[0], grid, tmp_path, "")
    brats.write_index(tmp_path, grid, CONTRASTS, {"train": [], "val": [], "test": []}, {})
    images = Cohort(tmp_path).load(subjects[0].name).images
    for index, contrast in enumerate(CONTRASTS):
        data = nib.as_closest_canonical(nib.load(subjects[0].images[contrast])).get_fdata()
        expected = normalise(data.astype(np.float32), data != 0).astype(np.float16)
        assert np.array_equal(images[index, :, :, 2:-3].numpy(), expected.astype(np.float32))
        assert (images[index, :, :, :2] == 0).all()
        assert (images[index, :, :, -3:] == 0).all()
