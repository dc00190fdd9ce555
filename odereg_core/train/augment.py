"""What makes one image look like two: contrast, bias, blur, noise and mask edge, drawn at random.

L_self registers an image to a perturbed copy of itself (section 2.1). Drawn anew for both copies,
these changes let it teach registration *across* contrasts and scanners without a true motion: the
random intensity map turns CSF bright and white matter dark as often as not.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from odereg_core.descriptor import box, neighbours
from odereg_core.grid import Grid
from odereg_core.profiles import Augmentation, MotionSection
from odereg_core.train.draws import Drawn, motion, normal, stretch, uniform
from odereg_core.transforms import Transform, affine_after
from odereg_core.warp import warp

Volume = Float[Tensor, "b 1 x y z"]


def smooth_noise(image: Volume, cells: int, rng: torch.Generator) -> Volume:
    """Standard normal values on cells^3 points, trilinear in between."""
    coarse = torch.randn((len(image), 1, cells, cells, cells), generator=rng).to(image.device)
    return F.interpolate(coarse, size=image.shape[2:], mode="trilinear", align_corners=True)


def random_contrast(image: Volume, knots: int, rng: torch.Generator) -> Volume:
    """A random piecewise-linear map of intensities between `knots` of them, one an image; the
    background stays zero."""
    table = uniform((len(image), knots), 0.05, 1.0, image, rng)
    table = table / table.amax(1, keepdim=True)
    place = image.flatten(1).clamp(0, 1) * (knots - 1)
    low = place.floor().clamp(max=knots - 2).long()
    a, b = table.gather(1, low), table.gather(1, low + 1)
    mapped = torch.lerp(a, b, place - low).view_as(image)
    return torch.where(image > 0, mapped, 0.0)


def random_edge(image: Volume, rng: torch.Generator) -> Volume:
    """The brain mask moved in or out of the brain by a smooth random amount, as strippers
    differ."""
    softened = box((image > 0).to(image.dtype))
    level = uniform((len(image), 1, 1, 1, 1), 0.35, 0.75, image, rng)
    return image * (softened + 0.15 * smooth_noise(image, 6, rng) > level)


def random_blur(image: Volume, chance: float, rng: torch.Generator) -> Volume:
    """Thick slices: an average over three voxels along one random axis, of some of the images."""
    axis = torch.randint(2, 5, (len(image), 1, 1, 1, 1), generator=rng).to(image.device)
    strength = uniform((len(image), 1, 1, 1, 1), 0.0, 1.0, image, rng)
    chosen = uniform((len(image), 1, 1, 1, 1), 0.0, 1.0, image, rng) < chance
    for a in (2, 3, 4):
        weight = strength * chosen * (axis == a) / 3
        image = image * (1 - 2 * weight) + weight * neighbours(image, a)
    return image


def augment(image: Volume, settings: Augmentation, rng: torch.Generator) -> Volume:
    """A batch of images in [0, 1], each as another scanner might have seen it."""

    def some(chance: float, changed: Tensor, unchanged: Tensor) -> Tensor:
        chosen = uniform((len(image), 1, 1, 1, 1), 0.0, 1.0, image, rng) < chance
        return torch.where(chosen, changed, unchanged)

    if settings.contrast:
        image = some(settings.contrast, random_contrast(image, settings.knots, rng), image)
    image = random_blur(image, settings.blur, rng)
    image = some(settings.erode, random_edge(image, rng), image)
    inside = image > 0
    field = (settings.bias * smooth_noise(image, 4, rng)).exp()
    sigma = uniform((len(image), 1, 1, 1, 1), 0.0, settings.noise, image, rng)
    noise = normal(image, rng) * sigma
    return ((image * field + noise) * inside).clamp(0, 1)


def drawn_pair(
    transform: Transform,
    movement: MotionSection,
    settings: Augmentation,
    grid: Grid,
    one: Volume,
    two: Volume,
    rng: torch.Generator,
    plain: int = 0,
) -> tuple[Volume, Volume, Drawn]:
    """Moving, fixed and the motion between them: `one` as a scanner might have seen it, and `two`
    as another might have, moved; the first `plain` of both as they are. Both are heads of one and
    the same random proportions."""
    batch = len(one)

    def looks(image: Volume) -> Volume:
        return torch.cat([image[:plain], augment(image[plain:], settings, rng)])

    drawn = motion(transform, movement, batch, grid, one, rng)
    linear = stretch(batch, settings.stretch, one, rng)
    still = affine_after(torch.zeros_like(drawn.displacement), grid, linear)
    moving = warp(looks(one), still, grid)
    seen = affine_after(drawn.displacement, grid, linear)
    return moving, warp(looks(two), seen, grid), drawn
