"""The terms of the total loss (section 2.1)."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from odereg_core.transforms import Transform


def self_loss(
    theta: Float[Tensor, b * n], truth: Float[Tensor, b * n], transform: Transform
) -> Float[Tensor, ""]:
    """L_self: the mean squared difference of theta, in units of its range (75°, 20 mm, 8 mm).

    Without the units a radian and a millimetre would weigh alike.
    """
    return ((theta - truth) / transform.unit(theta)).square().mean()
