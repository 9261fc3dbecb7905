"""Becomes a command that is told to end (SIGTERM) when the process that started it does.

    python child.py PARENT COMMAND ...

A script, not a function between fork and exec: the sweep has threads by then, and only what needs
no lock may run there.
"""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1


def main() -> None:
    """Where the system has no such thing (it is Linux's), the command just runs."""
    parent, command = int(sys.argv[1]), sys.argv[2:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it ended before we asked
            sys.exit(128 + signal.SIGTERM)
    os.execvp(command[0], command)


if __name__ == "__main__":
    main()
