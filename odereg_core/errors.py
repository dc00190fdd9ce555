"""The one exception that means: the input, not the program, is at fault."""


class InputError(ValueError):
    """Bad input from outside (a file, an option, a profile), told in one clear sentence.

    The message names the file or key and the fault. Command-line programs print it
    without a traceback and exit with code 2.
    """
