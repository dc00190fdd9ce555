"""Similarities: what they are at alignment, that they can be descended, what a library says."""

import numpy as np
import pytest
import torch
from skimage.metrics import normalized_mutual_information

from odereg_core.grid import Grid
from odereg_core.networks.disentangle import Disentangler
from odereg_core.similarity import (
    CrossCorrelation,
    Mind,
    MutualInformation,
    content_similarity,
    stacks,
)
from odereg_core.transforms import Rigid
from odereg_core.warp import warp

GRID = Grid((24, 20, 16), (6.0, 6.0, 6.0))


def blobs(seed: int) -> torch.Tensor:
    """A smooth image with a background of zeros."""
    torch.manual_seed(seed)
    coarse = torch.rand(1, 1, 6, 5, 4)
    image = torch.nn.functional.interpolate(coarse, size=GRID.shape, mode="trilinear")
    inside = (GRID.points() / torch.tensor(GRID.extent).reshape(1, 3, 1, 1, 1)).norm(dim=1) < 0.42
    return image * inside[:, None]


@pytest.fixture(scope="module")
def content():
    torch.manual_seed(0)
    model = Disentangler(("a", "b"), slices=3, width=4, blocks=1)
    return content_similarity(model, stacks_an_axis=4).requires_grad_(False)


def measures(content):
    classical = {"MI": MutualInformation(stride=1), "MIND": Mind(), "CC": CrossCorrelation()}
    return {"content": content, **classical}


@pytest.mark.parametrize("name", ["content", "MI", "MIND", "CC"])
def test_an_image_is_most_like_itself(content, name):
    measure, image = measures(content)[name], blobs(1)
    here = measure(image, image)
    assert here.shape == (1,)
    for mm in (6.0, -12.0):
        u = Rigid().displacement(torch.tensor([[0, 0, 0, mm, 0, 0]]), GRID)
        assert (measure(warp(image, u, GRID), image) > here).all()


@pytest.mark.parametrize("name", ["content", "MI", "MIND", "CC"])
def test_the_gradient_leads_home(content, name):
    """From 4 mm off, a step against the gradient of theta brings the images nearer."""
    measure, image = measures(content)[name], blobs(2)
    theta = torch.tensor([[0, 0, 0, 4.0, 0, 0]], requires_grad=True)
    value = measure(warp(image, Rigid().displacement(theta, GRID), GRID), image)
    value.sum().backward()
    assert theta.grad[0, 3] > 0


def test_content_distance_is_eq_4(content):
    """The mean squared difference of the codes of the very slices named, over the three axes."""
    a, b = blobs(1), blobs(2)
    total = 0.0
    for axis in range(3):
        places = np.flatnonzero((b[0, 0] > 0).movedim(axis, 0).flatten(1).any(1).numpy())
        share = (np.arange(4) + 0.5) / 4
        centres = np.rint(places[0] + share * (places[-1] - places[0])).astype(int)
        for centre in centres:
            picked = np.clip([centre - 1, centre, centre + 1], 0, GRID.shape[axis] - 1)
            x, y = (
                torch.from_numpy(np.take(v[0, 0].numpy(), picked, axis=axis)).movedim(axis, 0)[None]
                for v in (a, b)
            )
            total += float((content.encoder(x) - content.encoder(y)).square().mean()) / 12
    assert float(content(a, b)) == pytest.approx(total, rel=1e-4)


def test_random_slices_are_the_same_for_both_images_and_repeat(content):
    a, b = blobs(1), blobs(2)
    assert float(content(a, a, torch.Generator().manual_seed(1))) == 0
    one, two = (float(content(a, b, torch.Generator().manual_seed(s))) for s in (1, 2))
    assert one != two
    assert one == float(content(a, b, torch.Generator().manual_seed(1)))


def test_a_batch_is_its_examples(content):
    a, b = torch.cat([blobs(1), blobs(2)]), torch.cat([blobs(3), blobs(3)])
    for measure in measures(content).values():
        each = torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(2)])
        torch.testing.assert_close(measure(a, b), each, atol=1e-5, rtol=1e-4)


def test_stacks_are_adjacent_slices_of_every_axis():
    volume = torch.arange(24 * 20 * 16.0).reshape(1, 1, 24, 20, 16)
    found = stacks(volume, 1, torch.tensor([0, 7]), 3)
    assert found.shape == (2, 3, 24, 16)
    assert torch.equal(found[1], volume[0, 0, :, 6:9].movedim(1, 0))
    assert torch.equal(found[0, 0], volume[0, 0, :, 0]) and torch.equal(found[0, 0], found[0, 1])


def test_mutual_information_ranks_as_scikit_images():
    """Of misalignments of two contrasts, both put the same one last and first."""
    image = blobs(4)
    other = torch.where(image > 0, 1 - image, 0.0)
    ours, theirs = [], []
    for mm in (0.0, 3.0, 9.0, 18.0):
        u = Rigid().displacement(torch.tensor([[0, 0, 0, mm, 0, 0]]), GRID)
        moved = warp(image, u, GRID)
        inside = ((moved > 0) | (other > 0)).numpy()
        ours.append(-float(MutualInformation(stride=1)(moved, other)))
        theirs.append(
            normalized_mutual_information(moved.numpy()[inside], other.numpy()[inside], bins=32)
        )
    assert np.argsort(ours).tolist() == np.argsort(theirs).tolist()


def test_mind_sees_through_a_change_of_contrast():
    image = blobs(5)
    inverted = torch.where(image > 0, 1.2 - image, 0.0)
    stranger = blobs(6)
    assert float(Mind()(image, inverted)) < 0.5 * float(Mind()(image, stranger))


def test_cross_correlation_is_numpys_over_cubes():
    """Squared, of every voxel's cube, zeros beyond the edge; a cube of one value says nothing."""
    a, b = blobs(7), blobs(8) * 0.5 + 0.5 * blobs(7)
    cubes = []
    for image in (a, b):
        padded = np.pad(image[0, 0].double().numpy(), 3)
        windows = np.lib.stride_tricks.sliding_window_view(padded, (7, 7, 7))
        cubes.append(windows.reshape(*GRID.shape, -1))
    x, y = (cube - cube.mean(-1, keepdims=True) for cube in cubes)
    both = (x**2).sum(-1) * (y**2).sum(-1)
    squared = np.divide((x * y).sum(-1) ** 2, both, out=np.zeros(GRID.shape), where=both > 1e-9)
    assert float(CrossCorrelation()(a, b)) == pytest.approx(-squared.mean(), rel=1e-3)
    assert 0.05 < squared.mean() < 0.9
