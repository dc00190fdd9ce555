"""In what precision numbers are computed."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch import Tensor


def full_precision(method: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A method whose numbers are millimetres: never computed in less than float32.

    Autocast would round its products to bfloat16 (at 100 mm, half a millimetre); inside it is off,
    and arguments in half precision are widened.
    """

    @wraps(method)
    def exact(*args: Any, **kwargs: Any) -> Tensor:
        args = tuple(
            a.float() if isinstance(a, Tensor) and a.dtype in (torch.float16, torch.bfloat16) else a
            for a in args
        )
        kind = next(a.device.type for a in (*args, *kwargs.values()) if isinstance(a, Tensor))
        with torch.autocast(kind, enabled=False):
            return method(*args, **kwargs)

    return exact
