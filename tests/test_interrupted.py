"""kill -9 at random moments: what was whole stays, nothing half reads as whole, and the resumed
work ends in the bytes of an uninterrupted one."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from odereg_core.cohort import Cohort
from odereg_core.files import load_tensors
from odereg_core.volume import Volume

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


def run(command, kill_after=None):
    """Run a command to its end, or kill it and all its children; whether it ended."""
    process = subprocess.Popen(
        [sys.executable, "-m", *map(str, command)],
        env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True,
    )  # fmt: skip
    try:
        _, said = process.communicate(timeout=kill_after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
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


def survive(command, folder, kills, seconds, rng):
    """Kill the command `kills` times at random moments of the first `seconds`, each time going on
    from what is there, then let it end; the number of kills that met it running."""
    met = 0
    for _ in range(kills):
        if run(command, rng.uniform(0.3, 1.0) * seconds):
            break
        met += 1
        for path in folder.rglob("*"):
            if path.is_file() and not any(p.startswith(".") for p in path.parts):
                whole(path)
    run(command)
    return met


def contents(folder, *patterns):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for pattern in patterns
        for path in sorted(folder.rglob(pattern))
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


def stage_commands(tmp, out, tiny_profile, untrained, prepared=None):
    """The stages' names, commands, folders, what must be equal in the end."""
    raw, cohort = out / "raw", prepared or out / "prepared"
    common = ["--profile", tiny_profile, "--cohort", cohort, "--device", "cpu"]
    return {
        "cohort": (["data_prep.phantom", raw, "--subjects", 4, "--spacing", 6, "--seed", 1,
                    "--jobs", 2], raw, ("*.nii.gz", "*.json")),
        "preparation": (["data_prep.brats", tmp / "whole" / "raw", out / "prepared", "--jobs", 2,
                         "--profile", tiny_profile], out / "prepared", ("*.safetensors", "*.json")),
        "training": (["odereg_core.cli", "train", "rigid", *common, "--out", out / "models"],
                     out / "models", ("rigid.safetensors",)),
        "encoder": (["odereg_core.cli", "train", "encoder", *common, "--out", out / "models"],
                    out / "models", ("encoder.safetensors",)),
        "batch": (["odereg_core.cli", "register-batch", tmp / "pairs.csv", "--out", out / "batch",
                   "--weights", untrained / "rigid.safetensors", "--device", "cpu"],
                  out / "batch", ("warped.nii.gz", "displacement.nii.gz", "affine.mat")),
        "evaluation": (["odereg_core.cli", "evaluate", *common, "--models", untrained, "--out",
                        out / "results", "--methods", "none,msodenet_r", "--pairs", 4],
                       out / "results", ("*.json",)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory, tiny_profile, untrained):
    """All stages, run whole, and how long each took."""
    tmp = tmp_path_factory.mktemp("interrupted")
    took = {}
    for name, (command, _, _) in stage_commands(
        tmp, tmp / "whole", tiny_profile, untrained
    ).items():
        if name == "batch":
            lines = ["moving,fixed"]
            for path in sorted((tmp / "whole" / "raw").glob("*/*_t1.nii.gz")):
                lines.append(f"{path},{str(path).replace('_t1.', '_t2.')}")
            (tmp / "pairs.csv").write_text("\n".join(lines) + "\n")
        started = time.monotonic()
        run(command)
        took[name] = time.monotonic() - started
    return tmp, took


def go(name, kills, uninterrupted, tiny_profile, untrained, tmp_path, seed=0):
    tmp, took = uninterrupted
    out = tmp_path / "out"
    command, folder, patterns = stage_commands(
        tmp, out, tiny_profile, untrained, prepared=tmp / "whole" / "prepared"
    )[name]
    met = survive(command, folder, kills, took[name], random.Random(seed))
    expected = contents(tmp / "whole" / folder.relative_to(out), *patterns)
    found = contents(folder, *patterns)
    assert expected and found.keys() == expected.keys()
    for key in expected:
        if key.endswith(".safetensors") and name in ("training", "encoder"):
            ours, theirs = (load_tensors(base / key)[0] for base in (
                folder, tmp / "whole" / folder.relative_to(out)))  # fmt: skip
            assert all(np.array_equal(ours[k], theirs[k]) for k in theirs), key
        else:
            assert found[key] == expected[key], key
    if name == "preparation":
        assert Cohort(folder).split == Cohort(tmp / "whole" / "prepared").split
    return met


STAGES = ("cohort", "preparation", "training", "encoder", "batch", "evaluation")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["training", "batch"])
def test_killed_once_and_resumed(name, uninterrupted, tiny_profile, untrained, tmp_path):
    go(name, 1, uninterrupted, tiny_profile, untrained, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STAGES)
def test_killed_many_times(name, uninterrupted, tiny_profile, untrained, tmp_path):
    kills = int(os.environ.get("ODEREG_KILLS", "5"))
    met = go(name, kills, uninterrupted, tiny_profile, untrained, tmp_path, seed=kills)
    print(f"{name}: survived {met} kills")
