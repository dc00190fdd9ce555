"""What a run tells of its trainings."""

import math

import pytest

from odereg_core.experiments.run import Run
from odereg_core.files import read_json, write_json
from odereg_core.weights import HERE


def record(samples, seconds, device, curve, **more):
    best = min(error for _, error in curve)
    return {
        "samples": samples, "seconds": seconds, "device": device, "steps": curve[-1][0],
        "validation_curve": curve, "validation_rmse_phi_mm": best, **more,
    }  # fmt: skip


def test_trainings_count_all_runs_that_weights_came_through(tmp_path):
    write_json(tmp_path / "prepared" / "cohort.json", {})
    first = record(1000, 1800, "a CPU", [[10, 4.0], [20, 3.0]])
    last = record(1500, 3600, "a GPU", [[10, 2.5], [30, 2.6], [40, 2.0]], before=first)
    write_json(tmp_path / "models" / "rigid.json", last)
    write_json(tmp_path / "models" / "vm.json", record(7, 360, "a CPU", [[40, 3.0]]))
    found = Run("smoke", tmp_path).trainings()
    assert list(found.index) == ["rigid", "vm"]
    assert found.loc["rigid"].tolist() == [1500, 1.5, 2.0, 2.5, "a CPU; then a GPU"]
    assert found.loc["vm"].tolist()[:3] == [7, 0.1, 3.0]
    assert math.isnan(found.loc["vm"].iloc[3])  # nothing was validated before three quarters


@pytest.mark.parametrize("path", sorted(HERE.glob("*.json")), ids=lambda path: path.stem)
def test_shipped_weights_have_seen_more_than_those_they_started_from(path):
    facts = read_json(path)
    own = sum(stage["steps"] * stage["batch"] for stage in facts["settings"].get("stages", ()))
    if before := facts.get("before"):
        assert facts["samples"] >= before["samples"] and facts["seconds"] > 0
        assert facts["samples"] == pytest.approx(before["samples"] + own, rel=0.001)
    elif own:
        assert facts["samples"] >= own


def test_the_learned_baselines_have_seen_as_much_as_ours():
    """Of their task; RCN as much as both stages of ours together."""
    seen = {path.stem: read_json(path)["samples"] for path in HERE.glob("*.json")}
    assert min(seen["vm"], seen["vm_i2i"], seen["vm_told"]) >= max(seen["bspline"], seen["dense"])
    assert seen["rcn"] >= seen["rigid"] + max(seen["bspline"], seen["dense"])
