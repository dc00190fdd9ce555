"""The dynamics f_w of Eq. 2: from the warped moving image, the fixed image and t to d theta/dt.

Every network is built for one grid and takes (warped, fixed, t): two images (B, 1, X, Y, Z) in
[0, 1] on that grid and the time, a scalar. It returns a velocity of theta's shape in units of the
transform's range (75°, 20 mm, 8 mm). The last layer starts at zero, so that an untrained model is
the identity. A solve asks often and about one fixed image: what `known` says of it may be handed
back after t, to be computed once.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from odereg_core.descriptor import REACH_MM, look, newton_step, newton_twist, shared
from odereg_core.grid import Grid
from odereg_core.transforms import BSpline, Dense, Rigid
from odereg_core.warp import averaged

Image = Float[Tensor, "b 1 x y z"]
Known = tuple[Tensor, ...]


class Convolution(nn.Conv3d):
    """nn.Conv3d, on a CPU by oneDNN always: torch's own path for a single small image takes up to
    six times as long."""

    def forward(self, x: Tensor) -> Tensor:
        plain = x.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type)
        if x.device.type != "cpu" or not plain or not torch.backends.mkldnn.is_available():
            return super().forward(x)
        settings = self.padding, self.stride, self.dilation, self.groups
        return torch.mkldnn_convolution(x, self.weight, self.bias, *settings)


def with_time(warped: Image, fixed: Image, t: Tensor) -> Float[Tensor, "b 3 x y z"]:
    """Both images and t as a constant channel, channels innermost as convolutions like it best."""
    clock = t.to(warped.dtype).expand(warped.shape[0], 1, *warped.shape[2:])
    joined = torch.cat([warped, fixed, clock], dim=1)
    return joined.contiguous(memory_format=torch.channels_last_3d)


def silent(layer: nn.Conv3d | nn.Linear) -> nn.Conv3d | nn.Linear:
    """A layer that starts as zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ConvBlock(nn.Sequential):
    """3x3x3 convolution and leaky ReLU, started so that variance is kept.

    No normalisation: on two cores its backward pass costs more than the convolution's, and f
    learns faster without it, counted in steps as well.
    """

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        convolution = Convolution(inputs, outputs, 3, stride, padding=1)
        nn.init.kaiming_normal_(convolution.weight, 0.1)
        nn.init.zeros_(convolution.bias)
        super().__init__(convolution, nn.LeakyReLU(0.1))


class RigidDynamics(nn.Module):
    """Convolutions, then fully connected layers, six outputs (section 3.1): a twist, (B, 6).

    Three convolutions bring the grid to `smallest` voxels or less along its longest axis, after a
    strided stem where it is larger still. What is left is flattened, not averaged, for where a
    structure lies is what a rigid motion changes.

    Near the end a voxel moves by less than convolutions tell. With `seen`, f is also told the
    Gauss-Newton step between both images' descriptors, of images averaged to at most so many voxels
    along an axis, and says, besides a twist of its own, how much of each of its numbers to take.
    """

    def __init__(
        self, grid: Grid, width: int = 16, hidden: int = 128, smallest: int = 5, seen: int = 0
    ):
        super().__init__()
        self.look_grid = None
        if seen:
            coarser = max(0, math.ceil(math.log2(max(grid.shape) / seen)))
            self.look_grid = grid.coarsened(2**coarser)
        halvings = max(0, math.ceil(math.log2(max(grid.shape) / smallest)))
        stems = max(0, halvings - 3)
        inputs = width if stems else 3
        self.stem = nn.Sequential(
            *(ConvBlock(width if i else 3, width, stride=2) for i in range(stems))
        )
        strides = [2 if halvings >= 3 - i else 1 for i in range(3)]
        self.features = nn.Sequential(
            *(
                ConvBlock(inputs if i == 0 else width * 2 ** (i - 1), width * 2**i, stride)
                for i, stride in enumerate(strides)
            )
        )
        with torch.no_grad():
            count = self.features(self.stem(torch.zeros(1, 3, *grid.shape))).numel()
        self.head = nn.Sequential(
            nn.Linear(count + (7 if seen else 1), hidden),
            nn.LeakyReLU(0.1),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.1),
            silent(nn.Linear(hidden, 12 if seen else 6)),
        )

    def inherit(self, coarser: RigidDynamics) -> None:
        """Take over the weights of the next coarser scale's network. With one strided block more in
        the stem, this network then does to an image what the coarser one does to its average.

        Raises ValueError where the two were not built alike.
        """
        more = len(self.stem) - len(coarser.stem)
        theirs = [*coarser.stem, *coarser.features, coarser.head]
        ours = [*self.stem, *self.features, self.head][more:]
        with torch.no_grad():
            for block, other in zip(ours, theirs, strict=True):
                for target, value in zip(block.parameters(), other.parameters(), strict=True):
                    if target.shape == value.shape:
                        target.copy_(value)
                    elif block is ours[0] and more == 1 and value.shape[1:2] == (3,):
                        target.zero_()
                        target[:, :3] = value
                    else:
                        shapes = f"{tuple(target.shape)} cannot take {tuple(value.shape)}"
                        raise ValueError(f"the coarser network is of another kind: {shapes}")
            if more:
                first = self.stem[0][0]
                first.weight[:3], first.bias[:3] = 0, 0
                for k in range(3):  # with a padding of 1, these taps lie on the voxels averaged
                    first.weight[k, k, 1:, 1:, 1:] = 1 / 8

    def known(self, fixed: Image) -> Known:
        """The fixed image's descriptor, where f is told of it."""
        return (look(averaged(fixed.float(), self.look_grid)),) if self.look_grid else ()

    def forward(
        self, warped: Image, fixed: Image, t: Tensor, *known: Tensor
    ) -> Float[Tensor, "b 6"]:
        x = self.features(self.stem(with_time(warped, fixed, t))).flatten(1)
        x = torch.cat([x, t.to(x.dtype).expand(len(x), 1)], dim=1)
        if self.look_grid is None:
            return self.head(x)
        (there,) = known or self.known(fixed)
        here = look(averaged(warped.float(), self.look_grid))
        twist = newton_twist(here, there, shared(here, there), self.look_grid)
        # In units of the range, none beyond it.
        step = (twist / Rigid().unit(twist)).clamp(-1, 1)
        own, share = self.head(torch.cat([x, step.to(x.dtype)], dim=1)).chunk(2, dim=1)
        return own + share * step


