"""What differences between methods are worth: intervals and paired tests, a subject being one case.

The pairs of one subject share its anatomy and are not independent, so subjects are what is drawn
again and what is compared.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from scipy import stats

PAIR = ["subject", "moving", "fixed"]


def interval(values: pd.Series, subjects: pd.Series) -> tuple[float, float]:
    """95 % bootstrap interval of the mean over pairs, whole subjects drawn with replacement.

    Percentiles (Efron & Tibshirani 1993, ch. 13); the draws are the same every time. NaN where
    fewer than two subjects have a value.
    """
    groups = values.dropna().groupby(subjects)
    sums, counts = np.asarray(groups.sum()), np.asarray(groups.count())
    if len(sums) < 2:
        return float("nan"), float("nan")
    found = stats.bootstrap(
        (sums, counts),
        lambda s, n, axis: s.sum(axis) / n.sum(axis),
        paired=True,
        n_resamples=5000,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def paired_p(one: pd.DataFrame, two: pd.DataFrame) -> float:
    """Two-sided Wilcoxon signed-rank test of two methods' subject means of RMSE(phi), over the
    pairs both ran.

    Both are results of one task and one method each. NaN where they share no pair.
    """
    measures = ["rmse_phi_mm_x", "rmse_phi_mm_y"]
    both = one.merge(two, on=PAIR).dropna(subset=measures)
    if both.empty:
        return float("nan")
    means = np.asarray(both.groupby("subject")[measures].mean())
    # zsplit: two equal subjects say nothing for either side.
    _, p = stats.wilcoxon(means[:, 0], means[:, 1], zero_method="zsplit")
    return float(p)
