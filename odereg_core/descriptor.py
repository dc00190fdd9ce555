"""Descriptors of what a place looks like, whatever the contrast, and the Gauss-Newton step between
two images' descriptors."""

from __future__ import annotations

from functools import lru_cache
from itertools import combinations, combinations_with_replacement

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odereg_core.box import box_of, put_back
from odereg_core.grid import Grid
from odereg_core.precision import full_precision

Image = Float[Tensor, "b 1 x y z"]
Look = Float[Tensor, "b 18 x y z"]
REACH_MM = 12.0
"""The sigma of the neighbourhoods whose Gauss-Newton step a deformation follows: half of it follows
noise, twice that misses most of a deformation with control points 40 mm apart."""
CLOSE = [(i, j) for i, j in combinations(range(7), 2) if i == 0 or i % 2 == 0 or j != i + 1]
"""Of a voxel, 0, and its neighbours to either side along each axis: the pairs at most the square
root of two voxels apart, all but the opposite ones."""


def neighbours(x: Float[Tensor, "b c x y z"], axis: int) -> Float[Tensor, "b c x y z"]:
    """The sum of both neighbours along an axis; beyond the edge lies zero."""
    padded, n = F.pad(x, [0, 0] * (4 - axis) + [1, 1]), x.shape[axis]
    return padded.narrow(axis, 0, n) + padded.narrow(axis, 2, n)


