"""Networks; they know images, not training."""

from odereg_core.networks.dynamics import RigidDynamics

DYNAMICS = {"rigid": RigidDynamics}

__all__ = ["DYNAMICS", "RigidDynamics"]
