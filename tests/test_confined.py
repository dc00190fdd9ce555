"""Files hold numbers, never code; nothing goes over the network; nothing is written elsewhere."""

import ast
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from odereg_core.cohort import Cohort
from odereg_core.errors import InputError
from odereg_core.experiments.evaluate import read_results
from odereg_core.files import load_metadata, load_tensors, read_json
from odereg_core.profiles import load_profile
from odereg_core.seen import load_seen
from odereg_core.volume import Volume, read_labels
from odereg_core.weights import load_model

ROOT = Path(__file__).resolve().parent.parent
SOURCES = [
    *(ROOT / "odereg_core").rglob("*.py"),
    *(ROOT / "data_prep").rglob("*.py"),
    *(ROOT / "notebooks").glob("*.ipynb"),
]
RUN_CODE = {"eval", "exec", "compile", "__import__"}
UNPICKLE = {"torch.load", "np.load", "numpy.load", "joblib.load", "yaml.load", "pd.read_pickle"}
MODULES = {
    "pickle", "dill", "cloudpickle", "marshal", "shelve",
    "socket", "ssl", "http", "ftplib", "urllib", "requests", "httpx", "webbrowser",
}  # fmt: skip


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_unpickles_runs_text_or_knows_the_network(path):
    text = path.read_text()
    if path.suffix == ".ipynb":
        cells = [c for c in json.loads(text)["cells"] if c["cell_type"] == "code"]
        text = "\n".join("".join(cell["source"]) for cell in cells)
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Import):
            assert not {name.name.split(".")[0] for name in node.names} & MODULES
        elif isinstance(node, ast.ImportFrom):
            assert (node.module or "").split(".")[0] not in MODULES
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            assert called not in RUN_CODE | UNPICKLE and not called.startswith("torch.hub.")


class Bomb:
    """Unpickling it makes a file."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def bombs(mark):
    """Files that run code where they are unpickled, or read as YAML with tags."""
    saved, array = io.BytesIO(), io.BytesIO()
    torch.save({"x": Bomb(mark)}, saved)
    np.save(array, np.array([Bomb(mark)], dtype=object), allow_pickle=True)
    tag = f"!!python/object/apply:pathlib.Path.touch [!!python/object/apply:pathlib.Path [{mark}]]"
    return [pickle.dumps(Bomb(mark)), saved.getvalue(), array.getvalue(), tag.encode()]


def test_a_file_that_holds_code_is_refused_unrun(tmp_path, tiny_cohort):
    mark = tmp_path / "ran"
    shutil.copy(tiny_cohort.folder / "cohort.json", tmp_path)
    name = tiny_cohort.names("train")[0]
    readers = {
        "weights.safetensors": (load_model, load_tensors, load_metadata, load_seen),
        f"{name}.safetensors": (lambda path: Cohort(path.parent).load(name),),
        "scan.nii": (Volume.load, read_labels),
        "scan.nii.gz": (Volume.load, read_labels),
        "report.json": (read_json,),
        "pairs.csv": (read_results,),
        "profile.yaml": (load_profile,),
    }
    for bomb in bombs(mark):
        for file, reads in readers.items():
            (tmp_path / file).write_bytes(bomb)
            for read in reads:
                with pytest.raises(InputError):
                    read(tmp_path / file)
    assert not mark.exists()
    pickle.loads(bombs(mark)[0])
    assert mark.exists()


GUARD = """
import os, sys

