"""The solvers against SciPy and closed forms, the adjoints against each other and finite
differences."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import solve_ivp
from torch import nn

from odereg_core.grid import Grid
from odereg_core.msodenet import MSODENet
from odereg_core.ode import Solver, SolverError, integrate

SOLVERS = [
    "F(0.2)", "F(0.07)", "heun2(0.1)", "A(1e-3)", "A(1e-5)", "rk4(0.25)", "dopri5(1e-5)",
    "midpoint(0.1)",
]  # fmt: skip
TWICE = torch.tensor(2.0, dtype=torch.float64)


class Field(nn.Module):
    """A small smooth right-hand side with parameters, an image and a scale without a gradient."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Linear(4, 8).double(), nn.Linear(8, 3).double()

    def forward(self, t, y, image, scale):
        clock = t.to(y).expand(len(y), 1)
        return self.b(torch.tanh(self.a(torch.cat([y, clock], 1)))) * image * scale


def problem():
    y = torch.full((2, 3), 0.3, dtype=torch.float64, requires_grad=True)
    image = torch.tensor([[1.0, 0.5, -0.7], [0.2, 1.5, 0.9]], dtype=torch.float64)
    return Field(), y, image.requires_grad_()


def gradients(solver, adjoint, span=(0.0, 1.0)):
    f, y, image = problem()
    solution = integrate(f, y, *span, solver=solver, adjoint=adjoint, args=(image, TWICE))
    loss = solution.theta.square().sum()
    return solution, torch.autograd.grad(loss, [y, image, *f.parameters()])


@pytest.mark.parametrize("span", [(0.0, 1.0), (1.0, 0.0)], ids=["forwards", "backwards"])
@pytest.mark.parametrize("solver", SOLVERS)
def test_aca_is_backprop_through_the_accepted_steps(solver, span):
    """To float64's round-off, for theta_0, an image and every parameter of f."""
    aca, ours = gradients(solver, "aca", span)
    plain, theirs = gradients(solver, "backprop", span)
    assert (aca.nfe, aca.accepted, aca.rejected) == (plain.nfe, plain.accepted, plain.rejected)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_go_on_to_what_the_images_were_made_of():
    f, y, image = problem()
    root = image.detach().clone().requires_grad_()
    grads = []
    for adjoint in ("aca", "backprop"):
        end = integrate(
            f, y * 2, 0.0, 1.0, solver="A(1e-3)", adjoint=adjoint, args=(root.exp(), TWICE)
        ).theta
        grads.append(torch.autograd.grad(end.sum(), [root, y]))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("adjoint", ["aca", "backprop"])
def test_gradients_match_finite_differences(adjoint):
    f, y, image = problem()

    def end(theta0, x):
        return integrate(
            f, theta0, 0.0, 1.0, solver="F(0.1)", adjoint=adjoint, args=(x, TWICE)
        ).theta

    assert torch.autograd.gradcheck(end, (y, image))


def test_the_continuous_adjoint_converges_to_the_same_gradient():
    _, coarse = gradients("rk4(0.5)", "adjoint")
    _, fine = gradients("rk4(0.05)", "adjoint")
    _, exact = gradients("rk4(0.05)", "aca")
    errors = [
        max(float((a - b).abs().max()) for a, b in zip(g, exact, strict=True))
        for g in (coarse, fine)
    ]
    assert errors[1] < 1e-6
    assert errors[1] < errors[0] / 100


def test_the_continuous_adjoint_takes_adaptive_steps_too():
    _, found = gradients("dopri5(1e-8)", "adjoint")
    _, exact = gradients("rk4(0.02)", "aca")
    for a, b in zip(found, exact, strict=True):
        assert torch.allclose(a, b, rtol=1e-4, atol=1e-5)


