"""Fig. 4's drawings: bars and points are the means, whiskers the intervals, gaps are left out."""

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from odereg_core.experiments.figures import bars_figure, steps_figure
from odereg_core.experiments.statistics import interval

matplotlib.use("agg")


@pytest.fixture
def results():
    rng = np.random.default_rng(0)
    lines = [
        {"variant": v, "subject": f"s{i}", "rmse_phi_mm": m + rng.normal(0, 0.2), "rmse_x": 0.05,
         "dice": None, "start_mm": 9.0}
        for v, m in (("steps_1", 6.0), ("steps_2", 4.0))
        for i in range(8)
    ]  # fmt: skip
    return pd.DataFrame(lines)


def test_bars_are_means_with_their_intervals(results):
    labels = {"steps_2": "two", "steps_1": "one", "steps_4": "not run"}
    fig = bars_figure(results, "variant", labels, ("steps_2",), "a note")
    assert [ax.get_title() for ax in fig.axes] == ["RMSE(φ) / mm", "RMSE(x) × 10⁻²"]  # no Dice
    ax = fig.axes[0]
    means = results.groupby("variant").rmse_phi_mm.mean()
    assert [bar.get_width() for bar in ax.patches] == pytest.approx(
        [means["steps_2"], means["steps_1"]]
    )
    assert [t.get_text() for t in ax.get_yticklabels()] == ["two", "one"]
    assert fig.axes[1].patches[0].get_width() == pytest.approx(5)
    rows = results[results.variant == "steps_2"]
    segments = ax.containers[0].lines[2][0].get_segments()
    assert segments[0][:, 0] == pytest.approx(interval(rows.rmse_phi_mm, rows.subject))
    assert fig.texts[0].get_text() == "a note"
    plt.close(fig)


def test_steps_are_drawn_in_their_order(results):
    fig = steps_figure(results, {"steps_1": 1, "steps_2": 2, "steps_4": 4})
    line = fig.axes[0].containers[0].lines[0]
    assert line.get_xdata().tolist() == [1, 2]
    assert line.get_ydata()[0] == pytest.approx(results[:8].rmse_phi_mm.mean())
    plt.close(fig)
