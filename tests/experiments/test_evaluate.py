"""The evaluation: perfect and absent registration, ANTs as the yardstick, tables."""

import dataclasses
import json
import math

import numpy as np
import pandas as pd
import pytest
import torch

from odereg_core.baselines.ants import AntsRigid
from odereg_core.baselines.base import Outcome
from odereg_core.errors import InputError
from odereg_core.experiments import evaluate as evaluation
from odereg_core.experiments.methods import METHODS, Method
from odereg_core.grid import Grid
from odereg_core.metrics import rmse_phi
from odereg_core.ode import SolverError
from odereg_core.pairs import pair_keys, simulate
from odereg_core.transforms import Rigid
from odereg_core.warp import warp


@pytest.fixture
def pair(tiny_cohort):
    name = tiny_cohort.names("test")[0]
    key = pair_keys([name], tiny_cohort.contrasts, "rigid", 1, 0)[0]
    return simulate(tiny_cohort, key, 3)


def test_the_true_map_scores_perfectly(pair):
    scores = evaluation.score(pair, pair.displacement)
    assert scores["rmse_phi_mm"] == 0 and scores["rmse_x"] == 0 and scores["dice"] == 1
    assert scores["folding"] == 0 and scores["start_mm"] > 5
    # A rotation changes no volume; differences of float32 millimetres say so to 1e-5 or so.
    assert scores["hausdorff95_mm"] == 0 and scores["log_jacobian_std"] < 1e-4


def test_no_registration_scores_the_start(pair):
    scores = evaluation.score(pair, torch.zeros_like(pair.displacement))
    assert scores["rmse_phi_mm"] == scores["start_mm"]
    assert scores["dice"] < 0.9 and scores["rmse_x"] > 0.05


def test_a_shifted_tumour_is_a_shift_away(pair):
    shift = torch.zeros_like(pair.displacement)
    shift[:, 0] = 2 * pair.grid.spacing[0]
    scores = evaluation.score(
        dataclasses.replace(
            pair, displacement=torch.zeros_like(shift), true_tumour=pair.moving_tumour
        ),
        shift,
    )
    assert scores["hausdorff95_mm"] == pytest.approx(2 * pair.grid.spacing[0], rel=0.01)
    assert scores["rmse_phi_mm"] == pytest.approx(2 * pair.grid.spacing[0])


def test_a_field_that_stretches_and_folds_is_told(pair):
    wave = pair.grid.points()[:, :1] / 10
    u = torch.cat([15 * torch.sin(wave), torch.zeros_like(wave), torch.zeros_like(wave)], 1)
    scores = evaluation.score(pair, u)
    assert 0.1 < scores["folding"] < 0.5 and scores["log_jacobian_std"] > 1


def test_without_a_tumour_its_scores_are_missing(pair):
    bare = dataclasses.replace(pair, moving_tumour=None, true_tumour=None)
    scores = evaluation.score(bare, pair.displacement)
    assert scores["dice"] is None and scores["hausdorff95_mm"] is None
    gone = dataclasses.replace(pair, true_tumour=torch.zeros_like(pair.true_tumour))
    scores = evaluation.score(gone, pair.displacement)  # two empty masks agree in nothing
    assert scores["dice"] is None and scores["hausdorff95_mm"] is None
    away = evaluation.score(pair, torch.full_like(pair.displacement, 500.0))
    assert away["dice"] == 0 and math.isnan(away["hausdorff95_mm"])


def test_samples_of_pairs_go_round_the_subjects():
    names = [f"s{i}" for i in range(5)]
    contrasts = ("t1", "t1ce", "t2", "flair")
    assert len(pair_keys(names, contrasts, "rigid")) == 60
    some = pair_keys(names, contrasts, "rigid", 5, seed=3)
    assert {key.subject for key in some} == set(names)
    assert some == pair_keys(names, contrasts, "rigid", 5, seed=3)


@pytest.mark.slow
def test_ants_recovers_small_motions_to_well_under_a_voxel():
    """Across contrasts, at 3 mm: the yardstick is run as well as it can be."""
    from data_prep import phantom
    from odereg_core.volume import normalise

    volumes = phantom.subject(7, 1, 3.0)
    grid = Grid(volumes["t1"].shape, (3.0, 3.0, 3.0))
    moving, fixed = (
        torch.from_numpy(normalise(volumes[c].astype(np.float32), volumes[c] > 0))[None, None]
        for c in ("t1", "t2")
    )
    theta = torch.tensor([[0.10, -0.08, 0.12, 4.0, -5.0, 3.0]])
    u = Rigid().displacement(theta, grid)
    outcome = AntsRigid()(moving, warp(fixed, u, grid), grid)
    again = AntsRigid()(moving, warp(fixed, u, grid), grid)
    assert float(rmse_phi(outcome.displacement, u, warp(fixed, u, grid) > 0)) < 1.0
    assert torch.equal(outcome.displacement, again.displacement)