log = os.open(os.environ["GUARD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

def hook(event, args):
    said = None
    if event == "open" and isinstance(args[0], (str, bytes)):
        if args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            said = args[0]
    elif event == "os.mkdir":
        said = args[0]
    elif event in ("os.rename", "os.link", "os.symlink"):
        said = args[1]
    elif event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "urllib.Request"):
        os.write(log, f"network: {event} {args[1:]}\\n".encode())
    if said is not None:
        os.write(log, (os.path.abspath(os.fsdecode(said)) + "\\n").encode())

sys.addaudithook(hook)
"""
"""Notes what a process and its children open to write, or send, before they do."""


@pytest.fixture
def guarded(tmp_path):
    """Run a command in an empty folder, with an empty home and temporary folder: what it wrote or
    sent outside `tmp_path`/out, and what lies in these folders afterwards."""
    for name in ("site", "home", "tmp", "here"):
        (tmp_path / name).mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(GUARD)
    out, temporary = tmp_path / "out", tmp_path / "tmp"

    def run(*command):
        environment = {
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{ROOT}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "HOME": str(tmp_path / "home"),
            "TMPDIR": str(temporary),
            "GUARD": str(tmp_path / "log"),
        }
        done = subprocess.run(
            [sys.executable, *map(str, command)],
            cwd=tmp_path / "here", env=environment, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        noted = set((tmp_path / "log").read_text().splitlines())
        assert any(line.startswith(str(out)) for line in noted)
        # A temporary file is nobody's business once it is gone; torch makes itself an empty folder.
        inside = (str(out), str(temporary) + os.sep, "/dev/")
        left = [p for name in ("home", "tmp", "here") for p in (tmp_path / name).rglob("*")]
        left = [p for p in left if not p.name.startswith("torchinductor")]
        return [line for line in noted if not line.startswith(inside)], left

    return run


def test_registering_writes_its_folder_alone(guarded, tiny_cohort, tmp_path):
    moving, fixed, labels = (
        next((tiny_cohort.folder.parent / "raw").glob(f"*/*_{kind}.nii.gz"))
        for kind in ("t1", "t2", "seg")
    )
    (tmp_path / "pairs.csv").write_text(f"moving,fixed\n{moving},{fixed}\n")
    out = tmp_path / "out"
    assert guarded(
        "-m", "odereg_core.cli", "register", moving, fixed, "--transform", "rigid+dense",
        "--labels", labels, "--refine", 1, "--out", out,
    ) == ([], [])  # fmt: skip
    batch = ("register-batch", tmp_path / "pairs.csv", "--out", out)
    assert guarded("-m", "odereg_core.cli", *batch) == ([], [])


def test_making_a_cohort_and_training_write_their_folders_alone(
    guarded, tiny_cohort, tiny_profile, tmp_path
):
    out, raw = tmp_path / "out", tiny_cohort.folder.parent / "raw"
    common = ("--profile", tiny_profile, "--jobs", 1)
    assert guarded("-m", "data_prep.brats", raw, out / "prepared", *common) == ([], [])
    train = ("train", "rigid", "--profile", tiny_profile, "--cohort", out / "prepared")
    assert guarded("-m", "odereg_core.cli", *train, "--out", out / "models") == ([], [])


def test_evaluating_writes_its_folder_alone(
    guarded, tiny_cohort, tiny_profile, untrained, tmp_path
):
    written, left = guarded(
        "-m", "odereg_core.cli", "evaluate", "--profile", tiny_profile, "--models", untrained,
        "--cohort", tiny_cohort.folder, "--methods", "none,ants_rigid,msodenet_r", "--pairs", 1,
        "--out", tmp_path / "out",
    )  # fmt: skip
    # MONAI, of the Hausdorff distance, loads matplotlib, which keeps a list of fonts in the home.
    caches = (str(tmp_path / "home" / ".cache"), str(tmp_path / "home" / ".config"))
    assert [path for path in (*written, *map(str, left)) if not path.startswith(caches)] == []


@pytest.mark.slow
def test_a_notebook_writes_its_run_alone(guarded, tiny_cohort, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(tiny_cohort.folder, out / "run" / "prepared")
    written, left = guarded(
        ROOT / "book" / "execute.py", ROOT / "notebooks" / "01_data.ipynb", out / "01_data.ipynb",
        "--profile", "smoke", "--run-dir", out / "run",
    )  # fmt: skip
    assert (written, left) == ([], [])
    assert (out / "01_data.ipynb").exists()
