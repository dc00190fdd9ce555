"""The dynamics networks: shapes at every scale, a silent start, and what they depend on."""

import numpy as np
import pytest
import torch
from scipy.interpolate import RegularGridInterpolator
from torch import nn
from torch.nn import functional as F

from odereg_core.descriptor import REACH_MM, look, newton_step, newton_twist
from odereg_core.grid import Grid
from odereg_core.networks import DYNAMICS
from odereg_core.networks.dynamics import (
    BSplineDynamics,
    Comparison,
    Convolution,
    RigidDynamics,
    _interpolation,
)
from odereg_core.transforms import TRANSFORMS, BSpline, Rigid

GRID = Grid((40, 40, 28), (6.0, 6.0, 6.0))


@pytest.mark.parametrize("name", DYNAMICS)
@pytest.mark.parametrize("grid", GRID.pyramid(3), ids=lambda g: f"{g.spacing[0]:g} mm")
def test_a_velocity_has_thetas_shape_and_starts_at_zero(name, grid):
    network = DYNAMICS[name](grid)
    images = torch.rand(2, 2, *grid.shape)
    velocity = network(images[:, :1], images[:, 1:], torch.tensor(0.5))
    assert velocity.shape == TRANSFORMS[name]().identity(2, grid).shape
    assert not velocity.any()


