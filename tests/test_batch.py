"""Batch registration: a bad pair stops nothing, done work is kept, changed work is redone."""

import os
import signal

import nibabel as nib
import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from odereg_core import batch, cli
from odereg_core.batch import read_pairs, run
from odereg_core.errors import InputError
from odereg_core.files import read_json


def ball(path, shift=0.0, shape=(24, 26, 20)):
    affine = np.diag([6.0, 6.0, 7.0, 1.0])
    affine[0, 3] = shift
    index = np.indices(shape) - (np.array(shape) / 2).reshape(3, 1, 1, 1)
    data = np.where((index**2).sum(0) < 64, 300 + 40 * np.sin(index[0]) + 9 * index[1], 0)
    nib.save(nib.Nifti1Image(data.astype(np.float32), affine), path)


@pytest.fixture
def table(tmp_path):
    for name in ("a", "b", "c"):
        ball(tmp_path / f"{name}.nii.gz", shift=ord(name) % 7)
    (tmp_path / "cut.nii.gz").write_bytes((tmp_path / "a.nii.gz").read_bytes()[:900])
    path = tmp_path / "pairs.csv"
    path.write_text(
        "name,moving,fixed,labels\n"
        "first,a.nii.gz,b.nii.gz,\n"
        "broken,cut.nii.gz,b.nii.gz,\n"
        "gone,nowhere.nii.gz,b.nii.gz,\n"
        ",b.nii.gz,c.nii.gz,\n"
    )
    return path


@pytest.mark.parametrize("jobs", [1, 2])
def test_one_bad_pair_does_not_stop_the_rest(tmp_path, table, untrained, jobs):
    out, weights = tmp_path / "out", [untrained / "rigid.safetensors"]
    options = ["--out", out, "--jobs", jobs, "--weights", weights[0], "--device", "cpu"]
    answer = CliRunner().invoke(cli.app, list(map(str, ["register-batch", table, *options])))
    assert answer.exit_code == 1 and "2 of 4 pairs registered" in answer.output
    summary = pd.read_csv(out / "summary.csv", dtype={"name": str}).set_index("name")
    assert list(summary.index) == ["first", "broken", "gone", "0004"]
    assert list(summary.status) == ["registered", "failed", "failed", "registered"]
    assert "cut.nii.gz" in summary.reason["broken"] and "nowhere" in summary.reason["gone"]
    assert {p.name for p in out.iterdir()} == {"summary.csv", "first", "0004"}
    for name in ("first", "0004"):
        assert (out / name / "warped.nii.gz").exists()
        found = read_json(out / name / "report.json")["displacement_mm"]["mean"]
        assert summary.displacement_mm[name] == found


def test_done_pairs_are_kept_and_changed_ones_redone(tmp_path, table, untrained, monkeypatch):
    out, weights = tmp_path / "out", [untrained / "rigid.safetensors"]
    pairs = [pair for pair in read_pairs(table) if pair.name in ("first", "0004")]
    first = run(pairs, out, weights=weights, device="cpu")
    calls = []
    register = batch.register

    def counted(moving, fixed, *rest, **options):
        calls.append(moving.name)
        return register(moving, fixed, *rest, **options)

    monkeypatch.setattr(batch, "register", counted)
    again = run(pairs, out, weights=weights, device="cpu")
    assert calls == []
    pd.testing.assert_frame_equal(first, again)
    ball(tmp_path / "a.nii.gz", shift=99)
    (out / "0004" / "report.json").unlink()  # as one killed before it was whole leaves it
    run(pairs, out, weights=weights, device="cpu")
    assert calls == ["a.nii.gz", "b.nii.gz"]
    calls.clear()
    other = [untrained / "bspline.safetensors"]
    run(pairs[:1], out, "bspline", weights=other, device="cpu")
    assert calls == ["a.nii.gz"]


def test_a_process_ended_from_outside_stops_the_batch_in_one_sentence(tmp_path, table, untrained):
    weights = [untrained / "rigid.safetensors"]
    pairs = [pair for pair in read_pairs(table) if pair.name in ("first", "0004")]
    doomed = Killer("doomed", pairs[0].moving, pairs[0].fixed)
    with pytest.raises(InputError, match=r"ended from outside after . of 3 pairs.*fewer jobs"):
        run([*pairs, doomed], tmp_path / "out", weights=weights, device="cpu", jobs=2)
    table = run(pairs, tmp_path / "out", weights=weights, device="cpu")
    assert list(table.status) == ["registered"] * 2


class Killer(batch.BatchPair):
    """A pair that takes more memory than there is: whoever registers it is killed."""

    @property
    def files(self):
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_transform_that_is_none_is_refused_before_any_pair(tmp_path, table):
    for transform in ("affine", "rigid+rigid", "bspline+rigid", "encoder"):
        with pytest.raises(InputError, match=r"no transform '.*'; there are: rigid, bspline"):
            run(read_pairs(table), tmp_path / "out", transform, device="cpu")
    assert not (tmp_path / "out").exists()


def test_a_pair_that_fails_now_does_not_keep_an_old_result(tmp_path, table, untrained):
    out, weights = tmp_path / "out", [untrained / "rigid.safetensors"]
    pairs = read_pairs(table)[:1]
    run(pairs, out, weights=weights, device="cpu")
    (tmp_path / "a.nii.gz").write_bytes(b"no scan")
    assert list(run(pairs, out, weights=weights, device="cpu").status) == ["failed"]
    assert not list((out / "first").iterdir())


def test_a_pair_whose_results_are_gone_is_registered_again(tmp_path, table, untrained):
    out, weights = tmp_path / "out", [untrained / "rigid.safetensors"]
    pairs = read_pairs(table)[:1]
    run(pairs, out, weights=weights, device="cpu")
    before = {path.name for path in (out / "first").iterdir()}
    (out / "first" / "warped.nii.gz").unlink()
    run(pairs, out, weights=weights, device="cpu")
    assert {path.name for path in (out / "first").iterdir()} == before


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b\n1,2\n", "lacks the column 'moving'"),
        ("moving,fixed,mask\n1,2,3\n", "unknown column 'mask'"),
        ("moving,fixed\n", "holds no pairs"),
        ("", "lacks the column"),
        ("moving,fixed\na.nii\n", "line 2: a moving and a fixed file"),
        ("moving,fixed\na.nii,b.nii,c.nii\n", "line 2: a moving and a fixed file"),
        ("moving,fixed,name\na,b,../x\n", "'../x' is no name for a folder"),
        ("moving,fixed,name\na,b,summary.csv\n", "'summary.csv' is no name for a folder"),
        ("moving,fixed,name\na,b,x\nc,d,x\n", "line 3: a second pair called 'x'"),
        ("moving, fixed\n\n\na,b\nc\n", "line 5: a moving and a fixed file"),
        ("moving,fixed,moving\na,b,c\n", "the column 'moving' twice"),
    ],
)
def test_a_table_that_is_none_is_refused(tmp_path, text, words):
    path = tmp_path / "pairs.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"pairs\.csv") as error:
        read_pairs(path)
    assert words in str(error.value) and "\n" not in str(error.value)


def test_masks_and_labels_come_from_the_table(tmp_path, table):
    table.write_text(
        "\ufeffmoving,fixed,moving_mask,fixed_mask,labels\na,b,,f,one.nii;two.nii\n", "utf-8"
    )
    (pair,) = read_pairs(table)
    assert pair.name == "0001" and pair.moving_mask is None and pair.fixed_mask == tmp_path / "f"
    assert pair.labels == (tmp_path / "one.nii", tmp_path / "two.nii")
