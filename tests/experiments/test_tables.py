"""Table 1 and its statistics, against hand-made tables, closed forms and the paper's own print."""

import math
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from bs4 import BeautifulSoup

from odereg_core.experiments.methods import METHODS
from odereg_core.experiments.statistics import interval, paired_p
from odereg_core.experiments.tables import (
    TASKS,
    against_best,
    best_of_blocks,
    markdown,
    paper_table,
    summary,
    table1,
    write_table1,
)

ROOT = Path(__file__).resolve().parents[2]


def results(task, method, errors, subjects=None, **other):
    """A results table: an error a pair, one subject a pair unless said otherwise."""
    n = len(errors)
    rows = {"subject": subjects or [f"s{i}" for i in range(n)], "rmse_phi_mm": errors}
    constant = {"moving": "t1", "fixed": "t2", "dice": 0.5, "rmse_x": 0.05, "seconds": 2.0}
    return pd.DataFrame({**rows, "task": task, "method": method, **constant, **other})


def test_the_papers_table_is_whole():
    table = paper_table()
    assert len(table) == 16
    assert table.loc[("rigid", "MS-ODENet(R)"), ("rmse_phi_mm", "mean")] == 3.57
    assert table.loc[("rigid+deformable", "MS-ODENet(R+B)"), ("dice", "sd")] == 9.9


def test_the_best_of_the_papers_blocks_are_what_the_paper_prints_bold():
    best = best_of_blocks(paper_table().xs("mean", axis=1, level=1))
    bold = {(*row, measure) for row, line in best.iterrows() for measure in line[line].index}
    accuracy = ("dice", "rmse_x", "rmse_phi_mm")
    expected = {("rigid", "MS-ODENet(R)", m) for m in (*accuracy, "seconds")}
    expected |= {("deformable", "MS-ODENet(B)", m) for m in accuracy}
    expected |= {("deformable", "VM", "seconds")}
    expected |= {("rigid+deformable", "MS-ODENet(R+B)", m) for m in (*accuracy, "seconds")}
    assert bold == expected


def test_the_summary_is_the_closed_forms():
    table = results("rigid", "ants_rigid", [2.0, 8.0], dice=[0.5, 0.7])
    numbers = summary(table, voxel_mm=3.0).loc[("rigid", "ANTs")]
    assert numbers[("dice", "mean")] == pytest.approx(60)
    assert numbers[("dice", "sd")] == pytest.approx(math.sqrt(200))
    assert numbers[("success", "%")] == 50 and numbers[("rmse_phi_mm", "median")] == 5
    # Two subjects drawn with replacement: both means alone have a probability of a quarter each.
    assert (numbers[("rmse_phi_mm", "low")], numbers[("rmse_phi_mm", "high")]) == (2, 8)
    assert math.isnan(numbers[("p", "holm")]) and numbers[("pairs", "")] == 2


def test_lines_stand_in_table_1s_order_however_the_results_lie():
    rows = [("deformable", "vm_told"), ("deformable", "none"), ("rigid", "none")]
    table = pd.concat([results(*row, [4.0]) for row in rows])
    first, *deformable = summary(table, voxel_mm=3.0).index
    assert first == ("rigid", "no registration")
    assert [method for _, method in deformable] == ["no registration", "VM+GN"]


def test_table_1_shows_what_was_run_and_says_what_was_not():
    table = table1(summary(results("rigid", "ants_rigid", [2.0, 8.0], dice=[0.5, 0.7]), 3.0))
    assert table.loc[("rigid", "ANTs"), ("Dice / %", "here")] == "60.00 (14.14)"
    assert table.loc[("rigid", "ANTs"), ("Dice / %", "paper")] == "63.00 (40.50)"
    assert (table.xs("here", axis=1, level=1) == "missing").all(axis=1).sum() == 15


def test_in_short_a_cohort_without_tumours_has_no_dice():
    lines = [
        markdown(summary(results("rigid", "ants_rigid", [2.0, 8.0], dice=dice), 3.0)).splitlines()
        for dice in (0.7, float("nan"))
    ]
    assert [line[-1].split(" | ")[-2] for line in lines] == ["70.0 %", "–"]


def test_intervals_know_that_pairs_of_a_subject_are_not_independent():
    rng = np.random.default_rng(1)
    means = pd.Series(rng.normal(5, 1, 40))
    alone = interval(means, pd.Series(range(40)))
    half = 1.96 * means.std(ddof=0) / math.sqrt(40)
    assert alone == pytest.approx((means.mean() - half, means.mean() + half), abs=0.05)
    # Each value ten times over is no more to go by.
    many = pd.concat([means] * 10, ignore_index=True)
    assert interval(many, pd.Series([*range(40)] * 10)) == pytest.approx(alone)
    low, high = interval(many, pd.Series(range(400)))
    assert high - low < 0.5 * (alone[1] - alone[0])
    assert all(math.isnan(end) for end in interval(means, pd.Series(["one"] * 40)))


