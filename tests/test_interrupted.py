"""kill -9 at random moments: what was whole stays, nothing half reads as whole, and the resumed
work ends in the bytes of an uninterrupted one."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import pandas as pd
import pytest

from odereg_core.files import load_tensors
from odereg_core.volume import Volume

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ("odereg_core", "data_prep", "notebooks", "book", "workflow")
PROGRAMS = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
ENVIRONMENT = os.environ | {"PATH": PROGRAMS, "OMP_NUM_THREADS": "1"}


def start(command, cwd):
    """A command of the sources in `cwd`, under way."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, env=ENVIRONMENT | {"PYTHONPATH": str(cwd)},
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip


def kill(process):
    """End it and all its children, as a power cut would."""
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def run(command, cwd, kill_after=None):
    """Run a command of the sources in `cwd` to its end, or kill it and all its children; whether
    it ended."""
    process = start(command, cwd)
    try:
        _, said = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        kill(process)
        return False
    assert process.returncode == 0, said.decode()
    return True


def whole(path):
    """Whether a file reads as what its name says; temporary names are nobody's."""
    if path.name.startswith("."):
        return
    if path.name.endswith(".nii.gz"):
        Volume.load(path) if "displacement" not in path.name else nib.load(path).get_fdata()
    if path.suffix == ".safetensors":
        load_tensors(path)


def survive(command, cwd, folder, kills, seconds, rng):
    """Kill the command `kills` times while it runs, at random moments of the `seconds` it takes,
    each time going on from what is there, and anew where it had ended; then let it end."""
    while kills:
        started = time.monotonic()
        if run(command, cwd, rng.uniform(0.2, 1.0) * seconds):
            seconds = min(seconds, time.monotonic() - started)
            shutil.rmtree(folder)
            continue
        kills -= 1
        for path in folder.rglob("*"):
            if path.is_file() and not any(p.startswith(".") for p in path.parts):
                whole(path)
    run(command, cwd)


def kill_once_there_is(something, command, cwd, folder):
    """Kill a command and all its children as soon as `something` is there, and return that."""
    process = start(command, cwd)
    while not (found := something(folder)):
        assert process.poll() is None, process.stderr.read().decode()
        time.sleep(0.005)
    assert process.poll() is None, "it ended before it could be killed"
    kill(process)
    return found


def without_time(path):
    """A file's bytes, but for what a clock measured."""
    if path.suffix == ".csv":
        return pd.read_csv(path, dtype=str).drop(columns="seconds").to_csv()
    if path.suffix == ".json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k != "seconds"}
    return path.read_bytes()


