"""Content and style apart: E^c, E^s, G and their critics (section 2.2), after MUNIT [15].

Images are stacks of adjacent slices, (B, S, H, W) in [0, 1], of any of a volume's three axes;
contrasts are one-hot codes (B, M). All are 2-D convolutional networks for any H and W that
`2**downs` divides.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

Stack = Float[Tensor, "b s h w"]
Content = Float[Tensor, "b c h2 w2"]
Style = Float[Tensor, "b d"]
Code = Float[Tensor, "b m"]


def with_code(x: Float[Tensor, "b c h w"], code: Code) -> Float[Tensor, "b c2 h w"]:
    """The one-hot contrast code beside x, as constant channels."""
    wide = code.to(x.dtype)[:, :, None, None].expand(-1, -1, *x.shape[2:])
    return torch.cat([x, wide], dim=1).contiguous(memory_format=torch.channels_last)


def instance_norm(
    x: Float[Tensor, "b c h w"], inside: Float[Tensor, "b 1 h w"] | None = None
) -> Float[Tensor, "b c h w"]:
    """Each channel of each example to mean 0 and variance 1, so that a code has no scale to hide
    in; with weights `inside`, those of the pixels they weigh, and nothing elsewhere."""
    if inside is None:
        centred = x - x.mean((2, 3), keepdim=True)
        return centred * (centred.square().mean((2, 3), keepdim=True) + 1e-5).rsqrt()
    share = inside / inside.sum((2, 3), keepdim=True).clamp_min(1e-5)
    centred = x - (x * share).sum((2, 3), keepdim=True)
    variance = (centred.square() * share).sum((2, 3), keepdim=True)
    return centred * (variance + 1e-5).rsqrt() * inside


class ContentEncoder(nn.Module):
    """E^c, fully convolutional: (B, S, H, W) to (B, C, H / 2^downs, W / 2^downs).

    The code is normalised over the foreground and zero elsewhere: over the whole slice, the
    outline would be most of its variance, and a metric of codes would see little of what is inside.
    """

    def __init__(self, slices: int, width: int, downs: int, blocks: int):
        super().__init__()
        self.first = nn.Conv2d(slices, width, 5, padding=2)
        self.down = nn.ModuleList(
            nn.Conv2d(width * 2**i, width * 2 ** (i + 1), 4, 2, padding=1) for i in range(downs)
        )
        channels = width * 2**downs
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            for _ in range(blocks)
        )

    def forward(self, x: Stack) -> Content:
        inside = F.avg_pool2d((x > 0).float().mean(1, keepdim=True), 2 ** len(self.down))
        x = F.relu(instance_norm(self.first(x.contiguous(memory_format=torch.channels_last))))
        for layer in self.down:
            x = F.relu(instance_norm(layer(x)))
        for first, second in self.blocks:
            x = x + instance_norm(second(F.relu(instance_norm(first(x)))))
        return instance_norm(x.float(), inside)


class StyleEncoder(nn.Module):
    """E^s: convolutions, global average pooling, a fully connected layer: (B, S, H, W) to (B, D).

    No normalisation: it would remove the very statistics that are style.
    """

    def __init__(self, slices: int, contrasts: int, width: int, style: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(slices + contrasts, width, 5, 2, padding=2),
            nn.ReLU(),
            nn.Conv2d(width, 2 * width, 4, 2, padding=1),
            nn.ReLU(),
            nn.Conv2d(2 * width, 2 * width, 4, 2, padding=1),
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(2 * width, style),
        )

    def forward(self, x: Stack, code: Code) -> Style:
        return self.layers(with_code(x, code))


class Generator(nn.Module):
    """G: content, style and contrast code to an image of the original size, by deconvolutions.

    The style sets mean and variance of each channel in the residual blocks (adaptive instance
    normalisation, as in [15]).
    """

    def __init__(
        self, slices: int, contrasts: int, width: int, downs: int, blocks: int, style: int
    ):
        super().__init__()
        channels = width * 2**downs
        self.first = nn.Conv2d(channels + contrasts, channels, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))
            for _ in range(blocks)
        )
        self.modulation = nn.Sequential(
            nn.Linear(style + contrasts, 64), nn.ReLU(), nn.Linear(64, 4 * channels * blocks)
        )
        self.up = nn.ModuleList(
            nn.ConvTranspose2d(width * 2 ** (i + 1), width * 2**i, 4, 2, padding=1)
            for i in reversed(range(downs))
        )
        self.last = nn.Conv2d(width, slices, 5, padding=2)

    def forward(self, content: Content, style: Style, code: Code) -> Stack:
        x = F.relu(self.first(with_code(content, code)))
        numbers = self.modulation(torch.cat([style, code.to(style.dtype)], dim=1))
        parts = iter(numbers[:, :, None, None].chunk(4 * len(self.blocks), dim=1))
        for first, second in self.blocks:
            y = F.relu(instance_norm(first(x)) * (1 + next(parts)) + next(parts))
            x = x + instance_norm(second(y)) * (1 + next(parts)) + next(parts)
        for layer in self.up:
            x = F.relu(layer(x))
        return torch.sigmoid(self.last(x))


class Critic(nn.Module):
    """The score of an image, or a content code, as one of contrast `code`; (B,), unbounded."""

    def __init__(self, inputs: int, contrasts: int, width: int):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(inputs + contrasts, width, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 4 * width, 4, 2, padding=1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(4 * width, 1, 3, padding=1),
        )

    def forward(self, x: Float[Tensor, "b c h w"], code: Code) -> Float[Tensor, " b"]:
        return self.layers(with_code(x, code)).mean((1, 2, 3))


class Disentangler(nn.Module):
    """E^c, E^s and G of M >= 2 contrasts: the image-to-image translation of section 2.2."""

    FORMAT = "odereg-disentangler-2"

    def __init__(
        self,
        contrasts: tuple[str, ...],
        slices: int = 5,
        width: int = 16,
        downs: int = 1,
        blocks: int = 2,
        style: int = 8,
    ):
        super().__init__()
        if len(contrasts) < 2:
            raise ValueError(f"translation needs two contrasts or more, got {contrasts}")
        if slices < 1 or slices % 2 == 0:
            raise ValueError(f"a stack has an odd number of slices, not {slices}")
        self.contrasts, self.slices, self.downs = tuple(contrasts), slices, downs
        self.options = {
            "slices": slices, "width": width, "downs": downs, "blocks": blocks, "style": style,
        }  # fmt: skip
        m = len(contrasts)
        self.content = ContentEncoder(slices, width, downs, blocks)
        self.style = StyleEncoder(slices, m, width, style)
        self.generator = Generator(slices, m, width, downs, blocks, style)

    def code(self, contrast: Tensor) -> Code:
        """One-hot codes of contrasts given by number."""
        return F.one_hot(contrast, len(self.contrasts)).float()

    def describe(self) -> dict:
        """What is needed to build the model again."""
        return {"contrasts": list(self.contrasts), **self.options}

    @classmethod
    def build(cls, spec: dict) -> Disentangler:
        """The model that `describe` described."""
        return cls(**{**spec, "contrasts": tuple(spec["contrasts"])})
