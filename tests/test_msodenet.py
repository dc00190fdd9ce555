"""MS-ODENet: segments, scales, and theta carried across them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from odereg_core.grid import Grid
from odereg_core.msodenet import Cascade, MSODENet, pyramid
from odereg_core.ode import SolverError
from odereg_core.transforms import Rigid
from odereg_core.warp import warp
from odereg_core.weights import describe, load_model, save_model

GRID = Grid((16, 16, 12), (6.0, 6.0, 6.0))
SMALL = {"width": 4, "hidden": 8}


def model(*solvers, **options):
    torch.manual_seed(0)
    return MSODENet("rigid", GRID, solvers, **(SMALL | options))


class Constant(torch.nn.Module):
    """Dynamics that ask for one velocity whatever they see, and record when they were asked."""

    def __init__(self, velocity):
        super().__init__()
        self.velocity, self.times = torch.tensor([velocity]), []

    def known(self, fixed):
        return ()

    def forward(self, warped, fixed, t):
        self.times.append(float(t))
        return self.velocity.expand(len(warped), -1)


def images(batch=2):
    generator = torch.Generator().manual_seed(1)
    return torch.rand(2, batch, 1, *GRID.shape, generator=generator)


def test_an_untrained_model_is_the_identity():
    result = model("A(1e-3)", "F(0.5)")(*images())
    assert not result.theta.any()


def test_segments_are_congruent_and_theta_is_carried():
    net = model("F(0.5)", "F(0.25)", "F(0.1)", time=3.0)
    for i in range(3):
        net.networks[i] = Constant([0.0, 0.0, 0.0, 0.05 * (i + 1), 0.0, 0.0])
    result = net(*images(), trajectory=True)
    # A constant velocity of v units of 20 mm over a segment of length 1 shifts by 20 v.
    shifts = [float(s.theta[0, 3]) for s in result.segments]
    assert shifts == pytest.approx([1.0, 3.0, 6.0], abs=1e-4)
    assert [s.nfe for s in result.segments] == [2, 4, 10] and result.nfe == 16
    for i, segment in enumerate(result.segments):
        assert (segment.times[0], segment.times[-1]) == (i, i + 1)
        assert all(i <= t < i + 1 for t in net.networks[i].times)
    assert torch.allclose(result.segments[1].states[0], result.segments[0].theta)


def test_a_twist_turns_in_the_warped_frame():
    """A constant twist integrates to the rigid motion exp(T xi), as Euler angles do not."""
    net = model("rk4(0.05)", time=1.0)
    xi = [0.4, -0.3, 0.5, 0.2, 0.1, -0.3]
    net.networks[0] = Constant(xi)
    theta = net(*images(1)).theta.double()
    w = [x * Rigid.ranges[0] for x in xi[:3]]
    generator = torch.zeros(4, 4, dtype=torch.float64)
    generator[:3, :3] = torch.tensor([[0, -w[2], w[1]], [w[2], 0, -w[0]], [-w[1], w[0], 0]])
    generator[:3, 3] = torch.tensor(xi[3:]) * 20
    assert torch.allclose(Rigid().matrix(theta)[0], torch.matrix_exp(generator), atol=1e-3)


def test_single_scale_with_n_steps():
    net = model("F(0.125)", time=1.0)
    result = net(*images())
    assert result.nfe == 8 and len(result.grids) == 1 and result.grids[0] == GRID


def test_a_gain_for_each_scale_is_taken_as_it_is():
    net = model("F(0.2)", "F(0.25)", gain=(2.5, 6.0))
    assert [net.gain(i) for i in range(2)] == pytest.approx([2.5 / 1.5, 4])


def test_gain_goes_no_further_than_a_fixed_step_can():
    net = model("A(1e-3)", "F(0.1)", "F(0.5)", gain=10.0)
    assert [net.gain(i) for i in range(3)] == pytest.approx([10, 8, 1.6])
    for i in range(3):
        net.networks[i] = Constant([0.0, 0.0, 0.0, 0.05, 0.0, 0.0])
    shifts = [float(s.theta[0, 3]) for s in net(*images()).segments]
    assert shifts == pytest.approx([10, 18, 19.6], abs=1e-3)


@settings(deadline=None, max_examples=30)
@given(st.floats(0.2, 3), st.floats(0.5, 4), st.floats(0.1, 20))
def test_no_fixed_step_takes_more_than_is_left(step, time, most):
    """Steps that do not divide the segment too: it is taken in equal ones of about that length."""
    net = model(f"F({step})", time=time, gain=most)
    count = net.solvers[0].steps(time)
    taken = net.gain(0) * time / count
    assert taken <= (1 if count == 1 else 0.8) + 1e-9
    assert net(*images()).nfe == count


def test_the_coarsest_scales_alone():
    net = model("F(0.5)", "F(0.5)", "F(0.5)")
    coarse = [pyramid(image, 2)[0] for image in images()]
    assert len(net(*coarse, scales=2).segments) == 2
    with pytest.raises(ValueError, match="moving image of"):
        net(*coarse)


def test_pyramid_averages():
    image = images()[0]
    levels = pyramid(image, 3)
    assert [tuple(level.shape[2:]) for level in levels] == [(4, 4, 3), (8, 8, 6), GRID.shape]
    assert torch.allclose(levels[0][0, 0, 0, 0, 0], image[0, 0, :4, :4, :4].mean())


def test_gradients_reach_every_network_and_the_images():
    net = model("A(1e-2)", "F(0.5)")
    for network in net.networks:
        torch.nn.init.normal_(network.head[-1].weight, 0, 0.05)
    moving, fixed = images()
    moving.requires_grad_()
    grads = {}
    for adjoint in ("aca", "backprop"):
        net.adjoint = adjoint
        net.zero_grad()
        loss = net(moving, fixed).theta.square().sum()
        grads[adjoint] = torch.autograd.grad(loss, [moving, *net.parameters()])
    assert all(g.abs().max() > 0 for g in grads["aca"])
    scale = max(float(g.abs().max()) for g in grads["backprop"])
    for a, b in zip(grads["aca"], grads["backprop"], strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-4 * scale)


def test_a_segment_that_does_not_end_is_named():
    net = model("F(0.5)", "A(1e-3)", budget=5)
    net.networks[1] = Constant([1e3] * 6)
    with pytest.raises(SolverError, match="segment 2 of 2"):
        net(*images())


def test_weights_round_trip(tmp_path):
    net = model("A(1e-3)", "F(0.5)")
    save_model(tmp_path / "m.safetensors", net)
    again = load_model(tmp_path / "m.safetensors")
    assert describe(again) == describe(net)
    for name, value in net.state_dict().items():
        assert torch.equal(again.state_dict()[name], value.half().float())


def deformable(name, *solvers):
    torch.manual_seed(1)
    net = MSODENet(name, GRID, solvers, width=4, widest=8)
    for network in net.networks:
        torch.nn.init.normal_(network.head[-1].weight if name == "bspline" else network.head.weight)
    return net


@pytest.mark.parametrize("name", ["bspline", "dense"])
def test_a_cascade_is_the_rigid_map_after_the_deformation(name):
    rigid = model("F(0.5)", "F(0.5)")
    torch.nn.init.normal_(rigid.networks[1].head[-1].weight, 0, 0.2)
    net = Cascade(rigid, deformable(name, "F(0.5)", "F(0.5)"))
    with torch.no_grad():
        result = net(*images(1))
    theta, inner = (stage.theta for stage in result.stages)
    assert theta.any() and inner.any() and result.nfe == 12
    points = GRID.points()
    deformed = net.transforms[1].map(inner, points, GRID)
    wanted = Rigid().map(theta, deformed)
    torch.testing.assert_close(result.map(points), wanted)
    torch.testing.assert_close(points + result.displacement(), wanted, atol=1e-3, rtol=1e-4)


def test_the_second_stage_sees_the_image_through_the_first(monkeypatch):
    """Its first warped image is the moving one under the rigid map, resampled once."""
    rigid = model("F(1.5)")
    rigid.networks[0] = Constant([0.02, 0.0, 0.1, 0.1, 0.0, 0.0])
    second = deformable("dense", "F(1.5)")
    seen = []
    network = second.networks[0]

    def still(warped, fixed, t, *known):
        seen.append(warped)
        return torch.zeros(1, 3, *GRID.shape)

    monkeypatch.setattr(network, "forward", still)
    moving, fixed = images(1)
    result = Cascade(rigid, second)(moving, fixed)
    u = Rigid().displacement(result.stages[0].theta, GRID)
    torch.testing.assert_close(seen[0], warp(moving, u, GRID), atol=1e-5, rtol=1e-5)


def test_a_cascade_that_makes_no_sense_is_refused():
    other = MSODENet("dense", Grid((16, 16, 8), (6.0, 6.0, 6.0)), ["F(1)"])
    with pytest.raises(ValueError, match="share one grid"):
        Cascade(model("F(1)"), other)
    with pytest.raises(ValueError, match="one or two stages"):
        Cascade()
    with pytest.raises(ValueError, match="first stage of a cascade is rigid"):
        Cascade(MSODENet("dense", GRID, ["F(1)"]), model("F(1)"))