def test_euler_is_euler():
    solution = integrate(
        lambda t, y: -2 * y, torch.ones(1, 1, dtype=torch.float64), 0.0, 1.0, solver="F(0.1)"
    )
    assert solution.theta.item() == pytest.approx(0.8**10)
    assert (solution.nfe, solution.accepted, solution.rejected) == (10, 10, 0)


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4])
def test_adaptive_heun_keeps_its_tolerance(tolerance):
    def f(t, y):
        return torch.stack([y[:, 1], -4 * y[:, 0]], 1)

    start = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    solution = integrate(f, start, 0.0, 3.0, solver=Solver("heun", tolerance))
    reference = solve_ivp(lambda t, y: [y[1], -4 * y[0]], (0, 3), [1, 0], rtol=1e-10, atol=1e-12)
    error = np.abs(solution.theta[0].numpy() - reference.y[:, -1]).max()
    assert error < 10 * tolerance  # local errors of some 3 / dt steps add up
    assert solution.rejected + solution.accepted < solution.nfe


def test_heun_steps_start_from_their_own_slope():
    """Each accepted step is one textbook Heun step from the state before it (not torchdiffeq's)."""

    def f(t, y):
        return torch.sin(3 * t) - y**2

    solution = integrate(
        f, torch.ones(1, 1, dtype=torch.float64), 0.0, 2.0, solver="A(1e-2)", trajectory=True
    )
    assert solution.accepted > 3
    for (t, y), (t1, y1) in pairwise(zip(solution.times, solution.states, strict=True)):
        dt, t = t1 - t, torch.tensor(t, dtype=torch.float64)
        k1 = f(t, y)
        k2 = f(t + dt, y + dt * k1)
        assert torch.allclose(y1, y + dt * (k1 + k2) / 2, atol=1e-12)


def test_the_worst_sample_of_a_batch_sets_the_step():
    def f(t, y):
        rate = torch.tensor([[0.1], [8.0]], dtype=y.dtype)[: len(y)]
        return -rate * y

    calm = torch.ones(1, 1, dtype=torch.float64)
    both = torch.ones(2, 1, dtype=torch.float64)
    few = integrate(f, calm, 0.0, 1.0, solver="A(1e-3)")
    many = integrate(f, both, 0.0, 1.0, solver="A(1e-3)")
    assert many.accepted > 2 * few.accepted
    assert many.theta[1].item() == pytest.approx(math.exp(-8), abs=1e-2)


def test_trajectory_and_backwards_time():
    start = torch.ones(1, 1, dtype=torch.float64)
    solution = integrate(lambda t, y: y, start, 1.0, 0.0, solver="F(0.001)", trajectory=True)
    assert solution.theta.item() == pytest.approx(math.exp(-1), abs=1e-3)
    assert len(solution.times) == len(solution.states) == 1001
    assert solution.times[0] == 1.0
    assert solution.times[-1] == 0.0


def explodes(t, y):
    return y**2  # from 1 at t = 0 to infinity at t = 1


def turns_nan(t, y):
    return torch.where(t < 0.7, 1.0, torch.nan) * y


def never_finite(t, y):
    return y * torch.nan


WHERE = r"at t = {}, after {} accepted and {} rejected steps"


@pytest.mark.parametrize("grad", [True, False], ids=["training", "inference"])
@pytest.mark.parametrize(
    ("f", "solver", "what", "t", "accepted", "rejected"),
    [
        (explodes, "A(1e-3)", "more than 200 evaluations of f", r"[01]\.\d+", r"\d\d+", r"\d+"),
        (turns_nan, "A(1e-3)", r"underflow in dt \S+", r"0\.7", r"[1-9]\d*", r"[1-9]\d*"),
        (never_finite, "A(1e-3)", "f is not finite", "0", "0", "1"),
        (turns_nan, "F(0.1)", "theta is not finite", r"0\.8", "8", "0"),
        (turns_nan, "F(2)", "theta is not finite", "4", "2", "0"),
    ],
    ids=["budget", "underflow", "f", "not finite", "not finite at the end"],
)
def test_a_solve_that_cannot_end_names_segment_time_and_step(
    f, solver, what, t, accepted, rejected, grad
):
    start = torch.ones(1, 1, dtype=torch.float64, requires_grad=True)
    end = 4.0 if solver == "F(2)" else 2.0
    message = f"^segment 2 of 3: {what} {WHERE.format(t, accepted, rejected)}$"
    with torch.set_grad_enabled(grad), pytest.raises(SolverError, match=message):
        integrate(f, start, 0.0, end, solver=solver, budget=200, label="segment 2 of 3")