class Comparison(nn.Module):
    """What both images look like, which of a point's neighbours in one is like it in the other, and
    how far off that is.

    One small network looks at both images, and at their descriptors: which neighbours of a point
    are alike is what all contrasts share, and learning to see it would take hours. Where the warped
    image's features, one voxel on in each of the 27 directions (and none), equal the fixed image's
    is then put in as it is: a product that plain convolutions are slow to find, and without which a
    deformation of half a voxel teaches them nothing (as in optical flow, Sun et al. 2018). So is
    the Gauss-Newton step between the descriptors, in voxels; it is returned alone as well, for f
    says, besides a velocity of its own, how much of it to take; without `newton` it is zero.
    Its neighbourhoods have one size in mm at every scale. (B, 27 + 3 + 2 width + 1, ...) and
    (B, 3, ...), every `stride` voxels.
    """

    def __init__(self, grid: Grid, width: int, stride: int, newton: bool = True):
        super().__init__()
        self.newton, self.reach = newton, REACH_MM / max(grid.spacing)
        self.features = nn.Sequential(ConvBlock(19, width, stride), ConvBlock(width, width))
        self.channels, self.stride = 27 + 3 + 2 * width + 1, stride

    def seen(self, image: Image) -> Known:
        """An image's descriptor, its features, and the direction of these from their mean."""
        described = look(image.float())
        joined = torch.cat([image, described], dim=1)
        features = self.features(joined.contiguous(memory_format=torch.channels_last_3d))
        centred = features - features.mean((2, 3, 4), keepdim=True)
        return described, features, centred / (centred.square().sum(1, keepdim=True) + 1e-4).sqrt()

    def forward(
        self, warped: Image, fixed: Image, t: Tensor, *known: Tensor
    ) -> tuple[Float[Tensor, "b c x y z"], Float[Tensor, "b 3 x y z"]]:
        a, *features, one = self.seen(warped)
        b, *others, two = known or self.seen(fixed)
        ahead = newton_step(a, b, shared(a, b), self.stride, self.reach) * self.newton
        x, y, z = one.shape[2:]
        padded = F.pad(one, (1,) * 6)
        alike = [
            (padded[:, :, i : i + x, j : j + y, k : k + z] * two).sum(1, keepdim=True)
            for i in range(3)
            for j in range(3)
            for k in range(3)
        ]
        clock = t.to(one.dtype).expand(len(one), 1, x, y, z)
        ahead = ahead.to(one.dtype)
        joined = torch.cat([*alike, ahead, *features, *others, clock], dim=1)
        return joined.contiguous(memory_format=torch.channels_last_3d), ahead


class Deformable(nn.Module):
    """What the networks of both deformable transforms share: a comparison of the images, and that
    they are alike at every scale."""

    compare: Comparison

    def inherit(self, coarser: Deformable) -> None:
        """Take over the weights of the next coarser scale's network, which is built alike."""
        self.load_state_dict(coarser.state_dict())

    def known(self, fixed: Image) -> Known:
        """What the comparison sees in the fixed image."""
        return self.compare.seen(fixed)


