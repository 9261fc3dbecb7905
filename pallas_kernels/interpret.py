"""Whether kernels are interpreted: run step by step on the CPU, to debug and to test them.

Slow by orders of magnitude, and blind to what only a GPU's compiler does; never chosen by itself.
"""

from __future__ import annotations

import os

VARIABLE = "ZAYA_PALLAS_INTERPRET"


def enabled() -> bool:
    """True if the environment asks for it; read whenever an op is traced."""
    return os.environ.get(VARIABLE, "") not in ("", "0")