@pytest.mark.parametrize("name", DYNAMICS)
def test_all_three_inputs_matter(name):
    grid = GRID.pyramid(2)[0]
    torch.manual_seed(0)
    network = DYNAMICS[name](grid)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    moving, fixed = torch.rand(2, 1, 1, *grid.shape)
    first = network(moving, fixed, torch.tensor(0.0))
    assert not torch.allclose(first, network(fixed, moving, torch.tensor(0.0)))
    assert not torch.allclose(first, network(moving, fixed, torch.tensor(1.0)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("batch", "kernel", "stride"), [(1, 3, 1), (1, 3, 2), (2, 3, 2), (1, 1, 1)]
)
def test_a_convolution_is_torchs_own_its_gradients_too(dtype, batch, kernel, stride):
    torch.manual_seed(0)
    ours = Convolution(3, 5, kernel, stride, padding=kernel // 2).to(dtype)
    theirs = nn.Conv3d(3, 5, kernel, stride, padding=kernel // 2).to(dtype)
    theirs.load_state_dict(ours.state_dict())
    image = torch.rand(batch, 3, 7, 6, 5, dtype=dtype, requires_grad=True)
    answers = []
    for layer in (ours, theirs):
        out = layer(image)
        inputs = [image, *layer.parameters()]
        answers.append([out, *torch.autograd.grad(out.square().sum(), inputs)])
    torch.testing.assert_close(*answers)


def test_bspline_features_are_read_where_the_control_points_lie():
    """Linear interpolation by matrices is grid_sample's with the edge repeated."""
    grid = GRID.pyramid(2)[0]
    controls = BSpline().control_grid(grid)
    features = torch.rand(1, 2, *grid.shape)
    found = features
    for points, voxels in zip(controls.axes(), grid.axes(), strict=True):
        weights = _interpolation(points, voxels)
        found = torch.tensordot(found, weights, dims=([2], [1]))
    half = torch.tensor(grid.extent).reshape(1, 3, 1, 1, 1) / 2
    place = (controls.points() / half)[:, [2, 1, 0]].permute(0, 2, 3, 4, 1)
    wanted = F.grid_sample(features, place, padding_mode="border", align_corners=False)
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_bspline_dynamics_moves_with_its_images():
    """Fully convolutional: away from the edges, images shifted by a control spacing shift the
    velocity by one control point."""
    grid = Grid((60, 40, 40), (5.0, 5.0, 5.0))
    torch.manual_seed(0)
    network = BSplineDynamics(grid, width=4, widest=8, depth=1)
    torch.nn.init.normal_(network.head[-1].weight)
    images = torch.zeros(1, 2, *grid.shape)
    images[..., 16:-16, 12:-12, 12:-12] = torch.rand(1, 2, 28, 16, 16)  # nothing near an edge
    shifted = images.roll(4, 2)  # 20 mm
    one, two = (network(x[:, :1], x[:, 1:], torch.tensor(0.0)) for x in (images, shifted))
    inside = (..., slice(6, 11), slice(5, 8), slice(5, 8))
    torch.testing.assert_close(two.roll(-1, 2)[inside], one[inside], atol=1e-4, rtol=1e-3)


def test_bf16_autocast_stays_near_float32():
    torch.manual_seed(0)
    for name in DYNAMICS:
        network = DYNAMICS[name](GRID.pyramid(2)[0])
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.05)
        images = torch.rand(1, 2, *GRID.pyramid(2)[0].shape)
        wide = network(images[:, :1], images[:, 1:], torch.tensor(0.5))
        with torch.autocast("cpu", torch.bfloat16):
            narrow = network(images[:, :1], images[:, 1:], torch.tensor(0.5)).float()
        assert (narrow - wide).norm() < 0.05 * wide.norm() + 1e-3


@pytest.mark.parametrize("halvings", [0, 1])
def test_a_finer_network_starts_as_the_coarser_one(halvings):
    """With a stem in front, or a longer one, it does to an image exactly what the coarser does to
    its average."""
    coarse = Grid(tuple(2**halvings * n for n in (40, 40, 24)), (6.0,) * 3)
    fine = Grid(tuple(2 * n for n in coarse.shape), (3.0,) * 3)
    networks = [DYNAMICS["rigid"](grid) for grid in (fine, coarse)]
    for parameter in [p for network in networks for p in network.parameters()]:
        torch.nn.init.normal_(parameter, std=0.05)
    networks[0].inherit(networks[1])
    images = torch.rand(1, 2, *fine.shape)
    averaged = F.avg_pool3d(images, 2)
    one = networks[0](images[:, :1], images[:, 1:], torch.tensor(0.5))
    two = networks[1](averaged[:, :1], averaged[:, 1:], torch.tensor(0.5))
    torch.testing.assert_close(one, two, atol=1e-5, rtol=1e-4)


def test_what_was_built_otherwise_cannot_be_inherited():
    grid = GRID.pyramid(3)[0]
    with pytest.raises(ValueError, match="cannot take"):
        DYNAMICS["rigid"](grid, width=8).inherit(DYNAMICS["rigid"](grid, width=4))


@pytest.mark.parametrize("name", ["bspline", "dense"])
def test_deformable_networks_of_all_scales_share_one_set_of_weights(name):
    coarse, middle, fine = (
        DYNAMICS[name](grid) for grid in Grid((80, 80, 56), (3.0,) * 3).pyramid(3)
    )
    middle.inherit(coarse)
    fine.inherit(middle)
    assert all(
        torch.equal(a, b) for a, b in zip(fine.parameters(), coarse.parameters(), strict=True)
    )


def test_the_comparison_finds_the_voxel_that_is_alike():
    """Of the 27 neighbours, the one that the image was shifted by is most like the fixed one."""
    torch.manual_seed(0)
    compare = Comparison(GRID, 8, 1)
    image = torch.rand(1, 1, 12, 12, 12)
    found, _ = compare(image.roll(1, 3), image, torch.tensor(0.0))
    alike = found[:, :27, 3:-3, 3:-3, 3:-3]
    best = alike.mean((0, 2, 3, 4)).argmax()
    assert int(best) == (1 * 3 + 2) * 3 + 1  # warped(p + s) is fixed(p) for s = (0, 1, 0)


def test_the_comparison_holds_the_newton_step():
    images = [torch.rand(1, 1, 12, 14, 10) for _ in range(2)]
    found, ahead = Comparison(GRID, 8, 2)(*images, torch.tensor(0.0))
    one, two = (look(image) for image in images)
    torch.testing.assert_close(
        ahead, newton_step(one, two, torch.ones_like(images[0]), 2, REACH_MM / 6)
    )
    assert torch.equal(found[:, 27:30], ahead)


@pytest.mark.parametrize(("name", "factor"), [("bspline", 4), ("dense", 2)])
def test_a_deformable_network_takes_its_share_of_the_newton_step(name, factor):
    """Each axis in its own share, in units of the range, linear between its places."""
    grid, transform = Grid((40, 32, 48), (3.0,) * 3), TRANSFORMS[name]()
    network = DYNAMICS[name](grid)
    last = network.head[-1] if name == "bspline" else network.head
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.tensor([0.0, 0.0, 0.1, 1.0, 0.5, 0.0])
    images = torch.rand(2, 1, 1, *grid.shape)
    step = newton_step(*(look(i) for i in images), torch.ones_like(images[0]), 2, REACH_MM / 3)
    coarse, places = grid.coarsened(factor), grid
    if name == "bspline":
        places = transform.control_grid(grid)
        step = F.avg_pool3d(step, 2)
    axes = [axis.numpy() for axis in coarse.axes()]
    where = (
        places.points()[0].flatten(1).T.clip(*(torch.tensor([a[i] for a in axes]) for i in (0, -1)))
    )
    read = RegularGridInterpolator(axes, step[0].movedim(0, -1).numpy())(where)
    wanted = read * [1, 0.5, 0] * 3.0 / transform.range_mm + [0, 0, 0.1]
    found = network(*images, torch.tensor(0.0))[0].flatten(1).T
    assert found.std(0)[0] > 1e-3
    np.testing.assert_allclose(found.detach(), wanted, atol=1e-5)
    untold = DYNAMICS[name](grid, newton=0)
    untold.load_state_dict(network.state_dict())
    assert not untold(*images, torch.tensor(0.0))[0, 0].any()


def test_the_rigid_network_takes_its_share_of_the_newton_step():
    """Of images averaged to no more voxels than it says; nothing of it where it is not told."""
    grid = Grid((24, 20, 16), (6.0,) * 3)
    network = RigidDynamics(grid, seen=12)
    last = network.head[-1]
    torch.nn.init.zeros_(last.weight)
    last.bias.data = torch.cat([torch.zeros(6), torch.tensor([1.0, 1.0, 1.0, 0.5, 0.5, 0.0])])
    images = [torch.rand(1, 1, *grid.shape) for _ in range(2)]
    one, two = (F.avg_pool3d(image, 2) for image in images)
    step = newton_twist(look(one), look(two), torch.ones_like(one), grid.coarsened(2))
    wanted = (step / Rigid().unit(step)).clamp(-1, 1) * last.bias[6:]
    torch.testing.assert_close(network(*images, torch.tensor(0.0)), wanted)
    assert RigidDynamics(grid).head[-1].out_features == 6


@pytest.mark.parametrize("name", ["rigid", "bspline", "dense"])
def test_what_is_known_of_the_fixed_image_changes_nothing_but_the_time(name):
    torch.manual_seed(0)
    network = DYNAMICS[name](GRID, **({"seen": 16} if name == "rigid" else {}))
    head = network.head if name == "dense" else network.head[-1]
    torch.nn.init.normal_(head.weight)
    warped, fixed = torch.rand(2, 1, 1, *GRID.shape)
    anew = network(warped, fixed, torch.tensor(0.5))
    assert anew.any()
    assert torch.equal(network(warped, fixed, torch.tensor(0.5), *network.known(fixed)), anew)
    other = network(warped, fixed, torch.tensor(0.5), *network.known(warped))
    assert not torch.equal(other, anew)
