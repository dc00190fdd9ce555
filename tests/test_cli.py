"""The command line from end to end: what each command writes is what the next one reads."""

import json

import pandas as pd
import pytest
from typer.testing import CliRunner

from odereg_core import cli
from odereg_core.errors import InputError
from odereg_core.experiments import kept
from odereg_core.files import load_tensors
from odereg_core.networks.disentangle import Disentangler
from odereg_core.profiles import load_profile
from odereg_core.seen import KEY
from odereg_core.weights import load_model, save_model


def odereg(*arguments):
    """What a command says; whatever it raises is raised here."""
    answer = CliRunner().invoke(cli.app, list(map(str, arguments)))
    if answer.exception:
        raise answer.exception
    return answer.output


@pytest.fixture
def run(tiny_cohort, tiny_profile, untrained, tmp_path):
    """A run with two rows of two tasks."""
    for task, methods in (("rigid", "none,msodenet_r"), ("deformable", "none")):
        odereg(
            "evaluate", "--profile", tiny_profile, "--cohort", tiny_cohort.folder, "--task", task,
            "--models", untrained, "--methods", methods, "--pairs", 3, "--device", "cpu",
            "--out", tmp_path / "results" / task,
        )  # fmt: skip
    return tmp_path


def test_results_go_from_evaluation_to_table_1_and_into_the_repository(run, monkeypatch):
    monkeypatch.setattr(kept, "KEPT", run / "kept")
    results = run / "results"
    odereg("merge", *results.glob("*/*.csv"), "--out", results / "pairs.csv")
    merged = pd.read_csv(results / "pairs.csv")
    parts = {path: pd.read_csv(path) for path in results.glob("*/*.csv")}
    assert len(merged) == 9 == sum(map(len, parts.values()))
    for path, part in parts.items():
        of = (merged.task == path.parent.name) & (merged.method == path.stem)
        mine = merged[of].reset_index(drop=True)
        pd.testing.assert_frame_equal(mine, part, check_dtype=False)
    facts = json.loads((results / "pairs.json").read_text())
    assert set(facts) == {"rigid/none", "rigid/msodenet_r", "deformable/none"}
    assert facts["rigid/msodenet_r"]["weights"] and not facts["rigid/none"]["weights"]

    assert "table1.csv" in odereg("table", results / "pairs.csv", "--out", run / "table")
    mean = parts[results / "rigid" / "none.csv"].rmse_phi_mm.mean()
    for name in ("table1.tex", "table1.html"):
        assert f"{mean:.2f}" in (run / "table" / name).read_text()
    assert (run / "table" / "error.png").read_bytes().startswith(b"\x89PNG")

    assert odereg("keep", run, "--out", run / "kept" / "demo").startswith("pairs")
    found = kept.find_kept("pairs", "smoke")
    assert found and found.voxel_mm == 6.0 and len(found.table) == 9


def test_a_table_of_a_method_that_is_none_is_refused(run):
    path = run / "results" / "rigid" / "none.csv"
    path.write_text(path.read_text().replace(",none,", ",magic,"))
    for command in ("table", "merge"):
        with pytest.raises(InputError, match=r"none\.csv: no method is called 'magic'"):
            odereg(command, path, "--out", run / "table")
    assert not (run / "table").exists()


def test_the_variants_of_fig_4b_are_written_evaluated_and_collected(
    tiny_cohort, tiny_profile, untrained, tmp_path
):
    """Without their training, which has tests of its own: by untrained weights."""
    for steps in (1, 2, 4, 8, 16):
        folder = tmp_path / f"steps_{steps}"
        odereg(
            "ablation", f"4b/steps_{steps}", "--profile", tiny_profile, "--out", folder / "p.yaml"
        )
        section = load_profile(folder / "p.yaml").models["rigid"]
        assert section.solvers == (f"F({1 / steps:g})",) and section.time == 1
        odereg(
            "evaluate", "--profile", folder / "p.yaml", "--cohort", tiny_cohort.folder,
            "--models", untrained, "--methods", "msodenet_r", "--pairs", 2, "--device", "cpu",
            "--out", folder / "results",
        )  # fmt: skip
        (folder / "models").mkdir()
        record = {"steps": steps, "seconds": 1.0}
        (folder / "models" / "rigid.json").write_text(json.dumps(record))
    odereg("collect", "4b", tmp_path, "--out", tmp_path / "4b.csv")
    table = pd.read_csv(tmp_path / "4b.csv")
    assert table.groupby("variant").size().tolist() == [2] * 5
    facts = json.loads((tmp_path / "4b.json").read_text())
    assert facts["steps_16"]["training"]["rigid"]["steps"] == 16


def test_calibration_adds_what_was_seen_and_leaves_the_weights(tiny_cohort, untrained, tmp_path):
    weights = tmp_path / "rigid.safetensors"
    save_model(weights, load_model(untrained / "rigid.safetensors"))
    weights.with_suffix(".json").write_bytes((untrained / "rigid.json").read_bytes())
    tensors, metadata = load_tensors(weights)
    assert KEY not in metadata
    said = odereg("calibrate", weights, "--cohort", tiny_cohort.folder, "--device", "cpu")
    again, noted = load_tensors(weights)
    assert {k: v for k, v in noted.items() if k != KEY} == metadata
    assert all(tensors[k].equal(again[k]) for k in tensors) and len(tensors) == len(again)
    ranges = json.loads(noted[KEY])["ranges"]
    assert all(low <= high for low, high in ranges.values())
    assert [line.split()[0] for line in said.splitlines()] == list(ranges)


def test_encoders_are_measured_with_provenance(tiny_cohort, tiny_profile, tmp_path):
    network = load_profile(tiny_profile).encoders["encoder"].network
    save_model(tmp_path / "encoder.safetensors", Disentangler(tiny_cohort.contrasts, **network))
    odereg(
        "encoders", "--cohort", tiny_cohort.folder, "--models", tmp_path, "--out", tmp_path / "out",
        "--profile", tiny_profile, "--pairs", 1, "--device", "cpu",
    )  # fmt: skip
    for name in ("curves", "basins", "translation"):
        assert len(pd.read_csv(tmp_path / "out" / f"{name}.csv"))
        facts = json.loads((tmp_path / "out" / f"{name}.json").read_text())
        assert facts["profile"] == "tiny" and facts["pairs"] == 1 and facts["device"]


def test_info_names_everything_that_can_be_asked_for(untrained):
    said = odereg("info")
    for name in ("smoke", "demo", "paper", "rigid", "ants_syn", "4b/steps_16"):
        assert name in said
    described = json.loads(odereg("info", untrained / "rigid.safetensors"))
    assert described["transform"] == "rigid"
