"""Becomes another program that is asked to end when its parent ends: `python leash.py PARENT PROGRAM ARGUMENTS…`."""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Ties the signal to the parent's end; the kernel keeps it over the change of program."""
    parent, program = int(sys.argv[1]), sys.argv[2:]
    if ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")
    if os.getppid() != parent:
        # it ended before the signal was set
        sys.exit(1)
    os.execvp(program[0], program)


if __name__ == "__main__":
    main()
