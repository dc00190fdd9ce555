"""environment.yml, pyproject.toml and the lock agree, and the layers point one way."""

import os
import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

from workflow.imports import imported

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def project():
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def lock():
    pins = {}
    for line in (ROOT / "requirements.lock").read_text().splitlines():
        if line and not line.startswith("#"):
            name, version = line.split("==")
            pins[re.sub(r"[-_.]+", "-", name).lower()] = Version(version)
    return pins


def test_the_lock_pins_every_dependency_to_a_version_that_suits(project, lock):
    extras = project["optional-dependencies"]
    texts = [
        *project["dependencies"],
        *extras["book"],
        *extras["test"],
        *extras["dev"],
        *extras["live"],
    ]
    for requirement in map(Requirement, texts):
        name = re.sub(r"[-_.]+", "-", requirement.name).lower()
        assert name in lock, f"{name} is not in requirements.lock"
        assert requirement.specifier.contains(lock[name]), f"{requirement} but lock {lock[name]}"


def test_torch_is_pinned_without_a_local_version(lock):
    assert lock["torch"] == Version("2.13.0") and lock["torch"].local is None


def test_conda_gives_python_and_pip_gives_the_rest(project):
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    python, pip, rest = environment["dependencies"]
    assert pip == "pip"
    assert rest == {"pip": ["-c requirements.lock", "-e .[all]"]}
    name, version = python.split("=")
    assert name == "python"
    assert Requirement(f"x{project['requires-python']}").specifier.contains(version)
    assert project["optional-dependencies"]["all"] == [f"{project['name']}[book,test,dev]"]
    makefile = (ROOT / "Makefile").read_text()
    assert f"CONDA_DEFAULT_ENV),{environment['name']})" in makefile


def test_binder_has_the_same_python_and_the_same_pins():
    read = [ROOT / "environment.yml", ROOT / "binder" / "environment.yml"]
    conda, binder = (yaml.safe_load(path.read_text())["dependencies"] for path in read)
    assert binder[:2] == conda[:2]
    assert {"-c ../requirements.lock", "-e ..[book]"} < set(binder[2]["pip"])
    assert os.access(ROOT / "binder" / "postBuild", os.X_OK)


LAYERS = [
    {"errors", "device", "grid", "files", "precision", "box"},
    {"warp", "volume", "cohort", "descriptor"},
    {"transforms", "ode"},
    {"networks", "motion", "metrics", "profiles"},
    {"msodenet", "losses", "pairs", "similarity", "optimise"},
    {"weights", "baselines", "seen"},
    {"train", "registration"},
    {"experiments", "bench", "batch"},
    {"cli"},
]


def test_layers_point_one_way(monkeypatch):
    """A module imports its own layer and those before it, never a later one, nor data_prep."""
    monkeypatch.chdir(ROOT)
    rank = {name: i for i, layer in enumerate(LAYERS) for name in layer}

    def layer(path):
        package, module, *_ = path.with_suffix("").parts
        assert package == "odereg_core", path
        return rank[module]

    at_the_top = Path("odereg_core/__init__.py")  # a shorter way to `register`
    for path in Path("odereg_core").rglob("*.py"):
        if path != at_the_top:
            for other in imported(path.read_text()) - {at_the_top}:
                assert layer(other) <= layer(path), f"{path} imports {other}"


def test_no_path_of_a_machine_is_named():
    places = ("/wo" + "rk/", "/ho" + "me/", "/ro" + "ot/")
    for folder in ("odereg_core", "data_prep", "notebooks", "book", "tests", ".ci"):
        for path in (ROOT / folder).rglob("*"):
            if (
                path.suffix in {".py", ".ipynb", ".md", ".yml", ".yaml", ".json", ""}
                and path.is_file()
            ):
                assert not any(p in path.read_text() for p in places), path
