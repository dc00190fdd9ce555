"""What the solvers cost: memory against steps, ACA's time against back-propagation's, and the time
of a whole registration against its bare evaluations of f.

Memory is the peak of what a training step allocates beyond what was there before it (weights and
images). On CUDA the allocator counts it. The CPU's allocator keeps no such count, and the resident
memory of a process also holds what was freed but not given back. There, every tensor operation is
watched: the bytes of a new storage count from then until the storage dies, in Python or in the
graph. What a kernel allocates for itself and frees before it returns is not seen.

Time is the wall clock's. On one CPU thread it is the processor's, so that other programs of a busy
machine do not count.

The model has random weights, of a size that moves theta about as a trained model does: by its
range at the coarsest scale, by a tenth of that at the others.
"""

from __future__ import annotations

import statistics
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any, get_args

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from odereg_core.bench import COLUMNS, interleaved, ratio
from odereg_core.grid import Grid
from odereg_core.msodenet import Dynamics, MSODENet, pyramid
from odereg_core.ode import integrate
from odereg_core.ode.integrate import Adjoint

Shape = tuple[int, int, int]
ADJOINTS: tuple[Adjoint, ...] = get_args(Adjoint)
PAPER = ("A(1e-3)", "A(1e-3)", "F(0.1)")
FLAT, SLOWER, OVERHEAD = 1.1, 1.6, 1.05


class Allocations(TorchDispatchMode):
    """Bytes of the storages that are alive and were made while this mode is on; their `peak`."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, int] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None) -> Any:
        self.watch((args, kwargs), new=False)
        result = func(*args, **(kwargs or {}))
        self.watch(result, new=True)
        return result

    def watch(self, tensors: object, new: bool) -> None:
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.sizes:
                    self.sizes[key] = storage.nbytes() if new else 0
                    self.now += self.sizes[key]
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self.free, key)

    def free(self, key: int) -> None:
        self.now -= self.sizes.pop(key)


def peak_bytes(step: Callable[[], object], device: str) -> int:
    """The most that `step` holds at once of what it allocates."""
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with Allocations() as allocations:
        step()
    return allocations.peak


def images(grid: Grid, device: str) -> tuple[Tensor, Tensor]:
    """A moving and a fixed image, smooth and random, in [0, 1]."""
    generator = torch.Generator().manual_seed(0)
    knots = torch.rand(2, 1, 6, 6, 6, generator=generator)
    return F.interpolate(knots, size=grid.shape, mode="trilinear").to(device).split(1)  # type: ignore[return-value]


def model(shape: Shape, solvers: Sequence[str], device: str) -> MSODENet:
    """A rigid model of the demo's field of view that moves theta as a trained one does."""
    torch.manual_seed(0)
    net = MSODENet("rigid", Grid(shape, (240 / shape[0],) * 3), solvers).to(device)
    for i, (network, grid) in enumerate(zip(net.networks, net.grids, strict=True)):
        *_, last = (layer for layer in network.modules() if isinstance(layer, torch.nn.Linear))
        with torch.no_grad():
            torch.nn.init.normal_(last.weight)
            velocity = network(*images(grid, device), torch.zeros((), device=device))
            last.weight.mul_((0.1 if i else 1.0) / velocity.abs().max())
    return net


class TrainingStep:
    """Forward and backward through one segment of a rigid model on an image pair."""

    def __init__(self, shape: Shape, device: str):
        net = model(shape, ["F(1)"], device)
        self.f = Dynamics(net.networks[0], net.transform, net.grids[0])
        self.theta = net.transform.identity(1, net.grids[0], device)
        self.images = images(net.grids[0], device)

    def __call__(self, solver: str, adjoint: Adjoint) -> None:
        end = integrate(
            self.f, self.theta, 0.0, 1.0, solver=solver, adjoint=adjoint, args=self.images
        )
        end.theta.square().sum().backward()


def memory(
    device: str = "cpu",
    shape: Shape = (40, 40, 28),
    steps: Sequence[int] = (4, 8, 16, 32, 64),
    adjoints: Sequence[Adjoint] = ADJOINTS,
) -> pd.DataFrame:
    """Peak memory in MiB of one training step with Euler: a row a number of steps, a column an
    adjoint."""
    step = TrainingStep(shape, device)
    table = pd.DataFrame(index=pd.Index(steps, name="steps"), columns=list(adjoints), dtype=float)
    for adjoint in adjoints:
        for count in steps:
            step.f.zero_grad(set_to_none=True)
            peak = peak_bytes(lambda n=count, a=adjoint: step(f"F({1 / n})", a), device)
            table.loc[count, adjoint] = peak / 2**20
    return table