def test_a_start_that_is_not_finite_is_named():
    for solver in ("F(0.1)", "A(1e-3)"):
        with pytest.raises(SolverError, match=r"finite.* at t = 0, after 0 accepted"):
            integrate(lambda t, y: y, torch.tensor([[torch.inf]]), 0.0, 1.0, solver=solver)


@pytest.mark.parametrize(
    ("text", "method", "value"),
    [("F(0.2)", "euler", 0.2), ("A(1e-3)", "heun", 1e-3), (" rk4(0.1) ", "rk4", 0.1)],
)
def test_solver_names(text, method, value):
    solver = Solver.parse(text)
    assert (solver.method, solver.value) == (method, value)
    assert Solver.parse(str(solver)) == solver


@pytest.mark.parametrize("text", ["F", "F()", "A(-1)", "F(0)", "Z(0.1)", "F(1e)", ""])
def test_what_is_no_solver_is_refused(text):
    with pytest.raises(ValueError, match="is no solver"):
        Solver.parse(text)


@pytest.mark.parametrize("solver", ["F(0.1)", "A(1e-3)"])
def test_aca_keeps_no_graph_between_steps(solver):
    """After the forward pass the only node behind theta is ACA's own, whose inputs are the
    leaves."""
    f, y, image = problem()
    end = integrate(f, y, 0.0, 1.0, solver=solver, adjoint="aca", args=(image, TWICE)).theta
    behind = [node for node, _ in end.grad_fn.next_functions if node is not None]
    assert behind
    assert all(type(node).__name__ == "AccumulateGrad" for node in behind)


