#!/usr/bin/env python3
"""The only entry point: `python launch.py VERB ...`; alone, it lists the verbs."""

import os
import sys

from zaya_jax import platform


def main() -> int:
    """Sets the platform's environment, which jax reads on import, then runs the verb."""
    os.environ.update(platform.preset())
    from zaya_jax import cli

    return cli.main(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