def test_a_method_is_one_entry(tiny_cohort, tmp_path, monkeypatch):
    def load(models, device):
        return lambda moving, fixed, grid, contrasts: Outcome(torch.ones(1, 3, *grid.shape), nfe=3)

    monkeypatch.setitem(METHODS, "shift", Method("a shift", ("rigid",), load))
    table = evaluation.evaluate("shift", "rigid", tiny_cohort, tmp_path, count=3)
    assert list(table.columns) == evaluation.COLUMNS
    assert len(table) == 3 and (table.nfe == 3).all() and (table.seconds > 0).all()
    evaluation.write_results(table, tmp_path / "rigid" / "shift.csv", profile="tiny")
    merged = evaluation.merge(tmp_path)
    pd.testing.assert_frame_equal(merged, table, rtol=1e-4, check_dtype=False)
    with pytest.raises(InputError, match="this pair is there twice: rigid shift"):
        evaluation.merge(tmp_path, tmp_path / "rigid" / "shift.csv")
    with pytest.raises(InputError, match="the table's provenance goes there"):
        evaluation.write_table(merged, tmp_path / "all.json", {})
    assert not (tmp_path / "all.json").exists()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"rmse_phi_mm": "oops"}, "the column 'rmse_phi_mm' holds more than numbers"),
        ({"rmse_phi_mm": None}, r"a pair in it has no RMSE\(phi\)"),
        ({"task": "affine"}, "no task is called 'affine'"),
        ({"method": "magic"}, "no method is called 'magic'"),
        (None, "no RMSE"),
    ],
)
def test_what_is_no_results_table_is_refused(tmp_path, changes, words):
    line = dict.fromkeys(evaluation.COLUMNS, 1.0) | {
        "task": "rigid", "method": "none", "subject": "a", "moving": "t1", "fixed": "t2",
    }  # fmt: skip
    table = pd.DataFrame([line])
    table.to_csv(tmp_path / "good.csv", index=False)
    assert len(evaluation.read_results(tmp_path / "good.csv")) == 1
    bad = table[:0] if changes is None else table.assign(**changes)
    bad.to_csv(tmp_path / "bad.csv", index=False)
    with pytest.raises(InputError, match=f"bad.csv: .*{words}"):
        evaluation.read_results(tmp_path / "bad.csv")


@pytest.mark.parametrize("size", [[3.0], "three", None])
def test_voxels_of_no_size_are_refused(tmp_path, size):
    (tmp_path / "t.json").write_text(json.dumps({"rigid/none": {"voxel_mm": size}}))
    with pytest.raises(InputError, match="not of one size of voxels"):
        evaluation.voxel_mm(tmp_path / "t.csv")


def test_an_evaluation_goes_on_where_it_stopped(tiny_cohort, tmp_path, monkeypatch):
    calls, last = [], 3

    def load(models, device):
        def register(moving, fixed, grid, contrasts):
            calls.append(contrasts)
            if len(calls) == last:
                raise KeyboardInterrupt
            return Outcome(torch.ones(1, 3, *grid.shape), nfe=1)

        return register

    monkeypatch.setitem(METHODS, "shift", Method("a shift", ("rigid",), load))

    def run(seed=7):
        kept = tmp_path / ".shift.kept.json"
        return evaluation.evaluate(
            "shift", "rigid", tiny_cohort, tmp_path, count=4, seed=seed, kept=kept
        ).drop(columns="seconds")

    with pytest.raises(KeyboardInterrupt):
        run()
    last = 0
    resumed = run()
    assert len(calls) == 3 + 1 + 3  # the first call of each does not count; one pair was kept
    (tmp_path / ".shift.kept.json").unlink()
    pd.testing.assert_frame_equal(resumed, run(), check_exact=True)
    calls.clear()
    assert not run(seed=8).equals(resumed)
    assert len(calls) == 1 + 4
    (tmp_path / ".shift.kept.json").write_text('{"of": ')
    run()


def test_a_half_written_table_is_nobodys(tiny_cohort, tmp_path):
    table = evaluation.evaluate("none", "rigid", tiny_cohort, tmp_path, count=1)
    evaluation.write_results(table, tmp_path / "rigid" / "none.csv")
    (tmp_path / "rigid" / ".1.partial.none.csv").write_text("task,sub")
    assert len(evaluation.merge(tmp_path)) == 1
    assert list(evaluation.merged_facts(tmp_path)) == ["rigid/none"]


def test_tables_that_are_named_are_merged_and_no_others_beside_them(tiny_cohort, tmp_path):
    """A row that there is no more leaves its file behind."""
    table = evaluation.evaluate("none", "rigid", tiny_cohort, tmp_path, count=1)
    paths = [tmp_path / task / "none.csv" for task in ("hybrid", "rigid")]
    for path in (*paths, tmp_path / "deformable" / "none.csv"):
        evaluation.write_results(table.assign(task=path.parent.name, dice=0.5), path)
    assert evaluation.merge(*paths).task.tolist() == ["hybrid", "rigid"]
    assert list(evaluation.merged_facts(*paths)) == ["hybrid/none", "rigid/none"]
    assert len(evaluation.merge(tmp_path)) == 3


def test_scores_repeat_to_the_bit(tiny_cohort, tmp_path):
    tables = [
        evaluation.evaluate("ants_rigid", "rigid", tiny_cohort, tmp_path, count=1).drop(
            columns="seconds"
        )
        for _ in range(2)
    ]
    pd.testing.assert_frame_equal(*tables, check_exact=True)


def test_unknown_methods_and_tables_are_refused(tiny_cohort, tmp_path):
    with pytest.raises(InputError, match="no method 'magic'"):
        evaluation.evaluate("magic", "rigid", tiny_cohort, tmp_path)
    with pytest.raises(InputError, match="holds no results"):
        evaluation.merge(tmp_path)
    (tmp_path / "x.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="lacks the column 'task'"):
        evaluation.read_results(tmp_path / "x.csv")


def test_a_pair_whose_solve_does_not_end_is_left_as_it_was(tiny_cohort, tmp_path, monkeypatch):
    def load(models, device):
        def register(moving, fixed, grid, contrasts):
            raise SolverError("no end")

        return register

    monkeypatch.setitem(METHODS, "endless", Method("endless", ("rigid",), load))
    table = evaluation.evaluate("endless", "rigid", tiny_cohort, tmp_path, count=2)
    assert len(table) == 2 and (table.rmse_phi_mm == table.start_mm).all()
