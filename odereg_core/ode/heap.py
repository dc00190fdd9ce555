"""A heap that keeps what one evaluation of f frees for the next.

glibc gives large blocks back to the system as soon as they are freed, and whoever asks for memory
next waits for fresh pages. A solver that evaluates f again and again waits each time: on a CPU half
as long as f itself takes on the demo's grid.
"""

from __future__ import annotations

import ctypes
import os
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # malloc.h
SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES")


@cache
def keep_freed_memory() -> bool:
    """Let this process keep freed memory for its own next use; whether it now does.

    The environment's own settings win, and where the C library is not glibc nothing changes.
    """
    if any(name in os.environ for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1))