def contents(folder, *patterns):
    return {
        str(path.relative_to(folder)): without_time(path)
        for pattern in patterns
        for path in sorted(folder.rglob(pattern))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


TARGETS = [f"runs/tiny/results/rigid/{method}.csv" for method in ("msodenet_r", "ants_rigid")]
"""Cohort, preparation, encoder, rigid model and two rows of Table 1, from nothing."""


def stage(name, out, cohort, tiny_profile, untrained):
    """A stage's command, the folder it writes below `out`, and what must be equal in the end."""
    raw, prepared, pairs = cohort.folder.parent / "raw", cohort.folder, out.parent / "pairs.csv"
    common = ["--profile", tiny_profile, "--cohort", prepared, "--device", "cpu"]
    odereg = ["-m", "odereg_core.cli"]
    return {
        "cohort": (["-m", "data_prep.phantom", out, "--subjects", 4, "--spacing", 6, "--seed", 1,
                    "--jobs", 2], ("*.nii.gz", "*.json")),
        "heads": (["-m", "data_prep.heads", out, "--subjects", 2, "--spacing", 6, "--jobs", 2],
                  ("*.nii.gz", "*.json")),
        "preparation": (["-m", "data_prep.brats", raw, out, "--jobs", 2, "--profile", tiny_profile],
                        ("*.safetensors", "*.json")),
        "training": ([*odereg, "train", "rigid", *common, "--out", out],
                     ("rigid.safetensors", "*.json", "*.csv")),
        "encoder": ([*odereg, "train", "encoder", *common, "--out", out],
                    ("encoder.safetensors", "*.json", "*.csv")),
        "batch": ([*odereg, "register-batch", pairs, "--out", out, "--device", "cpu",
                   "--weights", untrained / "rigid.safetensors"],
                  ("warped.nii.gz", "displacement.nii.gz", "affine.mat")),
        "evaluation": ([*odereg, "evaluate", *common, "--models", untrained, "--out", out,
                        "--methods", "none,msodenet_r", "--pairs", 12], ("*.csv", "*.json")),
        "graph": (["workflow/alone.py", sys.executable, "-m", "snakemake", *TARGETS, "--nolock",
                   "--rerun-incomplete", "--cores", 2, "--config", f"profile={tiny_profile}"],
                  ("*.nii.gz", "*.safetensors", "*.csv", "*.json")),
        "book": (["book/assemble.py", "notebooks", out / "book"], ("*.html",)),
    }[name]  # fmt: skip


def copy_of_the_sources(cohort, tmp_path):
    """Put them, and a table of pairs for the batch, in `tmp_path`."""
    lines = ["moving,fixed"]
    for path in sorted((cohort.folder.parent / "raw").glob("*/*_t1.nii.gz")):
        lines.append(f"{path},{str(path).replace('_t1.', '_t2.')}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    # A copy of the sources has no commit, which someone may change while this runs.
    for folder in SOURCES:
        shutil.copytree(
            ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    shutil.copy(ROOT / "Snakefile", tmp_path)
    if (ROOT / "runs" / "vendor").exists():  # so that MathJax is not fetched again
        shutil.copytree(ROOT / "runs" / "vendor", tmp_path / "vendor")


def go(name, kills, cohort, tiny_profile, untrained, tmp_path):
    """Run a stage whole, then killed and resumed: the results must be the same bytes."""
    copy_of_the_sources(cohort, tmp_path)
    out = tmp_path / "runs"
    command, patterns = stage(name, out, cohort, tiny_profile, untrained)
    started = time.monotonic()
    run(command, tmp_path)
    took = time.monotonic() - started
    expected = contents(out, *patterns)
    shutil.rmtree(out)
    survive(command, tmp_path, out, kills, took, random.Random(kills))
    found = contents(out, *patterns)
    assert expected and found.keys() == expected.keys()
    assert [key for key in expected if found[key] != expected[key]] == []


def test_one_make_at_a_time_until_it_is_killed(tmp_path):
    alone = [sys.executable, ROOT / "workflow" / "alone.py"]
    script = "import time; print('at work', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [*alone, sys.executable, "-c", script], cwd=tmp_path, stdout=subprocess.PIPE
    ) as first:
        first.stdout.readline()
        second = subprocess.run([*alone, "true"], cwd=tmp_path, capture_output=True, text=True)
        assert second.returncode == 1 and second.stderr.startswith("error: another make")
        first.kill()
    assert subprocess.run([*alone, "true"], cwd=tmp_path).returncode == 0


STAGES = [
    "cohort",
    "heads",
    "preparation",
    "training",
    "encoder",
    "batch",
    "evaluation",
    "graph",
    "book",
]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_graph_gives_the_same_bytes_twice(tiny_cohort, tiny_profile, untrained, tmp_path):
    go("graph", 0, tiny_cohort, tiny_profile, untrained, tmp_path)


def volumes(folder):
    """When each volume was written."""
    return {path: path.stat().st_mtime_ns for path in folder.glob("[!.]*/*.nii.gz")}


def steps(folder):
    """How long a training had taken by each step of its log, once there are weights."""
    if not any(folder.glob("rigid*.safetensors")):
        return {}
    log = pd.read_csv(folder / "rigid.log.csv", dtype=str)
    return dict(zip(log.step, log.seconds, strict=True))


@pytest.mark.timeout(900)
@pytest.mark.parametrize(("name", "made"), [("cohort", volumes), ("training", steps)])
def test_killed_and_resumed(name, made, tiny_cohort, tiny_profile, untrained, tmp_path):
    """In the bytes of an uninterrupted run, and what was there at the kill is not made again."""
    copy_of_the_sources(tiny_cohort, tmp_path)
    out = tmp_path / "runs"
    command, patterns = stage(name, out, tiny_cohort, tiny_profile, untrained)
    before = kill_once_there_is(made, command, tmp_path, out)
    run(command, tmp_path)
    after, resumed = made(out), contents(out, *patterns)
    assert len(before) < len(after) and before.items() <= after.items()
    shutil.rmtree(out)
    run(command, tmp_path)
    assert resumed and resumed == contents(out, *patterns)


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", STAGES)
def test_killed_many_times(name, tiny_cohort, tiny_profile, untrained, tmp_path):
    kills = int(os.environ.get("ODEREG_KILLS", "5"))
    go(name, kills, tiny_cohort, tiny_profile, untrained, tmp_path)
    print(f"{name}: survived {kills} kills")
