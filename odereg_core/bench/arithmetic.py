"""How far the arithmetic moves a map: threads, vector instructions, numbers of other widths.

python -m odereg_core.bench.arithmetic runs/demo/prepared --pairs 8
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from tqdm.auto import tqdm

from odereg_core.cohort import Cohort
from odereg_core.device import device_name
from odereg_core.errors import tells_faults
from odereg_core.pairs import pair_keys, simulate
from odereg_core.registration import load_cascade

Result = TypeVar("Result")
MODELS = {"rigid": "rigid", "bspline": "deformable", "dense": "deformable"}
"""The models by transform, and the task whose pairs each registers."""


@dataclass(frozen=True)
class Case:
    """One way to compute: CPU threads, the type of images and weights, whether the networks are
    autocast to bfloat16 as in training, and variables of the environment."""

    threads: int = 1
    dtype: torch.dtype = torch.float32
    bfloat16: bool = False
    environment: Mapping[str, str] = field(default_factory=dict)


NARROW = {
    "ATEN_CPU_CAPABILITY": "avx2",
    "ONEDNN_MAX_CPU_ISA": "AVX2",
    "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}
CASES = {
    "one thread, float32": Case(),
    "two threads": Case(threads=2),
    "without AVX-512": Case(environment=NARROW),
    "float64": Case(dtype=torch.float64),
    "bfloat16 networks": Case(bfloat16=True),
}


def possible() -> dict[str, Case]:
    """The cases that this CPU can tell apart: without AVX-512 only where it has that. (bfloat16 it
    can imitate, if slowly.)"""
    wide = torch.backends.cpu.get_cpu_capability() == "AVX512"
    return {name: case for name, case in CASES.items() if wide or case.environment != NARROW}


def maps(folder: Path, count: int, case: Case, seed: int = 7) -> dict[str, list[Tensor]]:
    """By model, u in mm at the brain's voxels, (3, N), of `count` test pairs of its task."""
    torch.set_num_threads(case.threads)
    cohort, found = Cohort(folder), {}
    for name, task in MODELS.items():
        model = load_cascade(name, None, "cpu").to(case.dtype)
        cohort.expect(model.grid, "demo")  # whose weights are shipped
        found[name] = []
        for key in pair_keys(cohort.names("test"), cohort.contrasts, task, count, seed):
            pair = simulate(cohort, key, seed)
            images = (image.to(case.dtype) for image in (pair.moving, pair.fixed))
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=case.bfloat16):
                u = model(*images).displacement()
            found[name].append(u[0, :, pair.brain[0, 0]])
    return found


def elsewhere(case: Case, work: Callable[..., Result], *arguments: object) -> Result:
    """What `work` returns in a process of its own, under the case's variables: torch reads them
    once, at its import."""
    spawn = get_context("spawn")
    with patch.dict(os.environ, case.environment), ProcessPoolExecutor(1, spawn) as process:
        return process.submit(work, *arguments).result()


def apart(one: Float[Tensor, "3 n"], two: Float[Tensor, "3 n"]) -> tuple[float, float]:
    """How far two maps are from each other, in mm: root mean square and largest distance."""
    distance = torch.linalg.vector_norm(one.double() - two.double(), dim=0)
    return float(distance.square().mean().sqrt()), float(distance.max())


def arithmetic(folder: Path, count: int) -> pd.DataFrame:
    """A line for each possible case but the first and each model: how far its maps lie from the
    first case's, in mm. The root mean square is of the middle pair and of the worst, `largest_mm`
    of all voxels of all pairs."""
    (_, first), *others = possible().items()
    plain, lines = elsewhere(first, maps, folder, count, first), []
    for name, case in tqdm(others, desc="cases", unit="case"):
        for model, found in elsewhere(case, maps, folder, count, case).items():
            pairs = [apart(*each) for each in zip(found, plain[model], strict=True)]
            of_pair, largest = (pd.Series(column) for column in zip(*pairs, strict=True))
            lines.append([name, model, of_pair.median(), of_pair.max(), largest.max()])
    columns = ["case", "model", "median_rms_mm", "worst_rms_mm", "largest_mm"]
    return pd.DataFrame(lines, columns=columns)


@tells_faults
def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m odereg_core.bench.arithmetic",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("cohort", type=Path, help="a prepared cohort, for the shipped weights")
    parser.add_argument("--pairs", type=int, default=8, help="of each model; 0: all")
    options = parser.parse_args(argv)
    table = arithmetic(options.cohort, options.pairs)
    print(table.to_string(index=False, float_format=lambda v: f"{v:.2g}"))
    for name in CASES.keys() - possible().keys():
        print(f"{name}: left out, this CPU has none")
    print(f"torch {torch.__version__}, {device_name('cpu')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