@pytest.mark.parametrize(
    ("theirs", "ours", "tolerance", "close"),
    [("rk12", "A(1e-5)", 1e-5, 1e-4), ("dopri5", "dopri5(1e-8)", 1e-8, 1e-6)],
)
def test_the_aca_authors_own_package_gives_the_same_gradient(theirs, ours, tolerance, close):
    """Zhuang et al.'s TorchDiffEqPack chooses its own steps, so both must be close to the limit."""
    pack = pytest.importorskip("TorchDiffEqPack")
    f, y, image = problem()
    g = _Closed(f, image)
    options = {"method": theirs, "h": 0.25, "t0": 0.0, "t1": 1.0}
    end = pack.odesolve_adjoint(g, y, options | {"rtol": tolerance, "atol": tolerance})
    expected = torch.autograd.grad(end.square().sum(), [y, *g.parameters()])
    end = integrate(g, y, 0.0, 1.0, solver=ours).theta
    found = torch.autograd.grad(end.square().sum(), [y, *g.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=close, atol=close)


def test_the_aca_authors_own_package_agrees_on_the_same_steps():
    """Heun on the steps that TorchDiffEqPack accepted; it keeps time in float32."""
    pack = pytest.importorskip("TorchDiffEqPack")
    f, y, image = problem()
    g = _Closed(f, image)
    options = {"method": "rk12", "h": 0.25, "t0": 0.0, "t1": 1.0, "rtol": 1e-3, "atol": 1e-3}
    solver = pack.odesolve_endtime(g, y, dict(options), return_solver=True)
    times = [0.0, *map(float, solver.integrate(y, t0=0.0, return_steps=True)[1])]
    assert len(times) > 4
    end = pack.odesolve_adjoint(g, y, dict(options))
    expected = torch.autograd.grad(end.square().sum(), [y, *g.parameters()])
    theta = y
    for t0, t1 in pairwise(times):
        theta = integrate(g, theta, t0, t1, solver=Solver("heun2", t1 - t0)).theta
    found = torch.autograd.grad(theta.square().sum(), [y, *g.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-6, atol=1e-6)


class _Closed(nn.Module):
    """f with its image fixed, as TorchDiffEqPack wants it: a module of t and theta alone."""

    def __init__(self, f, image):
        super().__init__()
        self.f, self.image = f, nn.Parameter(image.detach().clone())

    def forward(self, t, y):
        return self.f(t, y, self.image, TWICE)


def numbers(low, high):
    return st.floats(low, high, allow_nan=False)


FIXED = st.sampled_from(["euler", "heun2", "midpoint", "rk4"])
VECTORS = st.lists(numbers(-2, 2), min_size=3, max_size=3).map(
    lambda values: torch.tensor([values], dtype=torch.float64)
)
MATRIX = torch.tensor([[-0.5, 1.0, 0.2], [-1.0, -0.3, 0.0], [0.1, 0.4, -0.9]], dtype=torch.float64)


def solve(f, start, t0, t1, method, value):
    return integrate(f, start, t0, t1, solver=Solver(method, value)).theta


@settings(deadline=None, max_examples=25)
@given(method=FIXED, steps=st.integers(1, 8), x=VECTORS, y=VECTORS, a=numbers(-3, 3))
def test_a_linear_f_makes_a_linear_map(method, steps, x, y, a):
    def f(t, theta):
        return theta @ MATRIX * (1 + t)

    def end(start):
        return solve(f, start, 0.0, 1.0, method, 1 / steps)

    assert torch.allclose(end(x + a * y), end(x) + a * end(y), atol=1e-10)


@settings(deadline=None, max_examples=25)
@given(
    solver=st.tuples(FIXED, numbers(0.05, 0.5)) | st.tuples(st.just("heun"), numbers(1e-4, 1e-1)),
    start=VECTORS,
    shift=numbers(-5, 5),
)
def test_an_autonomous_f_knows_no_time(solver, start, shift):
    def f(t, theta):
        return torch.sin(theta @ MATRIX)

    here = solve(f, start, 0.0, 1.0, *solver)
    there = solve(f, start, shift, 1.0 + shift, *solver)
    assert torch.allclose(here, there, atol=1e-9)


@settings(deadline=None, max_examples=25)
@given(method=FIXED, steps=st.integers(2, 8), at=st.integers(1, 7), start=VECTORS)
def test_a_solve_may_stop_at_a_node_and_go_on(method, steps, at, start):
    def f(t, theta):
        return torch.sin(theta @ MATRIX) * t

    at = min(at, steps - 1)
    whole = solve(f, start, 0.0, 1.0, method, 1 / steps)
    middle = solve(f, start, 0.0, at / steps, method, 1 / steps)
    assert torch.allclose(solve(f, middle, at / steps, 1.0, method, 1 / steps), whole, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("rigid", {"width": 4, "hidden": 8}),
        ("bspline", {"width": 4, "widest": 4, "depth": 1}),
        ("dense", {"width": 4, "widest": 4, "levels": 1, "seen": 4}),
    ],
)
def test_aca_replays_in_the_precision_of_the_forward_pass(name, network):
    """Under autocast to bfloat16 its gradient is backprop's; one replayed in float32 is off by
    bfloat16's round-off. Of one step, for autocast adds those of several up in bfloat16."""
    torch.manual_seed(0)
    model = MSODENet(name, Grid((8, 8, 8), (20.0,) * 3), ["F(1)"], time=1.0, **network)
    for parameter in model.parameters():  # the last layer starts at zero
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    images = torch.rand(2, 1, 1, 8, 8, 8)
    grads = {}
    for adjoint, enabled in (("aca", True), ("backprop", True), ("backprop", False)):
        model.adjoint = adjoint
        with torch.autocast("cpu", torch.bfloat16, enabled):
            theta = model(*images).theta
        grads[adjoint, enabled] = torch.autograd.grad(
            (theta / model.transform.unit(theta)).square().sum(), [*model.parameters()]
        )
    exact = grads["backprop", True]
    size = max(float(g.abs().max()) for g in exact)

    def off(found):
        return max(float((f - e).abs().max()) for f, e in zip(found, exact, strict=True)) / size

    assert off(grads["aca", True]) < 1e-3 < 2e-3 < off(grads["backprop", False])
