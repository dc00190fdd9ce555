"""The prepared cohort's format: what is written comes back, what is damaged is refused."""

import json

import pytest
import torch

from odereg_core.cohort import (
    CONTRASTS,
    Cohort,
    Subject,
    contrast_pairs,
    subject_source,
    write_index,
    write_subject,
)
from odereg_core.errors import InputError
from odereg_core.grid import Grid

GRID = Grid((6, 5, 4), (1.0, 2.0, 3.0))
SPLIT = {"train": ["a"], "val": ["b"], "test": ["c"]}


def subject(name, mask=True):
    generator = torch.Generator().manual_seed(ord(name))
    images = torch.rand(4, *GRID.shape, generator=generator)
    images[:, 0] = 0
    images[1:, 1] = 0
    seg = torch.randint(0, 5, GRID.shape, generator=generator, dtype=torch.uint8)
    return Subject(name, images, seg if mask else None)


@pytest.fixture
def folder(tmp_path):
    for name in "abc":
        write_subject(tmp_path, subject(name, mask=name != "a"), source=f"of {name}")
    write_index(tmp_path, GRID, CONTRASTS, SPLIT, {"seed": 3})
    return tmp_path


def test_twelve_ordered_pairs_of_four_contrasts():
    pairs = contrast_pairs()
    assert len(pairs) == len(set(pairs)) == 12
    assert set(pairs) == {(a, b) for a in CONTRASTS for b in CONTRASTS} - {
        (a, a) for a in CONTRASTS
    }
    assert contrast_pairs(("t1", "t2")) == [("t1", "t2"), ("t2", "t1")]


def test_what_is_written_comes_back(folder):
    cohort = Cohort(folder)
    assert cohort.grid == GRID
    assert cohort.contrasts == CONTRASTS
    assert cohort.settings == {"seed": 3}
    assert {split: cohort.names(split) for split in SPLIT} == SPLIT
    for name in "abc":
        before, after = subject(name), cohort.load(name)
        assert after.name == name
        assert after.images.dtype == torch.float32
        # float16: 11 significant bits
        assert torch.allclose(after.images, before.images, rtol=2**-11, atol=1e-7)
        assert (after.seg is None) == (name == "a")
        assert name == "a" or torch.equal(after.seg, before.seg)


def test_the_brain_is_where_any_contrast_is(folder):
    mask = Cohort(folder).load("b").mask
    assert mask.dtype == torch.bool
    assert not mask[0].any()
    assert mask[1].float().mean() > 0.9  # the first contrast alone
    assert mask[2:].all()


def test_a_subjects_source(folder):
    assert subject_source(folder, "b") == "of b"
    assert subject_source(folder, "nobody") is None
    path = folder / "b.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    assert subject_source(folder, "b") is None


def refused(fault, call):
    with pytest.raises(InputError, match=fault) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_cohort_is_refused(tmp_path):
    refused("no prepared cohort", lambda: Cohort(tmp_path))
    refused("no prepared cohort", lambda: Cohort(tmp_path / "missing"))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"format": 99}, "format 99"),
        ({"shape": [1, 2]}, "not a cohort's index"),
        ({"split": {"train": []}}, "not a cohort's index"),
        ({"contrasts": 3}, "not a cohort's index"),
    ],
)
def test_a_damaged_index_is_refused(folder, change, fault):
    path = folder / "cohort.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    refused(fault, lambda: Cohort(folder))
    path.write_text("{")
    refused("JSON", lambda: Cohort(folder))


def test_damaged_subjects_are_refused(folder):
    cohort = Cohort(folder)
    refused(r"nobody.safetensors: there is no such file", lambda: cohort.load("nobody"))
    path = folder / "a.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    refused("a.safetensors: not a whole", lambda: cohort.load("a"))
    write_subject(folder, Subject("b", torch.zeros(4, 6, 5, 5), None))
    refused("b.safetensors: not 4 images on", lambda: cohort.load("b"))
    write_subject(folder, Subject("c", torch.zeros(4, *GRID.shape), torch.zeros(4, 4, 4)))
    refused("c.safetensors: its mask", lambda: cohort.load("c"))
