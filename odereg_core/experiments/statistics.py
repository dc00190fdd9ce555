"""What differences between methods are worth: intervals and paired tests, a subject being one case.

The pairs of one subject share its anatomy and are not independent, so subjects are what is drawn
again and what is compared.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy import stats

PAIR = ["subject", "moving", "fixed"]


def interval(
    values: pd.Series, subjects: pd.Series, confidence: float = 0.95, resamples: int = 5000
) -> tuple[float, float]:
    """Bootstrap interval of the mean over pairs, whole subjects drawn with replacement.

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
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def holm(p: Sequence[float]) -> NDArray[np.float64]:
    """p values corrected for their number, in the order given (Holm 1979)."""
    values = np.asarray(p, np.float64)
    order = values.argsort()
    steps = values[order] * np.arange(len(values), 0, -1)
    corrected = np.empty_like(values)
    corrected[order] = np.minimum(1.0, np.maximum.accumulate(steps))
    return corrected


def paired_p(one: pd.DataFrame, two: pd.DataFrame, measure: str = "rmse_phi_mm") -> float:
    """Two-sided Wilcoxon signed-rank test of two methods' subject means, over the pairs both ran.

    Both are results of one task and one method each. NaN where they share no pair.
    """
    both = one.merge(two, on=PAIR).dropna(subset=[f"{measure}_x", f"{measure}_y"])
    if both.empty:
        return float("nan")
    means = np.asarray(both.groupby("subject")[[f"{measure}_x", f"{measure}_y"]].mean())
    # zsplit: two equal subjects say nothing for either side.
    _, p = stats.wilcoxon(means[:, 0], means[:, 1], zero_method="zsplit")
    return float(p)