def test_missing_values_do_not_count():
    values, subjects = pd.Series([1.0, 3.0, None]), pd.Series(["a", "b", "c"])
    assert interval(values, subjects) == (1, 3)


def test_wilcoxon_by_its_closed_form():
    """All n differences of one sign: of the 2^n equally likely signs two are as extreme."""
    one = results("rigid", "msodenet_r", [1.0, 2.0, 3.0, 4.0, 5.0, 6.0])
    two = results("rigid", "ants_rigid", [1.1, 2.2, 3.3, 4.4, 5.5, 6.6])
    assert paired_p(one, two) == pytest.approx(2 / 2**6)
    assert paired_p(two, one) == pytest.approx(2 / 2**6)
    # Pairs that only one ran do not count, and more pairs of a subject make no more subjects.
    assert paired_p(one[:5], two) == pytest.approx(2 / 2**5)
    again = [pd.concat([t, t.assign(moving="flair")]) for t in (one, two)]
    assert paired_p(*again) == pytest.approx(2 / 2**6)
    assert math.isnan(paired_p(one, two.assign(subject="nobody")))
    assert paired_p(one, one) == 1


def test_the_best_of_ours_is_compared_with_every_other_row_but_not_with_standing_still():
    errors = np.linspace(1, 2, 8)
    rows = {"none": 9.0, "ants_syn": 1.5, "msodenet_d": 0.1, "msodenet_b": 0.0}
    block = pd.concat([results("deformable", m, errors + more) for m, more in rows.items()])
    p = against_best(block)
    assert p == {"ants_syn": pytest.approx(4 / 2**8), "msodenet_d": pytest.approx(4 / 2**8)}
    assert against_best(block[block.method == "none"]) == {}


def test_the_files_hold_the_same_numbers(tmp_path):
    table = pd.concat(
        [
            results("rigid", "none", [60.0, 61.0], seconds=0.0),
            results("rigid", "ants_rigid", [4.0, 6.0]),
            results("rigid", "msodenet_r", [1.0, 2.0], seconds=1.0),
        ]
    )
    write_table1(table, 3.0, tmp_path)
    numbers = pd.read_csv(tmp_path / "table1.csv").set_index(["task", "method"])
    assert len(numbers) == 17
    ours = numbers.loc[("rigid", "MS-ODENet(R)")]
    assert ours["rmse_phi_mm_mean"] == 1.5 and ours["rmse_phi_mm_paper_mean"] == 3.57
    assert ours["success_percent"] == 100
    latex = (tmp_path / "table1.tex").read_text(encoding="utf-8")
    line = next(x for x in latex.splitlines() if "MS-ODENet(R) " in x)
    assert r"\bfseries 1.50 (0.71) & \bfseries 3.57 (5.18)" in line
    # Dice and RMSE(x) are the same in both our rows, so both are bold; the paper's block has one.
    assert latex.isascii() and latex.count(r"\bfseries") == (2 + 2 + 1 + 1) + 3 * 4
    assert not re.search(r"(?<!\\)%", latex)
    html = BeautifulSoup((tmp_path / "table1.html").read_text(encoding="utf-8"), "html.parser")
    row = next(tr for tr in html.find_all("tr") if "MS-ODENet(R)" in tr.get_text())
    cells = [cell.get_text() for cell in row.find_all("td")]
    assert cells[4:6] == ["1.50 (0.71)", "3.57 (5.18)"]
    # Standing still takes no time, but does not compete.
    assert "& 0.00 (0.00)" in latex
    assert r"\bfseries 0.00" not in latex


def test_the_readme_shows_the_kept_table():
    """Each of its numbers, by pandas' own means over the kept lines; the paper's as it has them."""
    paper, names = paper_table(), {theirs: ours for ours, theirs in TASKS.items()}
    kept = pd.read_csv(ROOT / "results" / "demo" / "pairs.csv")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    lines = [line[2:-2].split(" | ") for line in text.splitlines() if line.count(" | ") == 8]
    shown, task = 0, ""
    for line in lines[2:]:
        task = line[0].strip() or task
        name = names[task]
        (method,) = (
            key for key, m in METHODS.items() if m.name == line[1].strip() and name in m.tasks
        )
        rows = kept[(kept.task == name) & (kept.method == method)]
        phi = rows.rmse_phi_mm
        cells = [cell.strip() for cell in line]
        assert cells[2:5] == [str(len(rows)), f"{phi.mean():.2f} ({phi.std():.2f})",
                              f"{phi.median():.2f}"]  # fmt: skip
        if method != "none":
            mean, sd = paper.loc[(task, cells[1]), "rmse_phi_mm"]
            assert cells[5] == f"{mean:.2f} ({sd:.2f})"
        assert cells[6:8] == [f"{100 * (phi < 6).mean():.0f} %", f"{100 * rows.dice.mean():.1f} %"]
        assert cells[8] == ("" if method == "none" else f"{rows.seconds.mean():.1f}")
        shown += 1
    assert shown == 19
