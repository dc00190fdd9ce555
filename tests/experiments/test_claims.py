"""The verdicts: on the paper's own numbers, on their opposites, and on nothing."""

import dataclasses

import pandas as pd
import pytest

from odereg_core.experiments import claims
from odereg_core.experiments.kept import find_kept
from odereg_core.experiments.tables import paper_table


def paper_evidence():
    """Table 1 as printed, and a Fig. 4 as its text describes it."""
    table = paper_table().xs("mean", axis=1, level=1)[claims.MEANS]
    frame = {m: [1.0] * 5 for m in claims.MEANS}
    fig4a = pd.DataFrame(
        frame | {"rmse_phi_mm": [1.5, 1.6, 1.9, 1.7, 1.8]},
        index=["full", "mi", "no_multiscale", "no_self", "no_multislice"],
    )
    fig4b = pd.DataFrame(
        frame | {"rmse_phi_mm": [9.0, 7.0, 5.0, 4.0, 3.5]},
        index=["steps_1", "steps_2", "steps_4", "steps_8", "steps_16"],
    )
    fig4c = table.loc[["rigid+deformable"]].copy()
    memory = pd.DataFrame({"aca": [10, 11], "backprop": [20, 40]}, index=[4, 8])
    return claims.Evidence(table, fig4a, fig4b, fig4c, memory=memory)


def test_on_the_papers_own_numbers_its_claims_hold():
    printed = claims.verdicts(paper_evidence()).set_index("claim")
    outcome = printed["verdict"]
    assert (outcome != "not measured").all()
    assert (outcome == "holds").all()
    line = printed.loc[printed["shown in"] == "Table 1, rigid"].iloc[0]
    assert line["numbers"] == "MS-ODENet(R) 3.57 mm; ANTs 7.28, ANTs+I2I 7.54 mm"
    line = printed.loc[printed["shown in"] == "Table 1, time"].iloc[0]
    assert line["numbers"].endswith("rigid 31.2, deformable 49.0, rigid+deformable 51.0")


def test_a_claim_that_fails_is_reported_as_failing():
    e = paper_evidence()
    e.table1.loc[("rigid", "MS-ODENet(R)"), "rmse_phi_mm"] = 7.4
    assert claims.rigid_beats_classical(e).outcome == "fails"
    e.table1.loc[("deformable", "MS-ODENet(B)"), "rmse_phi_mm"] = 1.15  # 1.06 is the best of ANTs
    assert claims.deformable_as_good_as_classical(e).outcome == "holds"
    e.table1.loc[("deformable", "MS-ODENet(D)"), "rmse_phi_mm"] = 2.00
    assert claims.deformable_as_good_as_classical(e).outcome == "fails"
    assert claims.deformable_beats_learned(e).outcome == "fails"
    e.table1.loc[("rigid+deformable", "MS-ODENet(R+D)"), "seconds"] = 80
    assert claims.always_faster(e).outcome == "fails"
    e.fig4b.loc["steps_16", "rmse_phi_mm"] = 4.1
    assert claims.steps_help(e).outcome == "fails"
    e.fig4a.loc["mi", "rmse_phi_mm"] = 1.4
    assert claims.every_part_helps(e).outcome == "fails"
    assert claims.ants_suffers_from_rotation(e).outcome == "holds"
    e.table1.loc[("rigid+deformable", "ANTs"), "rmse_phi_mm"] = 1.3
    assert claims.ants_suffers_from_rotation(e).outcome == "fails"


def test_rows_beyond_the_paper_decide_nothing():
    e = paper_evidence()
    for row in ("no registration", "Adam on Eq. 4 (R+B)", "refined MS-ODENet(R+B)"):
        error = 0.1 if row.startswith("refined") else 25.0
        e.fig4c.loc[("rigid+deformable", row), "rmse_phi_mm"] = error
    assert claims.rcn_generalises_poorly(e).outcome == "holds"
    assert claims.unseen_beats_all(e).outcome == "holds"
    e.fig4c.loc[("rigid+deformable", "VM*"), "rmse_phi_mm"] = 25.0
    assert claims.rcn_generalises_poorly(e).outcome == "fails"


