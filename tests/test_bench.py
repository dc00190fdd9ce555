"""The benchmarks run, and say what they mean; what they measure is for a quiet machine to say."""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from odereg_core import bench
from odereg_core.bench import arithmetic, cost, warned
from odereg_core.cohort import Cohort
from odereg_core.pairs import pair_keys, simulate
from odereg_core.profiles import load_profile
from odereg_core.registration import load_cascade


def test_the_warp_is_measured_against_grid_sample_and_a_copy():
    table = bench.load("warp")("cpu", shape=(24, 20, 16), repetitions=3)
    assert list(table.columns) == bench.COLUMNS
    rows = table.set_index("measure")
    times = [name for name, row in rows.iterrows() if row.unit == "ms"]
    assert len(times) == 3 and all("24×20×16" in name for name in times)
    assert (rows.value[times] > 0).all() and rows.value[times].max() < 1000
    (claim,) = (name for name in rows.index if "grid_sample" in name and name not in times)
    assert rows.claim[claim] == "<= 1.3"
    assert rows.holds[claim] == (rows.value[claim] <= 1.3)
    # The two computed the same thing.
    assert rows.holds["largest difference of images"]


def test_works_take_turns():
    turns = []
    works = {name: lambda name=name: turns.append(name) for name in "abc"}
    seconds = bench.interleaved(works, 3, "cpu")
    assert {name: len(times) for name, times in seconds.items()} == dict.fromkeys("abc", 3)
    assert [sorted(turns[i : i + 3]) for i in range(0, 12, 3)] == [["a", "b", "c"]] * 4
    assert turns[3:6] == turns[6:9][::-1]
    assert bench.ratio([2.0, 9.0, 4.0], [1.0, 1.0, 4.0]) == 2.0


