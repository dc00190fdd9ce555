"""The search for ANTs' settings: candidates differ, hold what is used, and are ranked by error."""

import dataclasses

import pandas as pd
import torch

from odereg_core.baselines.ants import AntsRigid, AntsSyn
from odereg_core.baselines.base import Outcome
from odereg_core.experiments import search
from odereg_core.experiments.methods import METHODS
from odereg_core.networks.disentangle import Disentangler


def test_candidates_differ_and_the_rows_of_table_1_are_among_them(tmp_path):
    rows = {("ANTs", "rigid"): "ants_rigid", ("ANTs", "deformable"): "ants_syn"}
    for key, candidates in search.CANDIDATES.items():
        settings = [dataclasses.astuple(c) for c in candidates.values()]
        assert len(set(settings)) == len(settings), key
        kind = AntsRigid if key[1] == "rigid" else AntsSyn
        assert all(type(c) is kind for c in candidates.values())
        if key in rows:
            assert METHODS[rows[key]].load(tmp_path, "cpu") in candidates.values()


def test_every_candidate_runs_on_the_same_validation_pairs(tiny_cohort, tmp_path, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Off:
        mm: float

        def __call__(self, moving, fixed, grid, contrasts):
            return Outcome(torch.full((1, 3, *grid.shape), self.mm))

    candidates = {
        ("ANTs", "rigid"): {"far": Off(90.0), "near": Off(0.0)},
        ("ANTs+I2I", "deformable"): {"nearest": Off(0.0), "farther": Off(9.0)},
    }
    monkeypatch.setattr(search, "CANDIDATES", candidates)
    encoder = Disentangler(tiny_cohort.contrasts, width=4, blocks=1)
    found = search.search(tiny_cohort, encoder, 2, seed=3, kept=tmp_path)
    monkeypatch.setattr(Off, "__call__", None)  # what was done is not done again
    again = search.search(tiny_cohort, encoder, 2, seed=3, kept=tmp_path)
    pd.testing.assert_frame_equal(found, again)
    assert set(found["subject"]) <= set(tiny_cohort.names("val"))
    pairs = found.groupby(["task", "method"])[["moving", "fixed"]].agg(tuple)
    assert pairs.loc["rigid"].drop_duplicates().shape[0] == 1
    ranked = search.ranking(found, voxel_mm=6.0)
    assert [name for *_, name in ranked.index] == ["near", "far", "nearest", "farther"]
    line = ranked.loc[("deformable", "ANTs+I2I", "nearest")]
    same = found[(found["method"] == "nearest")]
    assert line["mean"] == same["start_mm"].mean()
    assert isinstance(ranked, pd.DataFrame) and line["success"] == 100.0
