"""Multi-scale neural ODEs for 3-D medical image registration (Xu et al., MICCAI 2021)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("odereg-core")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"


def __getattr__(name: str):
    if name == "register":
        from odereg_core.registration import register

        return register
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
