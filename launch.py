#!/usr/bin/env python3
"""The only entry point: `python launch.py VERB ...`; alone, it lists the verbs."""

import os
import signal
import sys
from pathlib import Path

from zaya_jax import platform

CACHE = Path(__file__).parent.absolute() / ".cache" / "jax"
TERMINATED = 128 + signal.SIGTERM


def main() -> int:
    """Sets the platform's environment, which jax reads on import, then runs the verb."""
    os.environ.update(platform.preset())
    os.environ.update(platform.cache_preset(os.environ, CACHE))
    # As an exception, so that a verb that is told to end takes its half-written files along.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(TERMINATED))
    from zaya_jax import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
