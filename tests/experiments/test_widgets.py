"""The panels: live ones follow their sliders, and a page without a kernel has the animation."""

import dataclasses
import io
import math

import matplotlib
import numpy as np
import pytest
import torch
from matplotlib.image import imread

from odereg_core.cohort import Subject
from odereg_core.experiments.figures import Problem, move
from odereg_core.experiments.figures.style import Animation
from odereg_core.experiments.widgets import (
    _light,
    contrast_explorer,
    hybrid,
    solver_explorer,
    transform_explorer,
    volume_explorer,
)
from odereg_core.grid import Grid
from odereg_core.metrics import dice
from odereg_core.motion import MOTIONS

GRID = Grid((20, 22, 16), (9.0, 9.0, 9.0))


@pytest.fixture(autouse=True)
def no_window():
    matplotlib.use("agg")


@pytest.fixture
def subject():
    """A ball with a tumour on its right."""
    points = GRID.points()
    ball = (points.square().sum(1) < 70**2).float() * (0.5 + 0.3 * torch.sin(points[:, 0] / 12))
    centre = torch.tensor([30.0, 10.0, 0.0]).reshape(1, 3, 1, 1, 1)
    tumour = ((points - centre).square().sum(1) < 20**2)[0]
    return Subject("ball", ball.expand(2, -1, -1, -1), (4 * tumour).to(torch.uint8))


def test_the_panel_follows_its_sliders(subject, monkeypatch):
    monkeypatch.delenv("ODEREG_STATIC", raising=False)
    sliders, picture = transform_explorer(subject, GRID).children
    (x, _, z), (strength, seed) = (column.children for column in sliders.children)

    def shown():
        return imread(io.BytesIO(picture.value))

    still = shown()
    assert still.shape[1] > 2 * still.shape[0]
    seed.value = 3  # no noise yet, so its seed changes nothing
    assert np.array_equal(shown(), still)
    pictures = [still]
    for slider, value in ((z, 30), (strength, 8), (seed, 4), (x, -20)):
        slider.value = value
        pictures.append(shown())
        assert np.abs(pictures[-1] - pictures[-2]).max() > 0.1
    for slider in (z, strength, seed, x):
        slider.value = 0
    assert np.array_equal(shown(), still)


def test_a_page_without_a_kernel_has_the_animation(subject, monkeypatch):
    monkeypatch.setenv("ODEREG_STATIC", "1")
    shown = transform_explorer(subject, GRID)
    assert isinstance(shown, Animation)
    assert shown.startswith("<p>In a running notebook") and shown.count("data:image/png") > 8
    assert len(repr(shown)) < 20  # the HTML is not kept a second time as text


def test_the_panels_motion_is_section_3_2s(subject):
    u = hybrid((0, 0, 0), 8, 0, GRID)
    assert hybrid((0, 0, 0), 0, 5, GRID).abs().max() == 0
    assert not torch.equal(u, hybrid((0, 0, 0), 8, 1, GRID))
    drawn = MOTIONS["deformable"].draw(np.random.default_rng(0), GRID).displacement(GRID)
    assert 0.6 < float(u.std() / drawn.std()) < 1.7
    quarter = hybrid((0, 0, 90), 0, 0, GRID)
    points = GRID.points()
    expected = torch.cat([-points[:, 1:2], points[:, :1], points[:, 2:]], 1) - points
    assert torch.allclose(quarter, expected, atol=1e-3)


def test_numbers_are_of_the_map_shown(subject):
    shift = torch.zeros(1, 3, *GRID.shape)
    shift[:, 0] = 18.0
    moved = move(subject, shift, GRID)
    assert moved.scores["rmse_phi_mm"] == pytest.approx(18)
    tumour = (subject.seg > 0)[None, None]
    left = torch.zeros_like(tumour)
    left[:, :, :-2] = tumour[:, :, 2:]  # two voxels: the picture moves against the map
    assert torch.equal(moved.warped_tumour, left)
    assert moved.scores["dice"] == pytest.approx(float(dice(tumour, left)))
    assert moved.scores["folding"] == 0 and moved.scores["log_jacobian_std"] < 1e-4
    assert "18.0 mm" in str(moved)
    bare = dataclasses.replace(subject, seg=None)
    assert move(bare, shift, GRID).scores["rmse_phi_mm"] == pytest.approx(18)


def test_a_large_subject_is_shown_coarser(subject):
    light, grid = _light(subject, GRID, voxels=1000)
    assert grid == GRID.coarsened(2) and light.images.shape == (2, *grid.shape)
    assert light.seg.shape == grid.shape and light.seg.any()
    assert light.images.mean() == pytest.approx(float(subject.images.mean()), rel=1e-4)
    assert _light(subject, GRID)[1] == GRID


def test_the_solver_panel_follows_its_choice(monkeypatch):
    monkeypatch.delenv("ODEREG_STATIC", raising=False)
    one = torch.ones(1, 1, dtype=torch.float64)
    problem = Problem(lambda t, y: -y, one, 1.0, lambda t: one * math.exp(-t))
    controls, picture = solver_explorer(problem).children
    kind, value = controls.children
    seen = {picture.value}
    for name in ("A", "heun2"):
        kind.value = name
        seen.add(picture.value)
    value.value = 0.02
    assert len(seen | {picture.value}) == 4
    monkeypatch.setenv("ODEREG_STATIC", "1")
    page = solver_explorer(problem)
    assert page.count("data:image/png") == 7 and 'alt="A solution' in page


def test_the_contrast_panel_follows_its_choice(subject, monkeypatch):
    monkeypatch.delenv("ODEREG_STATIC", raising=False)
    controls, picture = contrast_explorer(subject).children
    before = picture.value
    controls.children[1].value = 0
    assert picture.value != before
    monkeypatch.setenv("ODEREG_STATIC", "1")
    assert contrast_explorer(subject).count("data:image/png") == 1  # one pair of two contrasts


def test_a_volume_in_three_dimensions_and_on_a_page(subject, monkeypatch):
    monkeypatch.delenv("ODEREG_STATIC", raising=False)
    viewer = volume_explorer(subject, GRID)
    assert viewer.volumes[0].name == "ball.nii.gz"
    monkeypatch.setenv("ODEREG_STATIC", "1")
    fig = volume_explorer(subject, GRID)
    assert len(fig.axes) == 3 and repr(fig) == fig.alt
