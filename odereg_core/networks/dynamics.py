"""The dynamics f_w of Eq. 2: from the warped moving image, the fixed image and t to d theta/dt."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from odereg_core.grid import Grid


def with_time(
    warped: Float[Tensor, "b c x y z"], fixed: Float[Tensor, "b c x y z"], t: Tensor
) -> Float[Tensor, "b c2 x y z"]:
    """Both images and t as a constant channel, the input of every dynamics network."""
    clock = t.to(warped.dtype).expand(warped.shape[0], 1, *warped.shape[2:])
    return torch.cat([warped, fixed, clock], dim=1)


class ConvBlock(nn.Sequential):
    """3x3x3 convolution, group normalisation, leaky ReLU."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__(
            nn.Conv3d(inputs, outputs, 3, stride, padding=1),
            nn.GroupNorm(min(8, outputs), outputs),
            nn.LeakyReLU(0.1),
        )


class RigidDynamics(nn.Module):
    """Convolutions, then fully connected layers, six outputs (section 3.1).

    Strided convolutions halve the grid until no axis exceeds `smallest` voxels; what is left is
    flattened, not averaged, for where a structure lies is what a rigid motion changes. A small grid
    has one more layer, at its full resolution. The output, (B, 6), is a twist in units of the
    transform's range; the last layer starts at zero, so an untrained network is the identity.
    """

    def __init__(
        self, grid: Grid, width: int = 16, widest: int = 64, hidden: int = 128, smallest: int = 5
    ):
        super().__init__()
        halvings = max(0, math.ceil(math.log2(max(grid.shape) / smallest)))
        strides = [2] * halvings if halvings > 2 else [1] + [2] * halvings
        channels = [3] + [min(width * 2**i, widest) for i in range(len(strides))]
        layers = [
            ConvBlock(*io, stride=s)
            for *io, s in zip(channels, channels[1:], strides, strict=False)
        ]
        self.features = nn.Sequential(*layers)
        with torch.no_grad():
            count = self.features(torch.zeros(1, 3, *grid.shape)).numel()
        self.head = nn.Sequential(
            nn.Flatten(),
            nn.Linear(count + 1, hidden),
            nn.LeakyReLU(0.1),
            nn.Linear(hidden, hidden),
            nn.LeakyReLU(0.1),
            nn.Linear(hidden, 6),
        )
        nn.init.zeros_(self.head[-1].weight)
        nn.init.zeros_(self.head[-1].bias)

    def forward(
        self, warped: Float[Tensor, "b 1 x y z"], fixed: Float[Tensor, "b 1 x y z"], t: Tensor
    ) -> Float[Tensor, "b 6"]:
        x = self.features(with_time(warped, fixed, t)).flatten(1)
        return self.head(torch.cat([x, t.to(x.dtype).expand(len(x), 1)], dim=1))
