"""The synthetic cohort: the physics, the layout, and the same bytes every time."""

import filecmp
import math

import nibabel as nib
import numpy as np
import pytest

from data_prep import phantom
from data_prep.phantom import CONTRASTS, TISSUES, Lattice, Sequence, Tissue, signal


@pytest.fixture(scope="module")
def subject():
    return phantom.subject(2020, 1, 6.0)


def test_flair_nulls_at_t1_ln_2():
    fluid = Tissue(1.0, 4000, 1e9)
    assert signal(fluid, Sequence(1e9, 0, 4000 * math.log(2))) == pytest.approx(0, abs=1e-9)


def test_spin_echo_limits():
    tissue = Tissue(0.8, 900, 80)
    assert signal(tissue, Sequence(1e9, 0)) == pytest.approx(0.8)
    assert signal(tissue, Sequence(1e9, 80)) == pytest.approx(0.8 / math.e)
    assert signal(tissue, Sequence(900, 0)) == pytest.approx(0.8 * (1 - 1 / math.e))


def test_tissue_contrast_is_what_radiology_expects():
    for seed in range(20):
        sequences = phantom.draw_sequences(np.random.default_rng(seed))
        level = {
            c: {name: signal(tissue, s) for name, tissue in TISSUES.items()}
            for c, s in sequences.items()
        }
        assert level["t1"]["wm"] > level["t1"]["gm"] > level["t1"]["csf"]
        assert level["t2"]["csf"] > level["t2"]["gm"] > level["t2"]["wm"]
        assert level["flair"]["oedema"] > level["flair"]["gm"] > level["flair"]["csf"]
        assert level["t1ce"]["enhancing"] > 1.15 * level["t1ce"]["gm"]
        assert level["t1"]["enhancing"] < level["t1"]["wm"]


def test_the_anatomy_does_not_fold():
    lattice = Lattice(6.0)
    u = phantom.diffeomorphism(np.random.default_rng(0), lattice)
    rows = np.stack([np.stack(np.gradient(c, 6.0)) for c in u])
    jacobian = np.moveaxis(rows, (0, 1), (-2, -1)) + np.eye(3)
    assert np.linalg.det(jacobian).min() > 0
    assert np.linalg.norm(u, axis=0).max() > 3


def test_volumes_are_plausible(subject):
    voxel = 6.0**3 / 1000
    brain = subject["t1"] > 0
    assert 1000 < brain.sum() * voxel < 2100  # ml
    assert set(np.unique(subject["seg"])) <= {0, 1, 2, 4}
    assert 5 < (subject["seg"] > 0).sum() * voxel < 400
    assert not subject["seg"][~brain].any()
    for contrast in CONTRASTS:
        assert subject[contrast].dtype == np.int16
        assert ((subject[contrast] > 0) == brain).all()
    centre = (np.argwhere(brain).mean(0) - (np.array(brain.shape) - 1) / 2) * 6.0
    assert np.abs(centre - phantom.BRAIN_CENTRE).max() < 10


def test_subjects_differ_and_repeat(subject):
    again, other = phantom.subject(2020, 1, 6.0), phantom.subject(2020, 2, 6.0)
    for name, volume in subject.items():
        assert np.array_equal(volume, again[name])
        assert not np.array_equal(volume, other[name])


def test_brats_shape_at_1_mm():
    assert Lattice(1.0).shape == (240, 240, 155)
    assert Lattice(3.0).shape == (80, 80, 52)


def test_layout_and_the_same_bytes_whatever_the_jobs(tmp_path):
    for jobs in (1, 2):
        options = ["--subjects", "2", "--spacing", "12", "--seed", "5", "--jobs", str(jobs)]
        assert phantom.main([str(tmp_path / str(jobs)), *options]) == 0
    one = tmp_path / "1"
    files = sorted(p.relative_to(one) for p in one.rglob("*.nii.gz"))
    assert len(files) == 10
    same, different, odd = filecmp.cmpfiles(one, tmp_path / "2", files, shallow=False)
    assert len(same) == 10 and not different and not odd
    image = nib.load(one / "BraTS20_Training_001" / "BraTS20_Training_001_flair.nii.gz")
    assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
    assert image.get_data_dtype() == np.int16
    assert image.header.get_zooms() == (12, 12, 12)


def test_bad_options_are_refused(tmp_path, capsys):
    for options in (["--spacing", "0"], ["--subjects", "0"]):
        with pytest.raises(SystemExit) as stop:
            phantom.main([str(tmp_path / "x"), *options])
        assert stop.value.code == 2
    assert phantom.main([str(tmp_path / "x"), "--subjects", "1", "--spacing", "12"]) == 0
    assert phantom.main([str(tmp_path / "x"), "--subjects", "1", "--spacing", "10"]) == 2
    assert "other settings" in capsys.readouterr().err
