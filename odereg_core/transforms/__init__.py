"""Parameterisations of the map phi_theta. A new one is a new file and one line here; a model of it
takes as much in `networks`, for its dynamics, and `train.draws` has to know what to draw."""

from odereg_core.transforms.base import Transform
from odereg_core.transforms.bspline import BSpline
from odereg_core.transforms.compose import affine_after, compose, invert
from odereg_core.transforms.dense import Dense
from odereg_core.transforms.rigid import Rigid

TRANSFORMS = {transform.name: transform for transform in (Rigid, BSpline, Dense)}

__all__ = [
    "TRANSFORMS",
    "BSpline",
    "Dense",
    "Rigid",
    "Transform",
    "affine_after",
    "compose",
    "invert",
]
