"""The descent's path is gradient descent, and its panel follows the slider."""

from itertools import pairwise

import matplotlib
import torch

from odereg_core.experiments.figures import descent_path
from odereg_core.experiments.figures.ode import flow
from odereg_core.experiments.figures.style import Animation
from odereg_core.experiments.widgets import descent_explorer

matplotlib.use("agg")
BOWL = torch.tensor([[6.0, 4.0], [4.0, 6.0]], dtype=torch.float64)
START = torch.tensor([[2.0, 0.5]], dtype=torch.float64)


def test_the_path_is_gradient_descent():
    path = descent_path(BOWL, START, 0.15)
    assert path.shape == (15, 2)  # 14 steps of 0.15 are the first to reach 2
    for a, b in pairwise(path):
        assert torch.allclose(b, a - 0.15 * BOWL @ a)


def test_small_steps_follow_the_flow():
    end = flow(BOWL, START)[-1]
    assert torch.allclose(descent_path(BOWL, START, 0.005)[-1], end, atol=1e-3)


def test_the_panel_follows_its_slider(monkeypatch):
    monkeypatch.delenv("ODEREG_STATIC", raising=False)
    step, picture = descent_explorer(BOWL, START).children
    before = picture.value
    step.value = 0.21
    assert picture.value != before
    step.value = 0.1
    assert picture.value == before
    monkeypatch.setenv("ODEREG_STATIC", "1")
    page = descent_explorer(BOWL, START)
    assert isinstance(page, Animation)
    assert page.count("data:image/png") == 9