class BSplineDynamics(Deformable):
    """Fully convolutional, theta an image of control points (section 3.1).

    The images are compared, and brought to voxels of about half a control spacing; there the
    features are read off at the control points, and 1x1x1 convolutions make the velocity,
    (B, 3, nx, ny, nz), of them and of the Gauss-Newton step there.
    """

    def __init__(
        self, grid: Grid, width: int = 8, widest: int = 48, depth: int = 3, newton: bool = True
    ):
        super().__init__()
        halvings = max(0, round(math.log2(BSpline().spacing / 1.7 / max(grid.spacing))))
        first = min(halvings, 1)
        self.compare = Comparison(grid, width, 2**first, newton)
        self.features = nn.Sequential(
            ConvBlock(self.compare.channels, widest, 2 ** (halvings - first)),
            *(ConvBlock(widest, widest) for _ in range(depth)),
        )
        self.head = nn.Sequential(
            Convolution(widest, widest, 1), nn.LeakyReLU(0.1), silent(Convolution(widest, 6, 1))
        )
        self.pooled = 2 ** (halvings - first)
        self.register_buffer("voxel", _voxel(grid, BSpline().range_mm), persistent=False)
        controls, coarse = BSpline().control_grid(grid), grid.coarsened(2**halvings)
        for name, points, voxels in zip("xyz", controls.axes(), coarse.axes(), strict=True):
            self.register_buffer(name, _interpolation(points, voxels), persistent=False)

    def forward(
        self, warped: Image, fixed: Image, t: Tensor, *known: Tensor
    ) -> Float[Tensor, "b 3 nx ny nz"]:
        x, ahead = self.compare(warped, fixed, t, *known)
        own, share = self.head(self.at_controls(self.features(x))).chunk(2, dim=1)
        step = self.at_controls(F.avg_pool3d(ahead, self.pooled))
        return own + share * step * self.voxel

    def at_controls(self, x: Float[Tensor, "b c x y z"]) -> Float[Tensor, "b c nx ny nz"]:
        """What lies at the control points."""
        for weights in (self.x, self.y, self.z):
            x = torch.tensordot(x, weights.to(x.dtype), dims=([2], [1]))  # axis 2 goes to the end
        return x


def _voxel(grid: Grid, range_mm: float) -> Float[Tensor, "3 1 1 1"]:
    """A grid's voxel in units of a transform's range."""
    return torch.tensor(grid.spacing)[:, None, None, None] / range_mm


def _interpolation(
    points: Float[Tensor, " n"], voxels: Float[Tensor, " m"]
) -> Float[Tensor, "n m"]:
    """Weights of linear interpolation at points of an axis; beyond its ends the end counts."""
    spacing = float(voxels[1] - voxels[0])
    inside = points.clamp(float(voxels[0]), float(voxels[-1]))
    return (1 - (inside[:, None] - voxels).abs() / spacing).clamp_min(0)


class DenseDynamics(Deformable):
    """A U-Net (section 3.1, [26]) over the comparison, for voxel-wise velocities (B, 3, X, Y, Z).

    Grids of more than `largest` voxels along an axis are entered every second voxel and left by
    linear upsampling: the field is smooth, and its last factor of two in resolution would cost
    eight times the rest.
    """

    def __init__(
        self,
        grid: Grid,
        width: int = 16,
        widest: int = 48,
        levels: int = 3,
        seen: int = 8,
        largest: int = 32,
        newton: bool = True,
    ):
        super().__init__()
        channels = [min(width * 2**i, widest) for i in range(levels)]
        self.compare = Comparison(grid, seen, 2 if max(grid.shape) > largest else 1, newton)
        self.down = nn.ModuleList()
        for i, outputs in enumerate(channels):
            inputs, stride = (self.compare.channels, 1) if i == 0 else (channels[i - 1], 2)
            self.down.append(
                nn.Sequential(ConvBlock(inputs, outputs, stride), ConvBlock(outputs, outputs))
            )
        self.up = nn.ModuleList(
            ConvBlock(channels[i] + channels[i - 1], channels[i - 1])
            for i in reversed(range(1, levels))
        )
        self.head = silent(Convolution(channels[0], 6, 3, padding=1))
        self.register_buffer("voxel", _voxel(grid, Dense().range_mm), persistent=False)

    def forward(
        self, warped: Image, fixed: Image, t: Tensor, *known: Tensor
    ) -> Float[Tensor, "b 3 x y z"]:
        x, ahead = self.compare(warped, fixed, t, *known)
        skips = []
        for block in self.down:
            x = block(x)
            skips.append(x)
        for block, skip in zip(self.up, reversed(skips[:-1]), strict=True):
            x = block(torch.cat([_resized(x, skip), skip], dim=1))
        own, share = self.head(x).chunk(2, dim=1)
        return _resized(own + share * ahead * self.voxel, warped)


def _resized(x: Tensor, like: Tensor) -> Tensor:
    """x on the voxels of `like`, which spans the same field of view."""
    if x.shape[2:] == like.shape[2:]:
        return x
    return F.interpolate(x, size=like.shape[2:], mode="trilinear", align_corners=False)
