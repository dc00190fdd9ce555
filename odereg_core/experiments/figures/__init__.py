"""The book's figures, a subject a module. Each takes data and returns a matplotlib figure or
animation."""

from odereg_core.experiments.figures.ablation import bars_figure, steps_figure
from odereg_core.experiments.figures.comparison import comparison_figure, slice_animation
from odereg_core.experiments.figures.data import montage, pair_figure
from odereg_core.experiments.figures.encoder import (
    content_figure,
    landscape_figure,
    swap_figure,
)
from odereg_core.experiments.figures.motion import (
    draw_grid,
    folding_figure,
    move,
    resampling_figure,
    transform_animation,
    transform_figure,
)
from odereg_core.experiments.figures.ode import (
    Problem,
    descent_animation,
    descent_figure,
    descent_frame,
    descent_path,
    memory_figure,
    order_figure,
    work_figure,
)
from odereg_core.experiments.figures.results import error_figure
from odereg_core.experiments.figures.scans import scans_figure
from odereg_core.experiments.figures.solve import (
    scales_figure,
    theta_figure,
    trajectory_animation,
)
from odereg_core.experiments.figures.style import Animation
from odereg_core.experiments.figures.training import copies_figure, training_figure

__all__ = [
    "Animation",
    "Problem",
    "bars_figure",
    "comparison_figure",
    "content_figure",
    "copies_figure",
    "descent_animation",
    "descent_figure",
    "descent_frame",
    "descent_path",
    "draw_grid",
    "error_figure",
    "folding_figure",
    "landscape_figure",
    "memory_figure",
    "montage",
    "move",
    "order_figure",
    "pair_figure",
    "resampling_figure",
    "scales_figure",
    "scans_figure",
    "slice_animation",
    "steps_figure",
    "swap_figure",
    "theta_figure",
    "training_figure",
    "trajectory_animation",
    "transform_animation",
    "transform_figure",
    "work_figure",
]