def test_warnings_are_counted_apart_for_lost_pairs(tiny_cohort, monkeypatch, capsys):
    """A registration that answers with the truth every other time."""
    cohort = Cohort(tiny_cohort.folder)
    keys = pair_keys(cohort.names("test"), cohort.contrasts, "rigid", 4)
    pairs = [simulate(cohort, key, seed=7) for key in keys]
    answers = iter(enumerate(pairs))

    def register(moving, fixed, transform, refine):
        number, pair = next(answers)
        assert transform == "rigid" and np.allclose(moving.centre, 0)
        truth = pair.displacement[0].numpy()
        warnings = [] if number == 0 else ["Odd."]
        return SimpleNamespace(displacement=truth * (1 - number % 2), report={"warnings": warnings})

    monkeypatch.setattr(warned, "register", register)
    assert warned.main([str(tiny_cohort.folder), "--pairs", "4"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "registered within two voxels: warned of 1 of 2"
    assert said[1] == "lost: warned of 2 of 2"
    pair = pairs[1]
    inside = pair.brain[0, 0].numpy()
    moved = np.sqrt((pair.displacement[0].numpy()[:, inside] ** 2).sum(0).mean())
    assert any(f"{moved:.2f} mm: Odd." in line for line in said[2:])


def test_an_unknown_benchmark_is_refused(monkeypatch, capsys):
    from odereg_core.bench.__main__ import main

    monkeypatch.setattr("sys.argv", ["bench", "magic"])
    with pytest.raises(SystemExit):
        main()
    assert "no benchmark 'magic'; there are: warp, ode" in capsys.readouterr().err


def test_a_claim_that_does_not_hold_is_said(monkeypatch, capsys):
    import pandas as pd

    from odereg_core.bench import __main__ as program

    rows = [("one", 1.0, "ms", "", None), ("two", 2.0, "", "<= 1", False)]
    table = pd.DataFrame(rows, columns=bench.COLUMNS)
    monkeypatch.setattr(program, "load", lambda name: lambda device: table)
    monkeypatch.setattr("sys.argv", ["bench", "warp", "--device", "cpu"])
    assert program.main() == 1
    shown = capsys.readouterr()
    assert "does not hold: warp: two" in shown.err and "one" in shown.out and "CPU" in shown.out


def test_the_cost_of_trainings_is_extrapolated_from_real_steps(tiny_profile):
    profile = load_profile(tiny_profile)
    only = ("encoder", "rigid:1", "rigid:2", "rigid:pair")
    table = cost.cost(profile, "cpu", 1, only).set_index("part")
    assert list(table.index) == list(only)
    assert table.steps.tolist()[:3] == [7, 5, 4] and (table.seconds > 0).all()
    trained = table.drop("rigid:pair")
    assert trained.hours.tolist() == pytest.approx(
        (trained.seconds * trained.steps / 3600).tolist()
    )
    assert (table["peak GiB"] > 0.1).all()


def test_every_training_of_a_profile_has_its_cost(tiny_profile, capsys):
    profile = load_profile(tiny_profile)
    known = cost.parts(profile)
    trained = {**profile.models, **profile.encoders, **profile.baselines}
    assert {name.split(":")[0] for name in known} == set(trained)
    staged = {**profile.models, **profile.baselines}
    stages = sum(len(section.stages) for section in staged.values())
    assert len(known) == len(profile.encoders) + stages + len(profile.models)
    only = ["encoder_single", "vm:2", "vm_i2i:1", "rcn:1"]
    table = cost.cost(profile, "cpu", 1, only).set_index("part")
    assert list(table.index) == only and (table.hours > 0).all()
    assert table.steps.tolist() == [120, 5, 20, 40]
    command = ["--profile", str(tiny_profile), "--device", "cpu", "--steps", "1", "--only"]
    assert cost.main([*command, "vm:2, magic"]) == 2
    assert "error: no part 'magic' of tiny; there are: encoder" in capsys.readouterr().err
    assert cost.main([*command, "vm:2"]) == 0
    assert " hours for these parts; profile tiny" in capsys.readouterr().out


def test_the_stand_in_fills_about_a_brain():
    images = cost.subject(load_profile("smoke").working_grid).images
    litres = float((images[0] > 0).sum()) * 6**3 / 1e6
    assert litres == pytest.approx(4 / 3 * 3.14159 * 0.70 * 0.85 * 0.65, rel=0.05)
    assert float(images.max()) <= 1 and images.shape == (4, 40, 40, 28)


def test_arithmetic_moves_a_map_by_as_much_as_its_width(
    tiny_cohort, untrained, monkeypatch, capsys
):
    def load(name, files, device):
        torch.manual_seed(3)
        model = load_cascade(name, untrained / f"{name}.safetensors", device)
        for parameter in model.parameters():  # a map that is not the identity
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
        return model

    monkeypatch.setattr(arithmetic, "load_cascade", load)
    monkeypatch.setattr(arithmetic, "elsewhere", lambda case, work, *rest: work(*rest))
    assert arithmetic.main([str(tiny_cohort.folder), "--pairs", "2"]) == 0
    torch.set_num_threads(1)
    assert "bfloat16 networks" in capsys.readouterr().out
    table = arithmetic.arithmetic(tiny_cohort.folder, 2).set_index(["case", "model"])
    torch.set_num_threads(1)
    worst = table.worst_rms_mm.unstack()
    assert sorted(worst.columns) == sorted(arithmetic.MODELS)
    assert (worst.loc["float64"] > 0).all() and (worst.loc["float64"] < 1e-2).all()
    assert (worst.loc["bfloat16 networks"] > 3 * worst.loc["float64"]).all()
    assert (table.largest_mm >= table.worst_rms_mm).all()
    assert (table.worst_rms_mm >= table.median_rms_mm).all()


@pytest.mark.parametrize(("capability", "left_out"), [("AVX512", []), ("AVX2", ["AVX-512"])])
def test_a_cpu_is_compared_without_instructions_only_where_it_has_them(
    monkeypatch, capability, left_out
):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    missing = arithmetic.CASES.keys() - arithmetic.possible().keys()
    assert list(missing) == [f"without {name}" for name in left_out]


def test_maps_are_compared_by_distances():
    one = torch.tensor([[0.0, 3.0], [0.0, 4.0], [0.0, 0.0]])
    assert arithmetic.apart(one, torch.zeros(3, 2)) == pytest.approx((12.5**0.5, 5.0))


def test_a_case_of_arithmetic_has_its_own_environment():
    case = arithmetic.Case(environment={"ODEREG_CASE": "narrow"})
    assert arithmetic.elsewhere(case, os.getenv, "ODEREG_CASE") == "narrow"
    assert os.getenv("ODEREG_CASE") is None
