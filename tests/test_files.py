"""Files are whole or absent; what is missing or damaged is told in one sentence."""

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from odereg_core import files
from odereg_core.errors import InputError
from odereg_core.files import (
    atomic,
    atomic_files,
    load_metadata,
    load_tensors,
    provenance,
    read_json,
    save_tensors,
    write_json,
)


def refused(path, fault, call):
    with pytest.raises(InputError, match=fault) as caught:
        call()
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message


def test_atomic_writes_beside_with_the_suffix_and_makes_the_folder(tmp_path):
    path = tmp_path / "new" / "image.nii.gz"
    with atomic(path) as temporary:
        assert temporary.parent == path.parent
        assert temporary.name.endswith(".nii.gz")
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_atomic_leaves_the_old_file_and_no_trace_of_a_failure(tmp_path, error):
    path = tmp_path / "table.csv"
    path.write_text("old")

    def write():
        with atomic(path) as temporary:
            temporary.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), SafetensorError("full")])
def test_a_full_disk_is_the_inputs_fault(tmp_path, error):
    def write():
        with atomic(tmp_path / "a.bin"):
            raise error

    refused(tmp_path / "a.bin", "cannot be written", write)


def test_a_folder_that_cannot_be_is_the_inputs_fault(tmp_path):
    (tmp_path / "file").touch()
    path = tmp_path / "file" / "a.json"
    refused(path, "cannot be written", lambda: write_json(path, {}))
    refused(tmp_path, "cannot be written", lambda: write_json(tmp_path, {}))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values))
@settings(max_examples=30, deadline=None)
def test_json_comes_back(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("json") / "a.json"
    write_json(path, content)
    assert read_json(path) == content == json.loads(path.read_text(encoding="utf-8"))


def test_json_that_is_none_is_refused(tmp_path):
    cases = {
        "cut.json": b'{"a": 1',
        "list.json": b"[1]",
        "bytes.json": b"\xff\xfe\x00",
        "no.json": b"",
    }
    for name, content in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        refused(path, "JSON", lambda path=path: read_json(path))
    missing = tmp_path / "missing.json"
    refused(missing, "no such file", lambda: read_json(missing))


def test_tensors_are_plain_safetensors_both_ways(tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2, dtype=torch.float16)}
    save_tensors(path, tensors, {"made_by": "test"})
    theirs = load_file(path)
    assert all(np.array_equal(theirs[name], tensors[name].numpy()) for name in tensors)
    assert load_metadata(path) == {"made_by": "test"}
    save_file({"c": np.eye(3, dtype=np.float32)}, path)
    ours, metadata = load_tensors(path)
    assert torch.equal(ours["c"], torch.eye(3))
    assert metadata == {}


def test_the_same_tensors_give_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_tensors(tmp_path / name, {"x": torch.ones(5), "y": torch.zeros(3)}, {"k": "v"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@pytest.mark.parametrize("load", [load_tensors, load_metadata])
def test_damaged_tensors_are_refused(tmp_path, load):
    path = tmp_path / "a.safetensors"
    refused(path, "no such file", lambda: load(path))
    save_tensors(path, {"x": torch.ones(50)})
    whole = path.read_bytes()
    for content in (b"", b"hello", whole[:-1], whole[:20], b"\xff" * 64):
        path.write_bytes(content)
        refused(path, "not a whole safetensors", lambda: load(path))


def test_provenance_repeats_and_is_json():
    first = provenance()
    assert first == provenance() == json.loads(json.dumps(first))
    assert first["libraries"]["torch"] == torch.__version__
    assert first["libraries"]["numpy"] == np.__version__
    assert first["odereg_core"]
    assert first["device"]


@pytest.fixture
def asked_anew():
    files.commit.cache_clear()
    yield
    files.commit.cache_clear()


def test_the_commit_is_that_of_the_first_time_it_was_asked_for(monkeypatch, asked_anew):
    first = files.commit()
    monkeypatch.setattr(files, "__file__", "/nowhere/package/files.py")
    assert provenance()["commit"] == first


def test_provenance_does_without_git(monkeypatch, asked_anew):
    def no_git(*_, **__):
        raise FileNotFoundError("git")

    monkeypatch.setattr(subprocess, "run", no_git)
    assert provenance()["commit"] is None
    monkeypatch.undo()
    files.commit.cache_clear()
    monkeypatch.setattr(files, "__file__", "/nowhere/package/files.py")
    assert provenance()["commit"] is None


def test_others_may_read_weights_as_the_umask_says(tmp_path):
    before = os.umask(0o022)
    try:
        save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(2)})
    finally:
        os.umask(before)
    assert (tmp_path / "w.safetensors").stat().st_mode & 0o777 == 0o644


def test_of_several_files_the_last_marks_a_whole_writing_and_stale_ones_go(tmp_path):
    def write(*names):
        with atomic_files(tmp_path / "out", "z.json", [tmp_path / "out" / "ab.mat"]) as folder:
            for name in names:
                (folder / name).write_text(name)

    write("z.json", "ab.mat", "b.nii")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["ab.mat", "b.nii", "z.json"]
    write("b.nii", "z.json")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["b.nii", "z.json"]


def test_the_last_file_comes_last_however_they_were_written(tmp_path, monkeypatch):
    moved, replace = [], os.replace
    monkeypatch.setattr(os, "replace", lambda a, b: (moved.append(Path(b).name), replace(a, b)))
    with atomic_files(tmp_path, "a.json") as folder:
        for name in ("a.json", "b", "c"):
            (folder / name).write_text(name)
    assert set(moved[:2]) == {"b", "c"} and moved[2:] == ["a.json"]
