"""The one exception that means: the input, not the program, is at fault; how commands tell it."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec

Arguments = ParamSpec("Arguments")


class InputError(ValueError):
    """Bad input from outside (a file, an option, a profile), told in one clear sentence.

    The message names the file or key and the fault. Command-line programs print it
    without a traceback and exit with code 2.
    """


def tells_faults(main: Callable[Arguments, int]) -> Callable[Arguments, int]:
    """A command, whose exit code `main` returns, that tells bad input, a file that can't be used
    or too little memory in one sentence on stderr, and then returns 2."""

    @functools.wraps(main)
    def command(*arguments: Arguments.args, **options: Arguments.kwargs) -> int:
        try:
            return main(*arguments, **options)
        except InputError as error:
            fault = str(error)
        except OSError as error:  # a folder that is a file, one that may not be read, a full disk
            where = f"{error.filename}: " if error.filename else ""
            fault = f"{where}{error.strerror or error}"
        except MemoryError:
            fault = "not enough memory for volumes of this size"
        print(f"error: {fault}", file=sys.stderr)
        return 2

    return command
