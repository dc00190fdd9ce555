"""Fig. 3: the marks lie where differences were planted; every compared method has its panels."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from odereg_core.baselines.base import Outcome
from odereg_core.errors import InputError
from odereg_core.experiments import widgets
from odereg_core.experiments.comparison import Comparison, compare
from odereg_core.experiments.figures import comparison_figure
from odereg_core.experiments.methods import METHODS, Method
from odereg_core.pairs import PairKey, simulate


@pytest.fixture
def pair(tiny_cohort):
    name = tiny_cohort.names("test")[0]
    return simulate(tiny_cohort, PairKey("deformable", name, "flair", "t1"), 3)


def test_marks_lie_where_the_methods_were_made_to_differ(pair):
    brain = pair.brain[0, 0].nonzero().float()
    centre = brain.mean(0).round().int().tolist()
    places = [(centre[0] - 4, centre[1]), (centre[0] + 4, centre[1] + 2)]
    wrong = pair.displacement.clone()
    for x, y in places:  # 12 mm along each axis, in a voxel and its neighbours
        wrong[:, :, x - 1 : x + 2, y - 1 : y + 2, centre[2]] += 12
    comparison = Comparison(pair, {"right": pair.displacement, "wrong": wrong})
    assert comparison.error_mm("right") == 0 and comparison.error_mm("wrong") > 0
    assert comparison.telling_slice(2) == centre[2]
    marks = comparison.marks(2, centre[2], count=2, apart_mm=18)
    distance = np.abs(marks[:, None] - np.array(places)[None]).max(2)
    assert len(marks) == 2 and (distance.min(1) <= 2).all() and (distance.min(0) <= 2).all()


def test_methods_that_agree_get_no_marks(pair):
    same = Comparison(pair, {"one": pair.displacement, "two": pair.displacement.clone()})
    assert len(same.marks(2, same.telling_slice())) == 0


def shift(mm):
    def load(models, device):
        return lambda moving, fixed, grid, contrasts: Outcome(torch.full((1, 3, *grid.shape), mm))

    return load


@pytest.fixture
def few(monkeypatch):
    for name in list(METHODS):
        monkeypatch.delitem(METHODS, name)
    for name, mm in (("here", 1.0), ("there", 7.0)):
        monkeypatch.setitem(METHODS, name, Method(name, ("deformable",), shift(mm)))
    monkeypatch.setitem(
        METHODS, "none", Method("none", ("deformable",), shift(0.0), in_paper=False)
    )
    untrained = Method("untrained", ("deformable",), shift(9.0), models=("nowhere",))
    monkeypatch.setitem(METHODS, "untrained", untrained)
    monkeypatch.setitem(METHODS, "turn", Method("turn", ("rigid",), shift(0.0)))


def test_every_compared_method_of_the_task_has_its_panels(few, tiny_cohort, tmp_path, monkeypatch):
    name = tiny_cohort.names("test")[0]
    key = PairKey("deformable", name, "flair", "t1")
    comparison = compare(tiny_cohort, tmp_path, key, 3)
    assert list(comparison.displacements) == ["here", "there"]
    fig = comparison_figure([comparison, comparison])
    titles = [ax.get_title() for ax in fig.axes]
    for method in ("here", "there"):
        assert titles.count(f"{method}\n{comparison.error_mm(method):.1f} mm") == 2
    assert titles.count("moving: flair") == titles.count("fixed: t1") == 2
    plt.close(fig)
    monkeypatch.setenv("ODEREG_STATIC", "1")
    page = widgets.comparison_explorer(None, "deformable", comparison)
    assert "slice by slice" in page and "animation" in page


def test_an_unknown_subject_or_contrast_is_named(few, tiny_cohort, tmp_path):
    name = tiny_cohort.names("test")[0]
    with pytest.raises(InputError, match="no subject 'nobody'"):
        compare(tiny_cohort, tmp_path, PairKey("deformable", "nobody", "t1", "t2"), 3)
    with pytest.raises(InputError, match="no contrast 'pd'; there are t1, t1ce, t2, flair"):
        compare(tiny_cohort, tmp_path, PairKey("deformable", name, "t1", "pd"), 3)


def test_the_live_panel_registers_what_is_chosen(few, tiny_cohort, tmp_path, monkeypatch):
    pytest.importorskip("ipywidgets")
    monkeypatch.delenv("ODEREG_STATIC", raising=False)

    class Run:
        cohort, folder = tiny_cohort, tmp_path

        class profile:
            class evaluation:
                seed = 3

    panel = widgets.comparison_explorer(Run)
    (_, moving, _), (at, go) = (box.children for box in panel.children[:2])
    picture = panel.children[2]
    assert bytes(picture.value) == b""
    moving.value = "flair"
    go.click()
    first = bytes(picture.value)
    assert first.startswith(b"\x89PNG") and not go.disabled
    at.value += 3
    assert bytes(picture.value) != first
