"""What several tests share: one small synthetic cohort and models on it."""

from pathlib import Path

import pytest
import torch

from data_prep import brats, phantom
from odereg_core.files import write_json
from odereg_core.profiles import load_profile
from odereg_core.weights import save_model

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """The tests run in parallel processes."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """A test draws the same whichever ran before it in its process."""
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tiny_profile(tmp_path_factory):
    """The smoke profile with a few steps of training."""
    path = tmp_path_factory.mktemp("profile") / "tiny.yaml"
    stages = (
        "[{objective: velocity, scales: 1, steps: 5, batch: 2, lr: 1.0e-3}, "
        "{objective: losses, scales: 2, steps: 4, batch: 2, lr: 1.0e-3}]"
    )
    models = "".join(
        f"  {name}: {{validate_every: 3, validation_pairs: 2, similarity: none, "
        f"stages: {stages}}}\n"
        for name in ("rigid", "bspline", "dense")
    )
    path.write_text(
        "extends: smoke\nname: tiny\n"
        "cohort: {subjects: 4, spacing: 6.0, seed: 1}\nsplit: {val: 1, test: 1, seed: 1}\n"
        "encoders: {encoder: {network: {width: 4}, steps: 7, batch: 2, validate_every: 3, "
        "validation_pairs: 2}}\n"
        f"models:\n{models}"
    )
    return path


@pytest.fixture(scope="session")
def tiny_cohort(tmp_path_factory, tiny_profile):
    """A prepared cohort of four subjects at 6 mm."""
    root = tmp_path_factory.mktemp("cohort")
    phantom.cohort(root / "raw", 4, 6.0, 1)
    return brats.build(root / "raw", root / "prepared", load_profile(tiny_profile))


@pytest.fixture(scope="session")
def untrained(tmp_path_factory, tiny_profile):
    """A folder of weights of untrained models, with their records: their map is the identity."""
    from odereg_core.train.registration import build

    profile = load_profile(tiny_profile)
    folder = tmp_path_factory.mktemp("weights")
    for name, section in profile.models.items():
        save_model(folder / f"{name}.safetensors", build(name, profile, section))
        record = {"samples": 0, "settings": section.model_dump(mode="json")}
        write_json(folder / f"{name}.json", record)
    return folder
