"""ANTs as a baseline: a small hybrid motion."""

import numpy as np
import torch

from odereg_core.baselines import ants as baseline
from odereg_core.baselines.ants import AntsRigid, AntsSyn
from odereg_core.grid import Grid
from odereg_core.metrics import rmse_phi
from odereg_core.train.draws import smooth_field
from odereg_core.transforms import Rigid, compose
from odereg_core.warp import warp

GRID = Grid((32, 30, 26), (5.0, 5.0, 5.0))


def test_a_hybrid_outcome_is_ants_own_map_and_nears_the_truth(monkeypatch):
    """u warps as ANTs' own warped image shows, and its error lies well below
    the start."""
    inside = (GRID.points() / torch.tensor(GRID.extent).reshape(1, 3, 1, 1, 1)).norm(dim=1) < 0.4
    texture = torch.nn.functional.interpolate(
        torch.rand(1, 1, 8, 7, 6), size=GRID.shape, mode="trilinear"
    )
    moving = (0.2 + 0.8 * texture) * inside[:, None]
    theta = torch.tensor([[0.2, -0.1, 0.25, 8.0, -6.0, 5.0]])
    bend = smooth_field(1, 3.0, GRID, moving, torch.Generator().manual_seed(1))
    u = compose(Rigid(), theta, bend, GRID)
    fixed = warp(moving, u, GRID)
    runs, registration = [], baseline.ants.registration

    def noted(**options):
        runs.append(registration(**options))
        return runs[-1]

    monkeypatch.setattr(baseline.ants, "registration", noted)
    rigid = AntsRigid(iterations=(100, 50, 20), polish_iterations=20)
    found = AntsSyn(rigid, iterations=(20, 20, 10))(moving, fixed, GRID).displacement
    assert len(runs) == 3
    theirs = runs[-1]["warpedmovout"].numpy()
    ours = warp(moving, found, GRID)[0, 0].numpy()
    inner = (slice(2, -2),) * 3  # edges fade here, and end there
    assert np.abs(ours - theirs)[inner].mean() < 2e-3
    brain = fixed > 0
    start, error = (float(rmse_phi(v, u, brain)) for v in (0 * u, found))
    assert start > 10 and error < 0.35 * start