def box(x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c x y z"]:
    """The mean over 3^3 voxels; beyond the edge lies zero."""
    for axis in (2, 3, 4):
        x = (x + neighbours(x, axis)) / 3
    return x


def mind(image: Image) -> Float[Tensor, "b 6 x y z"]:
    """MIND [13]: exp(-distance / variance) to the six neighbours one voxel away.

    A distance is the mean square over patches of 3^3 voxels; the variance is the mean of a place's
    six distances.
    """
    distances = []
    for axis in (2, 3, 4):
        n = image.shape[axis]
        square = image.diff(dim=axis).square()  # one patch distance serves both its ends
        patch = box(F.pad(square, [0, 0] * (4 - axis) + [1, 1]))
        distances += [patch.narrow(axis, 0, n), patch.narrow(axis, 1, n)]
    d = torch.cat(distances, 1)
    return torch.exp(-d / d.mean(1, keepdim=True).clamp_min(1e-5))


def context(image: Image) -> Look:
    """Self-similarity context (Heinrich et al. 2013), with MIND's own six distances and of single
    voxels: exp(-d / mean d), d the squared differences between a voxel and its six neighbours and
    between any two of these, but for opposite ones.

    Patches make a descriptor less noisy and less sharp. Where a step is fitted to a neighbourhood
    of thousands of voxels, noise averages out and sharpness stays.
    """
    x, y, z = image.shape[2:]
    # As one row of numbers, a volume's neighbours along an axis are the row so much earlier or
    # later: long rows are read faster than blocks. One plane more, for the last row to end in.
    row, plane = F.pad(image, (1, 1, 1, 1, 1, 2)).flatten(2), (y + 2) * (z + 2)
    first = plane + (z + 2) + 1
    places = (0, -plane, plane, -(z + 2), z + 2, -1, 1)
    seen = [row[..., first + i : first + i + x * plane] for i in places]
    d = torch.cat([seen[i] - seen[j] for i, j in CLOSE], 1).square()
    alike = torch.exp(d / d.mean(1, keepdim=True).clamp_min(1e-5).neg())
    return alike.unflatten(2, (x, y + 2, z + 2))[..., :y, :z]


def look(image: Image) -> Look:
    """An image's descriptor, none in the background."""
    at = box_of(image > 0)
    part = image[..., *at]
    return put_back(context(part) * (part > 0), at, image)


def shared(warped: Look, fixed: Look) -> Image:
    """Where the images of two looks both have a foreground."""
    return ((warped[:, :1] > 0) & (fixed[:, :1] > 0)).to(warped.dtype)


def normal_equations(
    warped: Float[Tensor, "b c x y z"],
    fixed: Float[Tensor, "b c x y z"],
    inside: Float[Tensor, "b 1 x y z"],
) -> tuple[Float[Tensor, "b 3 x y z"], Float[Tensor, "b 6 x y z"]]:
    """g and N at every voxel: what a displacement v in voxels does there to the squared difference
    of two descriptors is v N v - 2 g v, to first order. N is symmetric: xx, xy, xz, yy, yz, zz.
    None outside of `inside`, nor on the outermost voxels, which lack a neighbour."""
    down, normal = [inside.new_zeros(())] * 3, [inside.new_zeros(())] * 6
    _, y, z = shape = warped.shape[2:]
    rows, n, plane = (warped.flatten(2), fixed.flatten(2)), inside[0].numel(), y * z
    # All channels of a small volume stay in the cache, and three of a large one: three times as
    # fast as all of a large one's.
    channels = warped.shape[1]
    few = channels if warped.numel() < 2**18 else 1 if channels % 3 else 3
    for one, two in zip(*(row.split(few, 1) for row in rows), strict=True):
        ahead, padded = two - one, F.pad(one + two, (plane, plane))
        slopes = [  # as in `context`, of volumes as one row
            padded[..., plane + step : plane + step + n]
            - padded[..., plane - step : plane - step + n]
            for step in (plane, z, 1)
        ]
        down = [torch.addcmul(old, slope, ahead) for old, slope in zip(down, slopes, strict=True)]
        squares = combinations_with_replacement(slopes, 2)
        normal = [torch.addcmul(old, *pair) for old, pair in zip(normal, squares, strict=True)]
    inner = torch.zeros_like(inside)
    inner[..., 1:-1, 1:-1, 1:-1] = inside[..., 1:-1, 1:-1, 1:-1]
    down, normal = (
        torch.cat([part.sum(1, keepdim=True) for part in parts], 1).unflatten(2, shape)
        for parts in (down, normal)
    )
    return down * (inner / 4), normal * (inner / 16)  # slopes are four times the mean's


def symmetric(six: Float[Tensor, "*b 6"]) -> Float[Tensor, "*b 3 3"]:
    """Matrices of their xx, xy, xz, yy, yz, zz."""
    return six[..., [0, 1, 2, 1, 3, 4, 2, 4, 5]].unflatten(-1, (3, 3))


def newton_step(
    warped: Float[Tensor, "b c x y z"],
    fixed: Float[Tensor, "b c x y z"],
    inside: Float[Tensor, "b 1 x y z"],
    stride: int,
    reach: float,
) -> Float[Tensor, "b 3 _x _y _z"]:
    """Where the warped image's descriptor about each place would be like the fixed one's, to first
    order: the Gauss-Newton step of their squared difference (Lucas & Kanade 1981), in voxels.

    Of blocks of `stride` voxels an edge and a neighbourhood that is, nearly, a Gaussian of sigma
    `reach` voxels; only what lies `inside` counts. At most three voxels along an axis.
    """
    at = box_of(inside)
    about = torch.cat(normal_equations(*(x[..., *at] for x in (warped, fixed, inside))), 1)
    about = F.avg_pool3d(put_back(about, at, inside), stride, ceil_mode=True)
    for _ in range(round(1.5 * (reach / stride) ** 2)):  # each has a variance of 2/3
        about = box(about)
    about = about.movedim(1, -1)
    normal = symmetric(about[..., 3:]) + 1e-3 * torch.eye(3, device=about.device)
    step = torch.linalg.solve(normal, about[..., :3])
    return step.movedim(-1, 1).clamp(-3, 3)


@lru_cache
def _moves(
    spacing: tuple[float, ...], device: torch.device, dtype: torch.dtype
) -> Float[Tensor, "6 12"]:
    """What a twist does to a point: along axis i it moves p by moves[:, i, 0] + moves[:, i, 1:] p
    voxels, here with both axes as one."""
    with torch.inference_mode(False):  # as the grid's axes
        moves = torch.zeros(6, 3, 4)
        for i in range(3):
            moves[3 + i, i, 0] = 1
            j, k = (i + 1) % 3, (i + 2) % 3
            moves[j, i, 1 + k], moves[k, i, 1 + j] = 1, -1  # omega x p
        return (moves / torch.tensor(spacing)[:, None]).flatten(1).to(device, dtype)


@full_precision
def newton_twist(
    warped: Float[Tensor, "b c x y z"],
    fixed: Float[Tensor, "b c x y z"],
    inside: Float[Tensor, "b 1 x y z"],
    grid: Grid,
) -> Float[Tensor, "b 6"]:
    """The same step of a rigid motion, by all of `grid`'s voxels: omega in rad and v in mm of
    `Rigid.rate`, in the warped image's frame."""
    at = box_of(inside)
    down, normal = normal_equations(*(x[..., *at] for x in (warped, fixed, inside)))
    # The sums over voxels that are needed are those of g and N times the products of p's
    # coordinates and one.
    moves = _moves(grid.spacing, down.device, down.dtype)
    axes = zip(grid.axes(down.device, down.dtype), at, strict=True)
    points = torch.meshgrid(*(axis[part] for axis, part in axes), indexing="ij")
    powers = torch.stack([torch.ones_like(points[0]), *points]).flatten(1)
    products = (powers[:, None] * powers).flatten(0, 1)
    gradient = (down.flatten(2) @ powers.T).flatten(1) @ moves.T
    sums = symmetric((normal.flatten(2) @ products.T).mT).unflatten(1, (4, 4))
    hessian = moves @ sums.permute(0, 3, 1, 4, 2).reshape(-1, 12, 12) @ moves.T
    scale = hessian.diagonal(dim1=1, dim2=2).clamp_min(1e-3)
    return torch.linalg.solve(hessian + 1e-4 * torch.diag_embed(scale), gradient)
