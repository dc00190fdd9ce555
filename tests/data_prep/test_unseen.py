"""Heads with skulls: what is stripped, what is brought together, what is refused."""

import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from data_prep import heads, strip, unseen
from data_prep.phantom import Lattice
from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.grid import Grid
from odereg_core.pairs import pair_keys, simulate
from odereg_core.profiles import load_profile
from odereg_core.transforms import Rigid
from odereg_core.volume import Volume, resample

NATIVE = Path(__file__).parents[3] / "shared" / "data" / "native" / "TCGA-FG-6692"
SEED, SPACING = 7020, 6.0


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("heads")
    heads.cohort(folder, 1, SPACING, SEED)
    return folder


def test_heads_of_other_settings_and_a_cohort_cut_short_are_refused(tmp_path, capsys):
    options = [str(tmp_path), "--subjects", "1", "--spacing", "12", "--jobs", "1"]
    assert heads.main(options) == 0
    before = {path: path.read_bytes() for path in tmp_path.rglob("*.*")}
    assert heads.main([*options[:-3], "10", "--jobs", "1"]) == 2
    assert f"{tmp_path}: holds a cohort of other settings" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in tmp_path.rglob("*.*")} == before
    note = tmp_path / "heads.json"
    note.write_text(note.read_text().replace('"subjects": 1', '"subjects": 3'))
    with pytest.raises(InputError, match=r"1 of 3 subjects are made; python -m data_prep\.heads"):
        unseen.build(tmp_path, tmp_path / "out", load_profile("smoke"), "template")
    note.write_text("{")
    assert heads.main(options) == 2
    assert "heads.json: not a readable JSON file" in capsys.readouterr().err


def overlap(a, b):
    return float(2 * (a & b).sum() / (a.sum() + b.sum()))


def test_a_head_has_layers_in_the_order_of_a_head():
    lattice = Lattice(3.0)
    points = lattice.points()
    ball = (points**2).sum(0) < 60**2
    parts = heads.shells(lattice, ball, heads.Build())
    radius = np.sqrt((points**2).sum(0))
    up = points[2] > 20  # away from face and neck
    for name, middle in (("bone", 64.6), ("fat", 70.5)):
        inside = radius[up & (parts[name] > 0.5)]
        assert inside.mean() == pytest.approx(middle, abs=2.5), name
    assert (sum(parts.values())[ball] == 0).all()
    assert max(float(part.max()) for part in parts.values()) <= 1 + 1e-6
    assert all(float(part.min()) >= 0 for part in parts.values())


def test_heads_repeat_to_the_byte_and_whole_ones_are_kept(root, tmp_path):
    heads.cohort(tmp_path, 1, SPACING, SEED)
    files = sorted(p.relative_to(root) for p in root.rglob("*.nii.gz"))
    assert [f.name for f in files] == [
        "UNSEEN001-FLAIR.nii.gz", "UNSEEN001-T1.nii.gz", "UNSEEN001-T2.nii.gz",
        "UNSEEN001-mask.nii.gz",
    ]  # fmt: skip
    assert all((root / f).read_bytes() == (tmp_path / f).read_bytes() for f in files)
    stamp = (tmp_path / files[1]).stat().st_mtime_ns
    heads.cohort(tmp_path, 1, SPACING, SEED)
    assert (tmp_path / files[1]).stat().st_mtime_ns == stamp
    other = heads.head(SEED, 2, SPACING)["t1"][0]
    assert not np.array_equal(other, nib.load(root / files[1]).get_fdata())


def test_the_true_brain_is_as_large_whatever_the_voxels():
    litres = []
    for spacing in (6.0, 9.0):
        mask, voxel = heads.head(SEED, 1, spacing)["mask"]
        litres.append(mask.sum() * np.prod(voxel) / 1e6)
    assert litres[0] == pytest.approx(1.25, rel=0.02)  # of the atlas's 1.88: one of the smallest
    assert litres[1] == pytest.approx(litres[0], rel=0.02)


@pytest.fixture(scope="module")
def prepared(root, tmp_path_factory):
    out = tmp_path_factory.mktemp("unseen")
    return unseen.build(root, out, load_profile("smoke"), tool="template", together=True)


