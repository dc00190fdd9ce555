"""Run a command unless another run of this folder's graph is at work.

    python workflow/alone.py snakemake ... --nolock

Snakemake's own lock outlives a killed run and has to be taken off by hand; this one the system
takes off with the process, whatever ended it.
"""

import fcntl
import os
import sys

if __name__ == "__main__":
    lock = os.open(".snakemake.lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        sys.exit("error: another make is at work in this folder")
    os.set_inheritable(lock, True)
    os.execvp(sys.argv[1], sys.argv[1:])
