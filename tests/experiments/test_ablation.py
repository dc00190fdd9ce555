"""The ablations of Fig. 4: what each profile changes, and that a figure's results come together."""

import json

import pandas as pd
import pytest
import yaml

from odereg_core.errors import InputError
from odereg_core.experiments import ablation
from odereg_core.experiments.evaluate import COLUMNS
from odereg_core.experiments.methods import METHODS
from odereg_core.profiles import load_profile


def profile_of(figure, name, base, folder):
    path = folder / f"{name}.yaml"
    ablation.write_profile(ablation.find(figure, name), base, path)
    return load_profile(path)


@pytest.mark.parametrize("base", ["smoke", "demo", "paper"])
@pytest.mark.parametrize("variant", list(ablation.variants()), ids=lambda v: f"{v.figure}/{v.name}")
def test_every_variant_is_a_whole_profile(base, variant, tmp_path):
    profile = profile_of(variant.figure, variant.name, base, tmp_path)
    assert profile.name == f"{base}-{variant.figure}-{variant.name}"
    assert set(METHODS[variant.method].models) <= {*profile.models}
    assert variant.task in METHODS[variant.method].tasks
    for name in METHODS[variant.method].models:
        section = profile.models[name]
        profile.working_grid.pyramid(len(section.solvers))
        for stage in section.stages:
            assert stage.scales <= len(section.solvers)
            # Half of a batch are pairs of two contrasts; the content loss needs one.
            assert stage.objective == "velocity" or stage.batch >= 2


def test_what_fig_4a_leaves_out(tmp_path):
    full, mi, one, unsupervised, single, untold = (
        profile_of("4a", name, "demo", tmp_path)
        for name in ("full", "mi", "no_multiscale", "no_self", "no_multislice", "no_newton")
    )
    assert full.models["rigid"].network["seen"] and not untold.models["rigid"].network["seen"]
    assert untold.models["bspline"].network["newton"] == 0
    for name in ("rigid", "bspline"):
        assert full.models[name].similarity == "content" and mi.models[name].similarity == "mi"
        assert full.models[name].stages == mi.models[name].stages
        assert len(full.models[name].solvers) == 3 and len(one.models[name].solvers) == 1
        assert full.models[name].lambda_self == 1 and unsupervised.models[name].lambda_self == 0
        assert all(s.objective == "losses" for s in unsupervised.models[name].stages)
        assert single.models[name] == full.models[name]
        assert untold.models[name].stages == full.models[name].stages
    assert full.encoders["encoder"].network["slices"] == 5
    assert single.encoders["encoder"].network["slices"] == 1
    assert full.grid.spacing == 6 and full.evaluation == load_profile("demo").evaluation
    trained = {v.name: v.models for v in ablation.variants("4a")}
    assert "encoder" in trained["full"] and "encoder" not in trained["mi"]
    assert ablation.find("4a", "no_multislice").encoder == ("4a", "no_multislice")
    assert ablation.find("4b", "steps_1").encoder == ("4a", "full")


def test_fig_4b_differs_in_the_steps_alone(tmp_path):
    sections = [
        profile_of("4b", f"steps_{n}", "demo", tmp_path).models["rigid"] for n in (1, 2, 4, 8, 16)
    ]
    assert [s.solvers for s in sections] == [
        ("F(1)",), ("F(0.5)",), ("F(0.25)",), ("F(0.125)",), ("F(0.0625)",),
    ]  # fmt: skip
    assert {s.time for s in sections} == {1.0}
    assert all(s.stages == sections[0].stages for s in sections)


def test_a_file_of_ones_own_is_extended_where_it_lies(tmp_path):
    (tmp_path / "a").mkdir()
    mine = tmp_path / "a" / "mine.yaml"
    mine.write_text("extends: smoke\nname: mine\nevaluation: {pairs: 3}\n")
    profile = profile_of("4b", "steps_2", str(mine), tmp_path)
    assert profile.evaluation.pairs == 3 and profile.grid == load_profile("smoke").grid


def test_an_unknown_ablation_is_refused():
    with pytest.raises(InputError, match="no ablation '4a/magic'; there are: 4a/full"):
        ablation.find("4a", "magic")


def test_results_of_a_figure_come_together(tmp_path):
    for i, variant in enumerate(ablation.variants("4b")):
        folder = tmp_path / variant.name
        for path in ("results", "models"):
            (folder / path).mkdir(parents=True)
        row = dict.fromkeys(COLUMNS, 0.0) | {"task": "rigid", "method": "msodenet_r"}
        row |= {"rmse_phi_mm": float(i)}
        pd.DataFrame([row]).to_csv(folder / "results" / "msodenet_r.csv", index=False)
        (folder / "results" / "msodenet_r.json").write_text('{"pairs": 1}')
        (folder / "models" / "rigid.json").write_text(json.dumps({"steps": i, "seconds": 2.0}))
    table, facts = ablation.collect(tmp_path, "4b")
    assert table.groupby("variant", sort=False).rmse_phi_mm.first().tolist() == [0, 1, 2, 3, 4]
    assert facts["steps_4"]["title"] == "4" and facts["steps_4"]["pairs"] == 1
    assert facts["steps_4"]["training"]["rigid"]["steps"] == 2
    (tmp_path / "steps_8" / "results" / "msodenet_r.csv").unlink()
    with pytest.raises(InputError, match="steps_8"):
        ablation.collect(tmp_path, "4b")


def test_the_written_profile_says_only_what_differs(tmp_path):
    path = tmp_path / "p.yaml"
    ablation.write_profile(ablation.find("4b", "steps_1"), "demo", path)
    written = yaml.safe_load(path.read_text())
    assert written["extends"] == "demo" and set(written["models"]) == {"rigid"}
