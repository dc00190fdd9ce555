"""The solvers against SciPy and closed forms, the adjoints against each other and finite
differences."""

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import nn

from odereg_core.ode import Solver, SolverError, integrate

SOLVERS = ["F(0.2)", "F(0.07)", "A(1e-3)", "A(1e-5)", "rk4(0.25)", "dopri5(1e-5)", "midpoint(0.1)"]


class Field(nn.Module):
    """A small smooth right-hand side with parameters, an image and a plain argument."""

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


def gradients(solver, adjoint):
    f, y, image = problem()
    solution = integrate(f, y, 0.0, 1.0, solver=solver, adjoint=adjoint, args=(image, 2.0))
    loss = solution.theta.square().sum()
    return solution, torch.autograd.grad(loss, [y, image, *f.parameters()])


@pytest.mark.parametrize("solver", SOLVERS)
def test_aca_is_backprop_through_the_accepted_steps(solver):
    aca, ours = gradients(solver, "aca")
    plain, theirs = gradients(solver, "backprop")
    assert (aca.nfe, aca.accepted, aca.rejected) == (plain.nfe, plain.accepted, plain.rejected)
    for a, b in zip(ours, theirs, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("solver", ["F(0.1)", "A(1e-4)"])
def test_several_tensors_in_theta(solver):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 3), (2, 2), (3, 2))
    p, q, w = (torch.randn(s, generator=generator, dtype=torch.float64) for s in shapes)
    leaves = [x.requires_grad_() for x in (p, q, w)]

    def f(t, theta):
        return theta[1] @ w.T * t, torch.sin(theta[0]) @ w

    results = []
    for adjoint in ("aca", "backprop"):
        end = integrate(f, (p, q), 0.0, 1.0, solver=solver, adjoint=adjoint, params=[w]).theta
        results.append(torch.autograd.grad(sum(x.square().sum() for x in end), leaves))
    for a, b in zip(*results, strict=True):
        assert torch.allclose(a, b, rtol=1e-10, atol=1e-12)


def test_gradients_go_on_to_what_the_images_were_made_of():
    f, y, image = problem()
    root = image.detach().clone().requires_grad_()
    grads = []
    for adjoint in ("aca", "backprop"):
        end = integrate(
            f, y * 2, 0.0, 1.0, solver="A(1e-3)", adjoint=adjoint, args=(root.exp(), 2.0)
        ).theta
        grads.append(torch.autograd.grad(end.sum(), [root, y]))
    for a, b in zip(*grads, strict=True):
        assert torch.allclose(a, b, rtol=1e-10)


@pytest.mark.parametrize("adjoint", ["aca", "backprop"])
def test_gradients_match_finite_differences(adjoint):
    f, y, image = problem()

    def end(theta0, x):
        return integrate(f, theta0, 0.0, 1.0, solver="F(0.1)", adjoint=adjoint, args=(x, 2.0)).theta

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
    for (t, y), (t1, y1) in zip(
        zip(solution.times, solution.states, strict=False),
        zip(solution.times[1:], solution.states[1:], strict=False),
        strict=False,
    ):
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


def test_a_solve_that_would_not_end_says_where():
    explodes = {"solver": "A(1e-3)", "label": "segment 2 of 3"}
    one = torch.ones(1, 1)
    with pytest.raises(
        SolverError, match=r"segment 2 of 3: more than 200 evaluations at t = [01]\.\d+"
    ):
        integrate(lambda t, y: y**2, one, 0.0, 2.0, budget=200, **explodes)
    with pytest.raises(SolverError, match="segment 2 of 3: underflow"):
        integrate(lambda t, y: y * torch.nan, one, 0.0, 2.0, **explodes)
    with pytest.raises(SolverError, match="not finite after 20 steps to t = 2"):
        integrate(lambda t, y: y * torch.nan, one, 0.0, 2.0, solver="F(0.1)")


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
    end = integrate(f, y, 0.0, 1.0, solver=solver, adjoint="aca", args=(image, 2.0)).theta
    behind = [node for node, _ in end.grad_fn.next_functions if node is not None]
    assert behind
    assert all(type(node).__name__ == "AccumulateGrad" for node in behind)