def test_the_brain_is_found_and_put_where_brats_has_it(root, prepared):
    assert prepared.names("test") == ["UNSEEN001"] and prepared.contrasts == ("t1", "t2", "flair")
    subject = prepared.load("UNSEEN001")
    truth = Volume.load(root / "mask" / "UNSEEN001-mask.nii.gz")
    grid = prepared.grid
    centre = (grid.points()[0] * subject.mask).sum((1, 2, 3)) / subject.mask.sum()
    assert np.allclose(centre.numpy(), unseen.BRAIN_CENTRE, atol=2.0)
    # The head was made with its field of view's centre at 0; the shift is the prepared one's.
    index = np.argwhere(truth.data > 0).mean(0)
    there = truth.affine[:3, :3] @ index + truth.affine[:3, 3]
    true = resample(truth, grid, there - np.asarray(unseen.BRAIN_CENTRE))[0, 0] > 0.5
    assert overlap(subject.mask, true) > 0.92
    assert subject.seg is None and 0 < float(subject.images.max()) <= 1


def test_its_pairs_have_no_dice_but_all_else(prepared):
    key = pair_keys(prepared.names("test"), prepared.contrasts, "hybrid", 1)[0]
    pair = simulate(prepared, key, 3)
    assert pair.moving_tumour is None and float(pair.brain.float().mean()) > 0.05


def test_contrasts_are_brought_together(root):
    """A T2 turned and shifted in its header comes back to where it was, well within a voxel."""
    t1, t2 = (Volume.load(root / c / f"UNSEEN001-{c}.nii.gz") for c in ("T1", "T2"))
    motion = Rigid().matrix(torch.tensor([[0.05, -0.04, 0.06, 4.0, -3.0, 2.0]]).double())[0].numpy()
    moved = Volume(t2.data, motion @ t2.affine, t2.orientation, t2.path)
    grid = Grid((60, 60, 40), (4.0, 4.0, 4.0))
    back = unseen.aligned(moved, t1, grid, np.zeros(3))
    points = np.array([[0, 0, 0, 1], [60, 0, 0, 1], [0, 60, 30, 1], [-50, -40, -30, 1.0]]).T
    there = back.affine @ np.linalg.inv(t2.affine) @ points - points
    before = motion @ points - points
    assert np.linalg.norm(before[:3], axis=0).mean() > 5
    assert np.linalg.norm(there[:3], axis=0).max() < 1.5


def test_a_finished_subject_is_not_made_anew(root, prepared, monkeypatch):
    monkeypatch.setattr(unseen, "prepare", lambda *a: pytest.fail("made anew"))
    again = unseen.build(root, prepared.folder, load_profile("smoke"), "template", together=True)
    assert again.names("test") == prepared.names("test")


@pytest.fixture
def copies(root, tmp_path):
    for name in ("A-01", "B-02"):
        for contrast in ("T1", "T2"):
            target = tmp_path / f"IXI-{contrast}" / f"{name}-{contrast}.nii.gz"
            target.parent.mkdir(exist_ok=True)
            shutil.copy(root / contrast / f"UNSEEN001-{contrast}.nii.gz", target)
    return tmp_path


def test_ixis_layout_is_read_and_who_lacks_a_contrast_is_left_out(copies):
    subjects, lacking = unseen.find(copies)
    assert list(subjects) == ["A-01", "B-02"] and lacking == []
    assert list(subjects["A-01"]) == ["t1", "t2"]
    (copies / "IXI-T1" / "B-02-T1.nii.gz").unlink()
    subjects, lacking = unseen.find(copies)
    assert list(subjects) == ["A-01"] and lacking == ["B-02"]


def test_contrasts_that_are_not_asked_for_are_as_if_not_there(copies, monkeypatch, capsys):
    """IXI has T1, T2 and PD; the encoder of Fig. 4c's rows knows no PD."""
    for name in ("A-01", "C-03"):
        shutil.copy(copies / "IXI-T1" / "A-01-T1.nii.gz", copies / f"{name}-PD.nii.gz")
    subjects, lacking = unseen.find(copies)
    assert list(subjects) == ["A-01"] and sorted(lacking) == ["B-02", "C-03"]
    assert list(subjects["A-01"]) == ["t1", "t2", "pd"]

    monkeypatch.setattr(unseen, "prepare", lambda *a: None)
    command = [str(copies), str(copies / "out"), "--profile", "smoke", "--jobs", "1"]
    command += ["--tool", "template", "--contrasts"]
    assert unseen.main([*command, "t1,t1ce,t2,flair"]) == 0
    cohort = Cohort(copies / "out")
    assert cohort.contrasts == ("t1", "t2") and cohort.names("test") == ["A-01", "B-02"]
    assert unseen.main([*command, "t1,T2"]) == 2
    assert "no contrast 'T2'; there are: t1, t1ce, t2, pd, flair" in capsys.readouterr().err


