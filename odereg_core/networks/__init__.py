"""Networks; they know images, not training."""

from odereg_core.networks.dynamics import BSplineDynamics, DenseDynamics, RigidDynamics

DYNAMICS = {"rigid": RigidDynamics, "bspline": BSplineDynamics, "dense": DenseDynamics}

__all__ = ["DYNAMICS", "BSplineDynamics", "DenseDynamics", "RigidDynamics"]
