"""The box about what is not background: most of a volume is, and there nothing is computed."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from jaxtyping import Float, Shaped
from torch import Tensor

Box = tuple[slice, slice, slice]


def box_of(inside: Shaped[Tensor, "b c x y z"]) -> Box:
    """The smallest box about all that a batch has inside, where it is not zero, and one voxel more
    where there is one."""
    some = inside.flatten(0, 1).any(0)
    plane, box = some.any(0), []
    for axis in (some.flatten(1).any(1), plane.any(1), plane.any(0)):
        along = axis.tolist()
        if True not in along:
            return (slice(0, 1),) * 3
        before, after = along.index(True), along[::-1].index(True)
        box.append(slice(max(0, before - 1), len(along) - max(0, after - 1)))
    return tuple(box)


def put_back(
    part: Float[Tensor, "b c _x _y _z"],
    box: Box,
    like: Tensor,
    outside: Literal["zero", "edge"] = "zero",
) -> Float[Tensor, "b c x y z"]:
    """What was cut from a volume like that one, where it was; about it lie zeros or its edge."""
    pads = [(a.start, n - a.stop) for a, n in zip(box, like.shape[2:], strict=True)]
    mode = "constant" if outside == "zero" else "replicate"
    return F.pad(part, [p for pair in reversed(pads) for p in pair], mode)
