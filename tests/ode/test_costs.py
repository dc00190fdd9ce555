"""Memory as the steps grow, and the benchmark that says it with times."""

import platform

import pytest
import torch

from odereg_core.bench import COLUMNS
from odereg_core.bench.ode import ADJOINTS, Allocations, memory, run
from odereg_core.ode.heap import SETTINGS, keep_freed_memory

SHAPE = (16, 16, 12)


@pytest.fixture(scope="module")
def peaks():
    return memory("cpu", SHAPE, (4, 8, 16))


def test_aca_needs_one_step_s_memory_whatever_their_number(peaks):
    for adjoint in ("aca", "adjoint"):
        assert peaks[adjoint].max() <= 1.02 * peaks[adjoint].min()


def test_backprop_needs_a_graph_a_step(peaks):
    first, second = peaks.backprop.diff().dropna()
    assert second == pytest.approx(2 * first, rel=0.02)  # 8 more steps after 4 more
    assert peaks.backprop[16] > 2 * peaks.backprop[4]
    # One step of ACA holds what one step of the graph does, not more than a few.
    assert peaks.aca[16] < peaks.backprop[16] / 2


def test_allocations_are_counted_while_they_live():
    before = torch.ones(1000)
    weight = torch.ones(1000, requires_grad=True)
    with Allocations() as counted:
        a = before + 1
        a.view(10, 100).add_(before[0])  # a view and an operation in place: nothing new
        assert (counted.now, counted.peak) == (4000, 4000)
        b = a * 2
        del a
        assert (counted.now, counted.peak) == (4000, 8000)
        c = (weight * 3).sin().sum()  # the graph keeps what the sine was taken of
        assert 8000 <= counted.now < 8100
        c.backward()
        del b, c
        assert 4000 <= counted.now < 4100  # the gradient


def test_the_benchmark_has_a_row_for_every_solver_and_adjoint():
    table = run("cpu", (16, 16, 16), ("A(1e-1)", "F(0.5)"), steps=(2, 4, 8), repetitions=2)
    assert list(table.columns) == COLUMNS
    rows = table.set_index("measure")
    for adjoint in ADJOINTS:
        assert rows.value[f"memory of a training step, 8×8×8, 8 steps, {adjoint}"] > 0
    held = rows[rows.claim != ""]
    assert list(held.claim) == ["<= 1.1", "1 ± 0.1", "<= 1.6", "<= 1.6", "<= 1.05"]
    assert held.holds.map(type).eq(bool).all()
    assert held.holds.iloc[:2].all()  # times are for a quiet machine to say
    assert (held.value > 0).all()


def test_the_heap_keeps_freed_memory_unless_the_environment_speaks(monkeypatch):
    for name in SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert keep_freed_memory.__wrapped__() is (platform.libc_ver()[0] == "glibc")
    monkeypatch.setenv(SETTINGS[0], "131072")
    assert keep_freed_memory.__wrapped__() is False
