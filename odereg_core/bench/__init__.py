"""What the code costs, measured: `python -m odereg_core.bench [warp|ode ...]`, or `make bench`.

A benchmark is a module here with `run(device) -> DataFrame`, and one line below. A row of it says
what was measured, the value and its unit, the claim it is held against ("" where there is none),
and whether that holds (None where there is none).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from importlib import import_module

import pandas as pd

from odereg_core.device import synchronise

BENCHES = {"warp": "odereg_core.bench.warp", "ode": "odereg_core.bench.ode"}
COLUMNS = ["measure", "value", "unit", "claim", "holds"]


def load(name: str) -> Callable[..., pd.DataFrame]:
    """The `run` of a benchmark; its module is imported only now."""
    return import_module(BENCHES[name]).run


def interleaved(
    works: Mapping[str, Callable[[], object]],
    repetitions: int,
    device: str,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of each work, a repetition after the other; in each, every work has its turn.

    What else the machine does then falls on all alike. The order turns round each time, and one
    repetition before the first does not count.
    """
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for repetition in range(-1, repetitions):
        for name in list(works)[:: 1 if repetition % 2 else -1]:
            synchronise(device)
            start = clock()
            works[name]()
            synchronise(device)
            if repetition >= 0:
                seconds[name].append(clock() - start)
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """The median over repetitions of one time over the other, each from the same repetition."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))
