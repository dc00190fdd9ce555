"""Multi-scale neural ODEs for 3-D medical image registration (Xu et al., MICCAI 2021)."""

from importlib.metadata import PackageNotFoundError, version

try:
    __version__ = version("odereg-core")
except PackageNotFoundError:  # a source tree that was never installed
    __version__ = "0+unknown"
