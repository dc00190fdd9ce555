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
import pytest
import torch

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


def stage(name, out, cohort, tiny_profile, untrained):
    """A stage's command, the folder it writes below `out`, and what must be equal in the end."""
    raw, prepared, pairs = cohort.folder.parent / "raw", cohort.folder, out.parent / "pairs.csv"
    common = ["--profile", tiny_profile, "--cohort", prepared, "--device", "cpu"]
    return {
        "cohort": (["data_prep.phantom", out, "--subjects", 4, "--spacing", 6, "--seed", 1,
                    "--jobs", 2], ("*.nii.gz", "*.json")),
        "preparation": (["data_prep.brats", raw, out, "--jobs", 2, "--profile", tiny_profile],
                        ("*.safetensors", "*.json")),
        "training": (["odereg_core.cli", "train", "rigid", *common, "--out", out],
                     ("rigid.safetensors",)),
        "encoder": (["odereg_core.cli", "train", "encoder", *common, "--out", out],
                    ("encoder.safetensors",)),
        "batch": (["odereg_core.cli", "register-batch", pairs, "--out", out, "--device", "cpu",
                   "--weights", untrained / "rigid.safetensors"],
                  ("warped.nii.gz", "displacement.nii.gz", "affine.mat")),
        "evaluation": (["odereg_core.cli", "evaluate", *common, "--models", untrained, "--out",
                        out, "--methods", "none,msodenet_r", "--pairs", 4], ("*.json",)),
    }[name]  # fmt: skip


def go(name, kills, cohort, tiny_profile, untrained, tmp_path):
    """Run a stage whole, then killed and resumed: the results must be the same bytes."""
    lines = ["moving,fixed"]
    for path in sorted((cohort.folder.parent / "raw").glob("*/*_t1.nii.gz")):
        lines.append(f"{path},{str(path).replace('_t1.', '_t2.')}")
    (tmp_path / "pairs.csv").write_text("\n".join(lines) + "\n")
    started = time.monotonic()
    run(stage(name, tmp_path / "whole", cohort, tiny_profile, untrained)[0])
    took = time.monotonic() - started
    command, patterns = stage(name, tmp_path / "cut", cohort, tiny_profile, untrained)
    met = survive(command, tmp_path / "cut", kills, took, random.Random(kills))
    expected = contents(tmp_path / "whole", *patterns)
    found = contents(tmp_path / "cut", *patterns)
    assert expected and found.keys() == expected.keys()
    for key in expected:
        if name in ("training", "encoder"):  # the header may hold another commit
            ours, theirs = (load_tensors(tmp_path / one / key)[0] for one in ("cut", "whole"))
            assert all(torch.equal(ours[k], theirs[k]) for k in theirs), key
        else:
            assert found[key] == expected[key], key
    return met


STAGES = ("cohort", "preparation", "training", "encoder", "batch", "evaluation")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["cohort", "training"])
def test_killed_once_and_resumed(name, tiny_cohort, tiny_profile, untrained, tmp_path):
    go(name, 1, tiny_cohort, tiny_profile, untrained, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", STAGES)
def test_killed_many_times(name, tiny_cohort, tiny_profile, untrained, tmp_path):
    met = go(
        name, int(os.environ.get("ODEREG_KILLS", "5")), tiny_cohort, tiny_profile, untrained,
        tmp_path,
    )  # fmt: skip
    print(f"{name}: survived {met} kills")