def test_bad_input_gets_one_sentence(copies, capsys, monkeypatch):
    out = copies / "out"

    def refused(*words, options=()):
        assert (
            unseen.main([str(copies), str(out), "--profile", "smoke", "--jobs", "1", *options]) == 2
        )
        message = capsys.readouterr().err
        assert all(word in message for word in words) and "Traceback" not in message
        assert not (out / "cohort.json").exists()

    refused("no stripping tool 'knife'", "auto, template", options=("--tool", "knife"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    refused("hd-bet is not installed", options=("--tool", "hd-bet"))
    path = copies / "IXI-T2" / "B-02-T2.nii.gz"
    path.write_bytes(path.read_bytes()[:2000])
    (copies / "IXI-T1" / "A-01-T1.nii.gz").unlink()
    refused("1 fault", "B-02-T2.nii.gz", "cannot be read")
    (copies / "more").mkdir()
    shutil.copy(path, copies / "more" / path.name)
    refused("B-02 has two t2")
    shutil.rmtree(copies / "IXI-T1")
    shutil.rmtree(copies / "more")
    refused("no subject with two contrasts")


def test_an_installed_tool_is_used(tmp_path, monkeypatch):
    """A stand-in that keeps what is brighter than half: how the program is called and read."""
    program = tmp_path / "mri_synthstrip"
    program.write_text(
        f"#!{sys.executable}\n"
        "import sys, nibabel as nib\n"
        "given = dict(zip(sys.argv[1::2], sys.argv[2::2]))\n"
        "image = nib.load(given['-i'])\n"
        "data = image.get_fdata()\n"
        "nib.save(nib.Nifti1Image((data * (data > 0.5)).astype('f4'), image.affine), given['-o'])\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{Path(sys.executable).parent}:/usr/bin:/bin")
    assert strip.choose_tool("auto") == "mri_synthstrip"
    image = torch.rand(1, 1, 8, 9, 10, generator=torch.Generator().manual_seed(0))
    grid = Grid((8, 9, 10), (2.0, 2.0, 2.0))
    assert torch.equal(strip.strip(image, grid, "mri_synthstrip"), (image > 0.5).float())
    program.write_text("#!/bin/sh\necho no licence >&2\nexit 1\n")
    with pytest.raises(InputError, match="mri_synthstrip failed \\(no licence\\)"):
        strip.strip(image, grid, "mri_synthstrip")


@pytest.mark.slow
@pytest.mark.skipif(not NATIVE.is_dir(), reason="the real volumes are not here (shared/data)")
def test_a_real_head_is_stripped_as_its_publishers_stripped_it(tmp_path):
    """Four scans with skulls, thick slices, not aligned; the published brain is the reference."""
    for contrast in ("t1", "t1ce", "t2", "flair"):
        (tmp_path / f"real-{contrast.upper()}.nii.gz").symlink_to(NATIVE / f"{contrast}.nii.gz")
    cohort = unseen.build(tmp_path, tmp_path / "out", load_profile("smoke"), tool="template")
    found = cohort.load("real").mask
    layout = NATIVE.parents[1] / "brats_layout" / NATIVE.name
    stripped = Volume.load(layout / f"{NATIVE.name}_t1.nii.gz")
    brain = stripped.with_data((stripped.data != 0).astype(np.float32))
    index = np.argwhere(brain.data > 0).mean(0)
    there = brain.affine[:3, :3] @ index + brain.affine[:3, 3]
    true = resample(brain, cohort.grid, there - np.asarray(unseen.BRAIN_CENTRE))[0, 0] > 0.5
    assert float(found.sum() / true.sum()) == pytest.approx(1, abs=0.2)
    assert overlap(found, true) > 0.85  # both rest on other poses of the head: rigidly unaligned
