"""Panels with sliders, for a reader with a running notebook.

A page of the book has no kernel, so there each panel shows its stepped animation instead. Which of
the two it is, `live` alone decides.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib.pyplot as plt
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import Tensor

from odereg_core.cohort import CONTRASTS, Subject
from odereg_core.experiments.comparison import Comparison, compare
from odereg_core.experiments.figures.comparison import comparison_figure, slice_animation
from odereg_core.experiments.figures.data import (
    draw_joint,
    joint_animation,
    joint_figure,
    planes_figure,
)
from odereg_core.experiments.figures.motion import transform_animation, transform_figure
from odereg_core.experiments.figures.ode import (
    Problem,
    descent_animation,
    descent_frame,
    solver_animation,
    solver_frame,
)
from odereg_core.experiments.figures.solve import Trajectory, trajectory_animation
from odereg_core.experiments.figures.style import Animation
from odereg_core.experiments.run import Run
from odereg_core.grid import Grid
from odereg_core.motion import SimulatedMap
from odereg_core.msodenet import Registration
from odereg_core.pairs import Pair, PairKey
from odereg_core.transforms import BSpline, Transform
from odereg_core.volume import save_nifti


def live() -> bool:
    """Whether there is a kernel behind the page: not in the book, where book/execute.py sets
    ODEREG_STATIC."""
    return not os.environ.get("ODEREG_STATIC")


def hybrid(
    degrees: Sequence[float], strength: float, seed: int, grid: Grid, spacing: float = 40.0
) -> Tensor:
    """u of phi_R∘phi_D: three angles in degrees, and noise of `strength` mm on control points."""
    spline = BSpline(spacing)
    shape = spline.identity(1, grid).shape
    control = strength * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    theta = torch.tensor([[math.radians(d) for d in degrees] + [0.0] * 3])
    return SimulatedMap(theta, control, spline).displacement(grid)


def transform_explorer(subject: Subject, grid: Grid) -> Any:
    """Sliders for the rigid angles and for the control points' noise; the grid, the warped brain
    and the metrics follow. Without a kernel: some positions of the sliders, step by step."""
    subject, grid = _light(subject, grid)
    return _panel(subject, grid) if live() else _steps(subject, grid)


def _light(subject: Subject, grid: Grid, voxels: int = 2**19) -> tuple[Subject, Grid]:
    """The subject on a grid coarse enough to be redrawn while one waits."""
    while math.prod(grid.shape) > voxels and not any(n % 2 for n in grid.shape):
        grid = grid.coarsened(2)
        seg = subject.seg
        if seg is not None:
            seg = (F.avg_pool3d((seg > 0)[None].float(), 2)[0] > 0.5).to(torch.uint8)
        subject = Subject(subject.name, F.avg_pool3d(subject.images[None], 2)[0], seg)
    return subject, grid


def _panel(subject: Subject, grid: Grid) -> Any:
    import ipywidgets as widgets

    def slider(kind: Any, label: str, low: int, high: int, step: int) -> Any:
        return kind(
            value=0, min=low, max=high, step=step, description=label, continuous_update=False
        )

    angles = [slider(widgets.IntSlider, f"{axis} / °", -75, 75, 5) for axis in "xyz"]
    strength = slider(widgets.IntSlider, "noise / mm", 0, 16, 1)
    seed = slider(widgets.IntSlider, "seed", 0, 20, 1)

    def draw() -> Figure:
        u = hybrid([a.value for a in angles], strength.value, seed.value, grid)
        return transform_figure(subject, grid, {"where φ looks": u})

    sliders = widgets.HBox([widgets.VBox(angles), widgets.VBox([strength, seed])])
    return _following([*angles, strength, seed], draw, sliders)


def _png(fig: Figure) -> bytes:
    buffer = io.BytesIO()
    fig.savefig(buffer, format="png", bbox_inches="tight")
    plt.close(fig)
    return buffer.getvalue()


def _following(controls: Sequence[Any], draw: Callable[[], Figure], head: Any = None) -> Any:
    """The controls above a picture that is drawn anew whenever one of them changes."""
    import ipywidgets as widgets

    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        picture.value = _png(draw())

    for control in controls:
        control.observe(redraw, "value")
    redraw()
    return widgets.VBox([head or widgets.HBox(controls), picture])


def _steps(subject: Subject, grid: Grid) -> Animation:
    stops = [((0, 0, z), 0) for z in (0, 20, 40)]
    stops += [((x, 0, 40), 0) for x in (20, 40)]
    stops += [((0, 0, 0), mm) for mm in (0, 4, 8, 12, 16)]
    stops += [((0, 0, z), 8) for z in (20, 40)]
    maps = [
        (f"x {x}°, y {y}°, z {z}°; noise {mm} mm", hybrid((x, y, z), mm, 0, grid))
        for (x, y, z), mm in stops
    ]
    note = (
        "<p>In a running notebook this is a panel of five sliders. On this page: "
        "some of their positions, step by step.</p>"
    )
    return Animation(note + transform_animation(subject, grid, maps))


def descent_explorer(bowl: Tensor, start: Tensor) -> Any:
    """A slider for the step size of a gradient descent; its path and its loss follow. Without a
    kernel: some step sizes, one after the other."""
    if not live():
        note = "<p>In a running notebook this is a slider. On this page: some of its positions.</p>"
        steps = (0.02, 0.05, 0.1, 0.13, 0.16, 0.19, 0.2, 0.21, 0.22)
        return Animation(note + descent_animation(bowl, start, steps))
    import ipywidgets as widgets

    step = widgets.FloatSlider(value=0.1, min=0.01, max=0.25, step=0.01, description="step")

    def draw() -> Figure:
        fig = plt.figure(figsize=(9, 3.6))
        descent_frame(fig, bowl, start, step.value)
        return fig

    return _following([step], draw, step)


def solver_explorer(problem: Problem) -> Any:
    """A choice of solver and a slider for its step or tolerance; the solution and the steps taken
    follow. Without a kernel: some solvers, one after the other."""
    if not live():
        note = "<p>In a running notebook: a choice and a slider. Here: some of their positions.</p>"
        solvers = ["F(0.2)", "F(0.1)", "F(0.05)", "A(0.1)", "A(0.01)", "A(0.001)", "A(0.0001)"]
        return Animation(note + solver_animation(problem, solvers))
    import ipywidgets as widgets

    kind = widgets.Dropdown(
        options={"Euler, F(dt)": "F", "Heun, fixed step": "heun2", "adaptive Heun, A(eps)": "A"},
        description="solver",
    )
    value = widgets.FloatLogSlider(value=0.1, min=-4, max=-0.7, step=0.1, description="dt or eps")

    def draw() -> Figure:
        fig = plt.figure(figsize=(9, 3.4))
        size = value.value if kind.value == "A" else max(value.value, 1e-3)
        solver_frame(fig, problem, f"{kind.value}({size:.2g})")
        return fig

    return _following([kind, value], draw)


def trajectory_explorer(
    result: Registration, pair: Pair, transform: Transform | None = None
) -> Any:
    """Sliders for the scale and for the accepted step within it; the warped image and the error
    follow. Without a kernel: all steps, one after the other."""
    if not live():
        return trajectory_animation(result, pair, transform)
    import ipywidgets as widgets

    trajectory = Trajectory(result, pair, transform)
    places = [[i for i, step in enumerate(trajectory.steps) if step[0] == k]
              for k in range(len(result.segments))]  # fmt: skip
    scale = widgets.IntSlider(value=1, min=1, max=len(places), description="scale")
    step = widgets.IntSlider(value=0, min=0, max=len(places[0]) - 1, description="step")

    def limit(change: Any) -> None:
        step.value, step.max = 0, len(places[change["new"] - 1]) - 1

    def draw() -> Figure:
        fig, axes = trajectory.figure()
        at = places[scale.value - 1]
        trajectory.draw(axes, at[min(step.value, len(at) - 1)])
        return fig

    scale.observe(limit, "value")
    return _following([scale, step], draw)


def contrast_explorer(subject: Subject) -> Any:
    """Two choices of contrast; their slices and joint histogram follow. Without a kernel: some
    pairs of contrasts, one after the other."""
    if not live():
        note = "<p>In a running notebook: two choices. Here: all pairs, one after the other.</p>"
        pairs = list(combinations(range(len(subject.images)), 2))
        return Animation(note + joint_animation(subject, pairs))
    import ipywidgets as widgets

    options = {name: k for k, name in enumerate(CONTRASTS[: len(subject.images)])}
    one, two = (
        widgets.Dropdown(options=options, value=k, description=name)
        for k, name in enumerate(("moving", "fixed"))
    )

    def draw() -> Figure:
        fig, axes = joint_figure()
        draw_joint(axes, subject, (one.value, two.value))
        return fig

    return _following([one, two], draw)


def volume_explorer(subject: Subject, grid: Grid, contrast: int = 0) -> Any:
    """A volume to be turned and cut in three dimensions (NiiVue, which needs WebGL2). Without a
    kernel: its three middle planes."""
    if not live():
        fig = planes_figure(subject, contrast)
        plt.close(fig)  # it is the cell's value; the notebook would show it twice
        return fig
    from ipyniivue import NiiVue, SliceType

    with TemporaryDirectory() as folder:
        path = Path(folder) / f"{subject.name}.nii.gz"
        save_nifti(path, subject.images[contrast].numpy(), grid.affine)
        viewer = NiiVue(height=400, slice_type=SliceType.RENDER, crosshair_width=0)
        viewer.load_volumes([{"path": str(path), "cal_min": 0.1}])
        viewer.set_clip_plane(0.1, 270, 0)
    return viewer


def comparison_explorer(run: Run, task: str = "deformable", first: Comparison | None = None) -> Any:
    """Menus for subject and contrasts, a slider for the slice; a new pair is registered by every
    compared method when asked for. Without a kernel: `first` through its slices."""
    if not live():
        note = (
            "<p>In a running notebook these are menus for subject, contrasts and slice. "
            "On this page: the first pair, slice by slice.</p>"
        )
        return Animation(note + slice_animation(first)) if first else Animation(note)
    import ipywidgets as widgets

    names, contrasts = run.cohort.names("test"), run.cohort.contrasts
    subject = widgets.Dropdown(options=names, description="subject")
    moving = widgets.Dropdown(options=contrasts, value=contrasts[0], description="moving")
    fixed = widgets.Dropdown(options=contrasts, value=contrasts[1], description="fixed")
    at = widgets.IntSlider(
        value=run.cohort.grid.shape[2] // 2, min=0, max=run.cohort.grid.shape[2] - 1,
        description="slice", continuous_update=False,
    )  # fmt: skip
    go = widgets.Button(description="register")
    picture, shown = widgets.Image(format="png"), [first] if first else []

    def redraw(_: object = None) -> None:
        if not shown:
            return
        picture.value = _png(comparison_figure(shown, at=at.value))

    def register(_: object = None) -> None:
        go.disabled, go.description = True, "registering"
        try:
            key = PairKey(task, subject.value, moving.value, fixed.value)
            seed = run.profile.evaluation.seed
            shown[:] = [compare(run.cohort, run.folder / "models", key, seed)]
            redraw()
        finally:
            go.disabled, go.description = False, "register"

    go.on_click(register)
    at.observe(redraw, "value")
    redraw()
    return widgets.VBox([widgets.HBox([subject, moving, fixed]), widgets.HBox([at, go]), picture])
