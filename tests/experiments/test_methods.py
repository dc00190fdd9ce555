"""Table 1's rows are what their names say: parts, their order, the models they load, the task."""

import re
from types import SimpleNamespace

import pytest
import torch

from odereg_core.baselines.ants import AntsRigid, AntsSyn
from odereg_core.baselines.newton import Newton
from odereg_core.baselines.optimiser import Optimiser
from odereg_core.baselines.regression import AfterRigid, Regression
from odereg_core.baselines.translate import Translated
from odereg_core.errors import InputError
from odereg_core.experiments import methods
from odereg_core.experiments.methods import METHODS
from odereg_core.grid import Grid
from odereg_core.msodenet import MSODENet
from odereg_core.networks.disentangle import Disentangler
from odereg_core.networks.regression import Rcn, VoxelMorph
from odereg_core.similarity import content_similarity

PARTS = {"R": "rigid", "D": "dense", "B": "bspline"}
TASKS = {"R": "rigid", "D": "deformable", "B": "deformable", "R+D": "hybrid", "R+B": "hybrid"}
LETTERED = {key: m for key, m in METHODS.items() if m.name.endswith(")")}
OTHERS = {
    ("no registration", "rigid"): [],
    ("no registration", "deformable"): [],
    ("no registration", "hybrid"): [],
    ("ANTs", "rigid"): ["mattes"],
    ("ANTs", "deformable"): ["syn"],
    ("ANTs", "hybrid"): ["mattes", "syn"],
    ("ANTs+I2I", "rigid"): ["encoder", "GC"],
    ("ANTs+I2I", "deformable"): ["encoder", "syn"],
    ("ANTs+I2I", "hybrid"): ["encoder", "GC", "syn"],
    ("VM", "deformable"): ["vm"],
    ("VM+I2I", "deformable"): ["encoder", "vm_i2i"],
    ("VM+GN", "deformable"): ["vm_told"],
    ("RCN", "hybrid"): ["rcn"],
    ("VM*", "hybrid"): ["rigid", "vm"],
    ("VM*+I2I", "hybrid"): ["rigid", "encoder", "vm_i2i"],
}
"""What each row applies, in that order, where its name has no letters: weights by file, and ANTs'
metric of a rigid registration."""


@pytest.fixture
def loaded(monkeypatch):
    """Files of weights that are nothing but their names, and of which kind they were asked for."""
    kinds = {}

    def load_model(path, device, kind):
        kinds[path.stem] = kind.__name__
        if path.stem == "encoder":
            model = Disentangler(("a", "b"), width=4, blocks=1)
        else:
            model = SimpleNamespace()
        model.stem = path.stem
        return model

    def load_content(path, device):
        return content_similarity(load_model(path, device, Disentangler)).requires_grad_(False)

    monkeypatch.setattr(methods, "load_model", load_model)
    monkeypatch.setattr(methods, "load_content", load_content)
    return kinds


def parts(register):
    match register:
        case AntsRigid():
            return [register.metric]
        case AntsSyn():
            return [*(parts(register.rigid) if register.rigid else []), "syn"]
        case Regression():
            return [register.model.stem]
        case AfterRigid():
            return [register.rigid.stem, *parts(register.register)]
        case Translated():
            return [register.model.stem, *parts(register.register)]
    pair, grid = torch.ones(2, 1, 1, 4, 4, 4), Grid((4, 4, 4), (1.0,) * 3)
    assert not register(*pair, grid, ("a", "b")).displacement.any()
    return []


@pytest.mark.parametrize("key", [key for key in METHODS if key not in LETTERED])
def test_a_row_without_letters_is_what_the_paper_calls_it(key, loaded, tmp_path):
    method = METHODS[key]
    for task in method.tasks:
        found = parts(method.load(tmp_path, "cpu"))
        assert found == OTHERS[method.name, task]
        assert sorted(loaded) == sorted(method.models)
    voxelmorphs = dict.fromkeys(("vm", "vm_i2i", "vm_told"), VoxelMorph)
    kinds = {"encoder": Disentangler, "rcn": Rcn, **voxelmorphs}
    for name, kind in loaded.items():
        assert kind == ("MSODENet" if name == "rigid" else kinds[name].__name__)


def test_every_such_row_is_there_once():
    rows = [(m.name, t) for k, m in METHODS.items() if k not in LETTERED for t in m.tasks]
    assert sorted(rows) == sorted(OTHERS)


@pytest.mark.parametrize("key", LETTERED)
def test_the_letters_of_a_row_are_its_stages_and_its_task(key, loaded, tmp_path, monkeypatch):
    method = METHODS[key]
    kind, letters = re.fullmatch(r"(.*) ?\((.+)\)", method.name).groups()
    stages = tuple(PARTS[letter] for letter in letters.split("+"))
    assert method.tasks == (TASKS[letters],)
    assert key.split("_")[1] == letters.replace("+", "").lower()
    if kind.strip() in ("Gauss-Newton", "Adam on Eq. 4"):
        register = method.load(tmp_path, "cpu")
        expected = Newton if kind.startswith("Gauss") else Optimiser
        assert isinstance(register, expected) and register.transforms == stages
        assert method.models == tuple(loaded) == (() if expected is Newton else ("encoder",))
        return
    assert kind in ("MS-ODENet", "refined MS-ODENet") and method.models == stages
    grid = Grid((4, 4, 4), (1.0,) * 3)
    calls, images = [], torch.rand(2, 1, 1, *grid.shape)

    class Cascade:
        nfe = 7

        def __init__(self, *given):
            calls.append(given)
            self.grid = grid

        def __call__(self, *pair):
            return self

        def displacement(self):
            return torch.ones(1, 3, *grid.shape)

    monkeypatch.setattr(methods, "load_cascade", Cascade)
    monkeypatch.setattr(methods, "refine", lambda *given: calls.append("refined"))
    outcome = method.load(tmp_path, "cpu")(*images, grid, ("a", "b"))
    files = [tmp_path / f"{stage}.safetensors" for stage in stages]
    assert calls[0] == ("+".join(stages), files, "cpu")
    assert calls[1:] == ["refined"] * kind.startswith("refined")
    assert outcome.displacement.all() and outcome.nfe == 7


def test_after_a_rigid_model_of_another_grid_nothing_is_registered():
    grid = Grid((8, 8, 8), (3.0,) * 3)
    row = AfterRigid(MSODENet("rigid", Grid((8, 8, 8), (2.0,) * 3), ["F(0.5)"]), None)
    with pytest.raises(InputError, match="rigid model is of another grid than the cohort's"):
        row(*torch.rand(2, 1, 1, *grid.shape), grid, ("a", "b"))