def timed(
    works: dict[str, Callable[[], object]], repetitions: int, device: str
) -> dict[str, list[float]]:
    alone = device == "cpu" and torch.get_num_threads() == 1
    return interleaved(
        works, repetitions, device, time.process_time if alone else time.perf_counter
    )


def step_times(device: str, shape: Shape, solver: str, repetitions: int) -> dict[str, list[float]]:
    """Seconds of one training step by ACA and by back-propagation, interleaved."""
    step = TrainingStep(shape, device)
    adjoints: tuple[Adjoint, ...] = ("aca", "backprop")
    return timed({name: lambda a=name: step(solver, a) for name in adjoints}, repetitions, device)


@torch.no_grad()
def inference_times(
    device: str, shape: Shape, solvers: Sequence[str], repetitions: int
) -> tuple[list[int], dict[str, list[float]]]:
    """Evaluations a scale; seconds of a whole registration and of so many bare evaluations of f
    (Eq. 3's right-hand side: displacement, warp, network, rate of theta), interleaved."""
    net = model(shape, solvers, device)
    moving, fixed = images(net.grids[-1], device)
    segments = net(moving, fixed).segments
    levels = list(zip(pyramid(moving, net.scales), pyramid(fixed, net.scales), strict=True))
    fs = [
        Dynamics(network, net.transform, grid)
        for network, grid in zip(net.networks, net.grids, strict=True)
    ]
    states = [segment.theta / net.transform.unit(segment.theta) for segment in segments]
    t = torch.zeros((), device=device)

    def bare() -> None:
        for f, segment, state, pair in zip(fs, segments, states, levels, strict=True):
            for _ in range(segment.nfe):
                f(t, state, *pair)

    works = {"whole": lambda: net(moving, fixed), "bare": bare}
    return [segment.nfe for segment in segments], timed(works, repetitions, device)


def run(
    device: str = "cpu",
    shape: Shape = (80, 80, 56),
    solvers: Sequence[str] = PAPER,
    steps: Sequence[int] = (4, 8, 16, 32, 64),
    repetitions: int = 15,
) -> pd.DataFrame:
    """All three measures, each a ratio within this run. `shape` and `solvers` are the inference's;
    a training step is one segment on the grid a factor 2 coarser."""
    half: Shape = tuple(n // 2 for n in shape)  # type: ignore[assignment]
    size, coarse = ("×".join(map(str, s)) for s in (shape, half))
    rows: list[tuple] = []

    def say(measure: str, value: float, unit: str = "", claim: str = "", holds: Any = None) -> None:
        rows.append((measure, float(value), unit, claim, None if holds is None else bool(holds)))

    peaks = memory(device, half, steps)
    few, many = min(steps), max(steps)
    for adjoint, column in peaks.items():
        for count, value in column.items():
            say(f"memory of a training step, {coarse}, {count} steps, {adjoint}", value, "MiB")
    for adjoint, growth in (peaks.loc[many] / peaks.loc[few]).items():
        claim = (f"<= {FLAT}", growth <= FLAT) if adjoint == "aca" else ()
        say(f"memory, {many} steps / {few} steps, {adjoint}", growth, "", *claim)
    slopes = (peaks.backprop.diff() / peaks.index.to_series().diff()).dropna()
    line = slopes.iloc[-1] / slopes.iloc[0]
    straight = abs(line - 1) <= FLAT - 1
    say("memory a further step, last / first, backprop", line, "", "1 ± 0.1", straight)
    say(f"memory, {many} steps, backprop / aca", peaks.backprop[many] / peaks.aca[many])

    for solver in ("F(0.1)", "A(1e-3)"):
        times = step_times(device, half, solver, repetitions)
        slower = ratio(times["aca"], times["backprop"])
        what = f"time of a training step, {coarse}, {solver}, aca / backprop"
        say(what, slower, "", f"<= {SLOWER}", slower <= SLOWER)

    evaluations, times = inference_times(device, shape, solvers, repetitions)
    calls = " + ".join(map(str, evaluations))
    say(f"MS-ODENet inference, {size}", 1e3 * statistics.median(times["whole"]), "ms")
    say(f"{calls} bare evaluations of f", 1e3 * statistics.median(times["bare"]), "ms")
    overhead = ratio(times["whole"], times["bare"])
    what = f"time, inference {'-'.join(solvers)} / bare f"
    say(what, overhead, "", f"<= {OVERHEAD}", overhead <= OVERHEAD)
    return pd.DataFrame(rows, columns=COLUMNS)