def test_of_nothing_nothing_is_said():
    table = claims.verdicts(claims.evidence(None))
    assert (table["verdict"] == "not measured").all()


@pytest.mark.parametrize("claim", claims.CLAIMS[:-1], ids=lambda c: c.judge.__name__)
def test_a_claim_is_judged_when_all_rows_it_names_were_run(claim):
    """Without any one row a claim either names it and is not measured, or is judged as before."""
    e = paper_evidence()
    assert claim.judge(e).outcome == "holds"
    outcomes = []
    for name in ("table1", "fig4a", "fig4b", "fig4c"):
        table = getattr(e, name)
        for row in table.index:
            less = dataclasses.replace(e, **{name: table.drop(row)})
            outcomes.append(claim.judge(less).outcome)
    rows = {
        "rigid_beats_classical": 3, "deformable_as_good_as_classical": 4,
        "hybrid_beats_classical": 4, "always_faster": 11, "ants_suffers_from_rotation": 2,
        "deformable_beats_learned": 4, "hybrid_beats_learned": 5, "every_part_helps": 5,
        "ablated_beat_learned": 7, "steps_help": 5, "unseen_beats_all": 7,
        "rcn_generalises_poorly": 7,
    }  # fmt: skip
    assert outcomes.count("not measured") == rows[claim.judge.__name__]
    assert set(outcomes) == {"holds", "not measured"}


def test_on_the_kept_tables_all_claims_but_one_hold():
    tables = [find_kept(name, "demo") for name in ("pairs", "4a", "4b", "4c")]
    coarser = tables[1].voxel_mm / tables[0].voxel_mm
    found = claims.evidence(*(table.table for table in tables), coarser, paper_evidence().memory)
    verdict = claims.verdicts(found).set_index("shown in")["verdict"]
    assert verdict[verdict != "holds"].to_dict() == {"Fig. 4a": "fails"}


def test_on_different_grids_only_a_win_in_spite_of_larger_voxels_counts():
    e = paper_evidence()

    def outcome(coarser):
        apart = claims.Evidence(e.table1, e.fig4a, e.fig4b, e.fig4c, coarser=coarser)
        return claims.ablated_beat_learned(apart).outcome

    assert [outcome(c) for c in (0.5, 1.0, 2.0)] == ["not measured", "holds", "holds"]
    assert outcome(None) == "not measured"  # hours of training beside seconds
    e.fig4a.loc["no_multiscale", "rmse_phi_mm"] = 9.0
    assert [outcome(c) for c in (0.5, 1.0, 2.0)] == ["not measured", "fails", "not measured"]


def test_evidence_comes_from_tidy_tables():
    rows = pd.DataFrame(
        [
            {"task": "rigid", "method": m, "rmse_phi_mm": e, "rmse_x": 0, "dice": 0, "seconds": s}
            for m, e, s in (
                ("ants_rigid", 4.0, 9.0), ("ants_rigid", 6.0, 11.0), ("msodenet_r", 2.0, 1.0),
                ("ants_i2i_rigid", 7.0, 12.0),
            )
        ]
    )  # fmt: skip
    e = claims.evidence(rows)
    assert e.table1.loc[("rigid", "ANTs"), "rmse_phi_mm"] == 5
    assert claims.rigid_beats_classical(e) == claims.Verdict(
        "holds", "MS-ODENet(R) 2.00 mm; ANTs 5.00, ANTs+I2I 7.00 mm"
    )
    assert claims.always_faster(e).outcome == "not measured"  # two tasks are missing
    assert claims.hybrid_beats_classical(e).outcome == "not measured"
    ablated = rows.iloc[:2].assign(variant=["full", "no_newton"], rmse_phi_mm=[1.5, 1.0])
    assert list(claims.evidence(None, ablated).fig4a.index) == ["full"]  # the other is ours alone
