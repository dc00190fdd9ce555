"""Whatever comes in: one clear sentence, exit code 2, nothing half-written, never a traceback."""

import gzip
import json
import resource
from contextlib import contextmanager

import nibabel as nib
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from data_prep import brats, phantom
from odereg_core import cli
from odereg_core.cohort import CONTRASTS
from odereg_core.errors import InputError
from odereg_core.files import load_tensors, save_tensors
from odereg_core.registration import register


def head(shape=(24, 26, 20), spacing=7.0):
    index = np.indices(shape) - (np.array(shape) / 2).reshape(3, 1, 1, 1)
    inside = (index**2).sum(0) < 64
    return np.where(inside, 300 + 40 * np.sin(index[0]) + 9 * index[1], 0).astype(np.float32)


def save(path, data, affine=None, dtype=None):
    affine = np.diag([7.0, 7.0, 7.0, 1.0]) if affine is None else affine
    image = nib.Nifti1Image(data, None, dtype=dtype)
    image.set_sform(affine, 1)
    nib.save(image, path)
    return path


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    return save(tmp_path_factory.mktemp("scan") / "scan.nii.gz", head())


def outcome(monkeypatch, capfd, main, *arguments):
    """Exit code and what was said, of a command line as a shell runs it."""
    monkeypatch.setattr("sys.argv", ["odereg", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        raise SystemExit(main())
    return stop.value.code, capfd.readouterr().err


def spoilt(value):
    data = head()
    data[12, 13, 10] = value
    return data


RGB = np.zeros((9, 9, 9), [("R", "u1"), ("G", "u1"), ("B", "u1")])
SHEET = np.diag([7.0, 7.0, 0.0, 1.0])
SMALL = np.diag([0.007, 0.007, 0.007, 1.0])  # metres
PLAIN = nib.Nifti1Image(head(), np.eye(4)).to_bytes()
SCANS = {
    "missing": (None, "there is no such file"),
    "truncated gzip": (lambda p: gzip.compress(PLAIN)[:-900], "cannot be read"),
    "no NIfTI": (lambda p: b"\x89PNG\r\n" * 99, "not a readable NIfTI file"),
    "empty file": (lambda p: b"", "not a readable NIfTI file"),
    "no voxels": (lambda p: save(p, np.zeros((0, 5, 5), np.float32)), "too small to register"),
    "NaN": (lambda p: save(p, spoilt(np.nan)), "1 voxels are not finite"),
    "infinite": (lambda p: save(p, spoilt(-np.inf)), "1 voxels are not finite"),
    "huge values": (lambda p: save(p, spoilt(3e38)), "no MR signal"),
    "constant": (lambda p: save(p, np.full((9, 9, 9), 5, np.int16)), "every voxel is 5"),
    "2-D": (lambda p: save(p, np.ones((9, 9), np.float32)), "a 3-D volume is needed"),
    "4-D": (lambda p: save(p, np.ones((9, 9, 9, 3), np.float32)), "a 3-D volume is needed"),
    "RGB": (lambda p: save(p, RGB), "a scalar volume is needed"),
    "complex": (lambda p: save(p, np.ones((9, 9, 9), np.complex64)), "a scalar volume is needed"),
    "singular affine": (lambda p: save(p, head(), SHEET), "affine is singular"),
    "a folder": (lambda p: p.mkdir(), "is a folder"),
    "sizes in metres": (lambda p: save(p, head(), SMALL), "are voxel sizes in mm?"),
}  # fmt: skip
"""What a scan may be, and words of the sentence that says so."""


@pytest.mark.parametrize("role", ["moving", "fixed"])
@pytest.mark.parametrize("name", SCANS)
def test_bad_scans(tmp_path, monkeypatch, capfd, scan, untrained, name, role):
    make, words = SCANS[name]
    path = tmp_path / "bad.nii.gz"
    if make and isinstance(content := make(path), bytes):
        path.write_bytes(content)
    files = [path, scan] if role == "moving" else [scan, path]
    weights = untrained / "rigid.safetensors"
    code, said = outcome(
        monkeypatch, capfd, cli.main,
        "register", *files, "--weights", weights, "--out", tmp_path / "out", "--device", "cpu",
    )  # fmt: skip
    assert code == 2
    assert said.startswith("error: ") and said.count("\n") == 1
    assert "bad.nii.gz" in said and words in said
    assert not (tmp_path / "out").exists()


def respelled(path, **changes):
    """The weights with other words in their description."""

    def make(target):
        tensors, metadata = load_tensors(path)
        spec = json.loads(metadata["model"]) | changes
        save_tensors(target, tensors, {"model": json.dumps(spec)})

    return make


def described(text):
    """Tensors of no model, and what they say they are."""
    return lambda path: save_file({"a": torch.ones(3)}, path, text and {"model": text})


WEIGHTS = {
    "missing": (lambda good: lambda p: None, "there is no such file"),
    "truncated": (lambda good: lambda p: p.write_bytes(good.read_bytes()[:-99]), "not a whole"),
    "no safetensors": (lambda good: lambda p: p.write_bytes(b"PK\x03\x04" * 50), "not a whole"),
    "pickle": (lambda good: lambda p: torch.save({"a": torch.ones(3)}, p), "not a whole"),
    "another version": (lambda good: respelled(good, format="odereg-msodenet-1"),
                        "weights of format 'odereg-msodenet-1'"),
    "other sizes": (lambda good: respelled(good, network={"width": 3}), "not the weights of"),
    "unknown transform": (lambda good: respelled(good, transform="affine"), "not the weights of"),
    "no description": (lambda good: described(None), "not the weights of"),
    "a list for one": (lambda good: described("[1]"), "not the weights of"),
    "text for one": (lambda good: described('"x"'), "not the weights of"),
}  # fmt: skip


@pytest.mark.parametrize("name", WEIGHTS)
def test_bad_weights(tmp_path, monkeypatch, capfd, scan, untrained, name):
    make, words = WEIGHTS[name]
    path = tmp_path / "bad.safetensors"
    make(untrained / "rigid.safetensors")(path)
    for command in (["register", scan, scan, "--out", tmp_path / "out", "--weights"], ["info"]):
        code, said = outcome(monkeypatch, capfd, cli.main, *command, path)
        assert code == 2
        assert said.startswith("error: ") and said.count("\n") == 1
        assert "bad.safetensors" in said and words in said
    assert not (tmp_path / "out").exists()


def test_weights_of_another_kind_or_grid(tmp_path, monkeypatch, capfd, scan, untrained):
    out = ["--out", tmp_path / "out"]
    rigid, dense = untrained / "rigid.safetensors", untrained / "dense.safetensors"
    tensors, metadata = load_tensors(rigid)
    spec = json.loads(metadata["model"]) | {"spacing": [5.0, 5.0, 5.0]}
    other = tmp_path / "other.safetensors"
    save_tensors(other, tensors, {"model": json.dumps(spec)})
    for options, words in (
        (["--weights", dense], "a model of 'dense', not of 'rigid'"),
        (["--transform", "rigid+dense", "--weights", rigid], "needs 2 weights files, got 1"),
        (
            ["--transform", "rigid+dense", "--weights", other, "--weights", dense],
            "must share one grid",
        ),
        (["--transform", "affine"], "no transform 'affine'"),
        (["--weights", rigid, "--device", "abacus"], "no device 'abacus'"),
        (["--weights", rigid, "--device", "meta"], "no device 'meta'"),
    ):
        code, said = outcome(monkeypatch, capfd, cli.main, "register", scan, scan, *out, *options)
        assert code == 2 and words in said and said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@contextmanager
def full_disk(free):
    """No file may grow past `free` bytes, as on a disk that is full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("free", [1000, 15_000])
def test_a_full_disk_leaves_the_old_results(tmp_path, monkeypatch, capfd, scan, untrained, free):
    """With 15 kB the warped scan still fits, the labels do not."""
    folder = tmp_path / "work"
    noise = np.random.default_rng(0).integers(0, 30_000, head().shape).astype(np.int16)
    labels = save(tmp_path / "noise.nii.gz", noise)
    command = ["register", scan, scan, "--weights", untrained / "rigid.safetensors"]
    command += ["--device", "cpu", "--labels", labels, "--out", folder / "out"]
    folder.mkdir()
    for old in (False, True):
        before = {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
        with full_disk(free):
            code, said = outcome(monkeypatch, capfd, cli.main, *command)
        assert code == 2
        assert said.startswith("error: ") and "cannot be written" in said and "out" in said
        assert said.count("\n") == 1 and "partial" not in said
        assert {p.name: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before
        if not old:
            assert not list(folder.iterdir())
            assert outcome(monkeypatch, capfd, cli.main, *command)[0] in (0, None)


def test_an_output_that_cannot_be(tmp_path, monkeypatch, capfd, scan, untrained):
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", tmp_path / "file" / "below"):
        code, said = outcome(
            monkeypatch, capfd, cli.main,
            "register", scan, scan, "--weights", untrained / "rigid.safetensors", "--out", out,
        )  # fmt: skip
        assert code == 2 and "cannot be written" in said and said.count("\n") == 1
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_training_and_evaluation_refuse_in_a_sentence(
    tmp_path, monkeypatch, capfd, tiny_cohort, tiny_profile, untrained
):
    cohort, out = ["--cohort", tiny_cohort.folder], ["--out", tmp_path / "out"]
    bad = tmp_path / "bad.yaml"
    bad.write_text("extends: smoke\ngrid: {shape: [40, 40, big], spacing: 6.0}\n")
    key = tmp_path / "key.yaml"
    key.write_text("extends: smoke\nspeed: 3\n")

    def rigid(name, text):
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"extends: smoke\nmodels: {{rigid: {{similarity: none, {text}}}}}\n")
        return ["train", "rigid", *cohort, *out, "--profile", path]

    network = tmp_path / "network.yaml"
    network.write_text("extends: smoke\nencoders: {encoder: {network: {slicez: 5}}}\n")
    yaml = tmp_path / "yaml.yaml"
    yaml.write_text("extends: smoke\na: [1,\n")
    nobody = tmp_path / "nobody.yaml"
    nobody.write_text("extends:\n")
    models = ["--models", untrained]
    broken = tmp_path / "cohort"
    broken.mkdir()
    (broken / "cohort.json").write_text('{"format": 1')
    for words, command in (
        ("key 'grid.shape.2'", ["train", "rigid", *cohort, *out, "--profile", bad]),
        ("key 'speed'", ["train", "rigid", *cohort, *out, "--profile", key]),
        ("no such profile", ["train", "rigid", *cohort, *out, "--profile", "grand"]),
        ("yaml.yaml: not a readable YAML file (line 3: ",
         ["train", "rigid", *cohort, *out, "--profile", yaml]),
        ("key 'extends'", ["train", "rigid", *cohort, *out, "--profile", nobody]),
        ("unexpected keyword argument 'sen'", rigid("sen", "network: {sen: 40}")),
        ("no model 'rigid'", rigid("width", "network: {width: 0}")),
        ("key 'models.rigid.stages'", rigid("stages", "stages: []")),
        ("key 'models.rigid.seed'", rigid("seed", "seed: 99999999999999999999")),
        ("unexpected keyword argument 'slicez'",
         ["train", "encoder", *cohort, *out, "--profile", network]),
        ("nowhere.safetensors: there is no such file",
         [*rigid("init", "seed: 1"), "--init", tmp_path / "nowhere.safetensors"]),
        ("no model 'affine'", ["train", "affine", *cohort, *out, "--profile", "smoke"]),
        ("no prepared cohort", ["train", "rigid", "--cohort", tmp_path, *out]),
        ("not a readable JSON", ["train", "rigid", "--cohort", broken, *out]),
        ("encoder.safetensors: there is no such file",
         ["train", "rigid", *cohort, *out, "--profile", "smoke"]),
        ("on another grid than the profile",
         ["train", "rigid", *cohort, *out, "--profile", "demo"]),
        ("no task 'deform'", ["evaluate", *cohort, *models, *out, "--methods", "none",
                              "--task", "deform"]),
        ("no method 'magic'", ["evaluate", *cohort, *models, *out, "--methods", "magic"]),
        ("no such file", ["evaluate", *cohort, "--models", tmp_path, *out,
                          "--profile", "smoke", "--methods", "msodenet_r"]),
        ("on another grid than the profile",
         ["evaluate", *cohort, *models, *out, "--methods", "msodenet_r"]),
        ("holds no results", ["merge", tmp_path, "--out", tmp_path / "all.csv"]),
        ("call the table .csv", ["search", *cohort, *models, "--out", tmp_path / "found.json"]),
    ):  # fmt: skip
        code, said = outcome(monkeypatch, capfd, cli.main, *command)
        assert code == 2, words
        assert words in said and said.startswith("error: ") and said.count("\n") == 1
    assert not list(tmp_path.rglob("*.csv")) and not list(tmp_path.rglob("*.safetensors"))


def test_a_brats_folder_without_a_contrast(tmp_path, monkeypatch, capfd):
    root = tmp_path / "in"
    for number in range(4):
        name = f"BraTS20_Training_{number:03d}"
        (root / name).mkdir(parents=True)
        for contrast in CONTRASTS:
            if (number, contrast) != (2, "flair"):
                save(root / name / f"{name}_{contrast}.nii.gz", head())
    code, said = outcome(
        monkeypatch, capfd, lambda: brats.main([str(root), str(tmp_path / "out"), "--jobs", "1"])
    )
    last = said.splitlines()[-1]
    assert code == 2 and "the contrast flair is missing" in last and "_002_flair.nii.gz" in last
    assert not (tmp_path / "out").exists()
    code, said = outcome(
        monkeypatch, capfd, lambda: phantom.main([str(root / name / f"{name}_t1.nii.gz")])
    )
    assert code == 2 and said.count("\n") == 1
    whole = "BraTS20_Training_002"
    save(root / whole / f"{whole}_flair.nii.gz", head())
    (file := tmp_path / "file").touch()
    arguments = [str(root), str(file), "--profile", "smoke", "--jobs", "1"]
    code, said = outcome(monkeypatch, capfd, lambda: brats.main(arguments))
    assert code == 2 and f"error: {file}" in said and "Traceback" not in said


# Fuzz: headers and bytes

FIELDS = st.sampled_from(
    [
        ("dim", st.lists(st.integers(-2, 40), min_size=8, max_size=8)),
        ("pixdim", st.lists(st.floats(width=32), min_size=8, max_size=8)),
        ("datatype", st.sampled_from([0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 768, 1024, 2304])),
        ("bitpix", st.integers(-8, 128)),
        ("vox_offset", st.floats(width=32)),
        ("scl_slope", st.floats(width=32)),
        ("scl_inter", st.floats(width=32)),
        ("sform_code", st.integers(-1, 5)),
        ("qform_code", st.integers(-1, 5)),
        ("srow_x", st.lists(st.floats(width=32), min_size=4, max_size=4)),
        ("srow_z", st.lists(st.floats(-1e7, 1e7, width=32), min_size=4, max_size=4)),
        ("quatern_b", st.floats(width=32)),
        ("magic", st.binary(min_size=4, max_size=4)),
        ("xyzt_units", st.integers(0, 255)),
        ("sizeof_hdr", st.integers(0, 1000)),
    ]
).flatmap(lambda field: st.tuples(st.just(field[0]), field[1]))


@given(
    st.lists(FIELDS, max_size=3),
    st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=3),
    st.floats(0, 1) | st.just(1.0),
    st.booleans(),
)
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@pytest.mark.filterwarnings("ignore")
def test_no_header_and_no_bytes_make_a_traceback(
    tmp_path_factory, scan, untrained, fields, flips, share, packed
):
    """Any header, any damage: registered with finite results, or refused in one sentence."""
    folder = tmp_path_factory.mktemp("fuzz")
    image = nib.load(scan)
    content = bytearray(image.to_bytes())
    header = np.ndarray((), nib.Nifti1Header.template_dtype, content)
    for name, value in fields:
        with np.errstate(all="ignore"):
            header[name] = value
    path = folder / ("a.nii.gz" if packed else "a.nii")
    content = bytearray(gzip.compress(content)) if packed else content
    for place, value in flips:
        content[int(place * (len(content) - 1))] = value
    path.write_bytes(content[: int(share * len(content))])
    try:
        result = register(path, scan, weights=untrained / "rigid.safetensors", device="cpu")
        result.save(folder / "out")
    except InputError as error:
        assert str(path) in str(error) and "\n" not in str(error)  # noqa: PT017
        assert not (folder / "out").exists()
    else:
        assert np.isfinite(result.displacement).all()
        assert np.isfinite(result.warped.data).all()
