"""Landscapes and translations: closed forms on hand-made curves, a measure that must be right."""

import json

import numpy as np
import pandas as pd
import pytest
import torch

from odereg_core.experiments.encoders import measure
from odereg_core.experiments.landscape import basins, curves, landscape, landscape_keys, summary
from odereg_core.networks.disentangle import Disentangler
from odereg_core.pairs import PairKey


def hand_made(subject, values, offsets=(-2, -1, 0, 1, 2)):
    where = {"subject": subject, "moving": "t1", "fixed": "t2", "way": "shift", "axis": "x"}
    rows = [
        where | {"offset": o, "measure": "m", "value": v}
        for o, v in zip(offsets, values, strict=False)
    ]
    return pd.DataFrame(rows)


def test_a_basin_reaches_as_far_as_the_nearer_side_rises():
    table = pd.concat([hand_made("a", [9, 4, 1, 2, 8]), hand_made("b", [9, 1, 2, 8, 3])])
    found = basins(table).set_index("subject")
    assert (found.loc["a", "minimum"], found.loc["a", "basin"]) == (0, 2)
    assert (found.loc["b", "minimum"], found.loc["b", "basin"]) == (-1, 1)
    line = summary(found.reset_index(), voxel_mm=0.5).iloc[0]
    assert line["minimum within 2° / a voxel, %"] == 50 and line["curves"] == 2


@pytest.mark.parametrize(
    ("values", "minimum", "basin", "home"),
    [
        ([40, 30, 20, 10, 0], 40, 40, 0),  # falls all the way past alignment
        ([9, 2, 7, 1, 8], 10, 0, 0),  # does not rise from 10° as far as to alignment
        ([40, 0, 10, 20, 40], 0, 40, 100),
    ],
)
def test_only_who_comes_to_alignment_is_home(values, minimum, basin, home):
    table = hand_made("a", values, offsets=(-40, 0, 5, 10, 40)).assign(way="rotation")
    found = basins(table)
    assert found[["minimum", "basin"]].values.tolist() == [[minimum, basin]]
    line = summary(found, voxel_mm=3.0).iloc[0]
    assert line["home from 40° / 20 mm, %"] == home


def test_curves_are_quartiles_of_curves_scaled_one_by_one():
    table = pd.concat([hand_made(s, [k, 0, k]) for s, k in (("a", 2), ("b", 30))])
    table = pd.concat([table, hand_made("c", [4, 0, 3])])
    table = table[table.offset < 1]  # offsets -2, -1, 0 were given
    found = curves(table).set_index("offset")
    assert found.loc[-2, ["low", "median", "high"]].tolist() == [1, 1, 1]
    assert found.loc[0, "low"] == pytest.approx(np.quantile([1, 1, 0.75], 0.25))


def test_a_measure_of_one_contrast_is_lowest_at_alignment(tiny_cohort):
    def mse(a, b, rng=None):
        return (a - b).square().flatten(1).mean(1)

    name = tiny_cohort.names("test")[0]
    keys = [PairKey("rigid", name, c, c) for c in tiny_cohort.contrasts[:2]]
    found = basins(landscape({"mse": mse}, tiny_cohort, keys))
    assert (found["minimum"].abs() <= 1).all()
    assert (found["basin"] >= 10).all()


def test_what_is_measured_is_written_with_its_provenance(tiny_cohort, tmp_path):
    torch.manual_seed(0)
    encoders = {
        "": Disentangler(tiny_cohort.contrasts, width=4, blocks=1),
        ", 1 slice": Disentangler(tiny_cohort.contrasts, slices=1, width=4, blocks=1),
    }
    keys = landscape_keys(tiny_cohort, 2)
    found = measure(encoders, tiny_cohort, keys, tmp_path, profile="tiny")
    names = ["content", "content, 1 slice", "MI", "MIND"]
    assert list(dict.fromkeys(found["measure"])) == names
    assert len(pd.read_csv(tmp_path / "basins.csv")) == len(found) == 2 * 2 * len(names)
    ways = pd.read_csv(tmp_path / "translation.csv").groupby("way").size()
    assert ways.to_dict() == {"copy": 2, "histogram": 2, "GAN": 2, "GAN, 1 slice": 2}
    facts = json.loads((tmp_path / "curves.json").read_text())
    assert (facts["profile"], facts["voxel_mm"]) == ("tiny", 6.0) and "commit" in facts
