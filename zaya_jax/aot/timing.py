"""Times programs on the GPU that is attached to this process."""

from __future__ import annotations

import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels import dispatch
from zaya_jax.aot.program import Program, arrays_only
from zaya_jax.aot.targets import Target
from zaya_jax.errors import UserError

WARM, RUNS, CALLS = 2, 7, 10


def require_attached(target: Target) -> None:
    """Raises:
    UserError: jax runs on something else than the target's platform here.
    """
    attached = dispatch.platform()
    if attached != target.platform:
        raise UserError(
            f"--time: {target.name} needs a GPU of {target.platform}, and jax runs on {attached}"
        )


def seconds_of(program: Program) -> float:
    """The median over runs of a call's time, each run `CALLS` calls in a row.

    Arrays without values are drawn at random (integers are 0). Nothing is donated.
    """
    call, arrays = arrays_only(program)
    leaves, structure = jax.tree.flatten(arrays)
    drawn = [_drawn(leaf, position) for position, leaf in enumerate(leaves)]
    run = jax.jit(call).lower(*jax.tree.unflatten(structure, drawn)).compile()
    given = jax.tree.unflatten(structure, drawn)
    times = []
    for _ in range(WARM + RUNS):
        began = time.perf_counter()
        for _ in range(CALLS):
            out = run(*given)
        jax.block_until_ready(out)
        times.append((time.perf_counter() - began) / CALLS)
    return statistics.median(times[WARM:])


def _drawn(leaf: Any, seed: int) -> jax.Array:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.asarray(np.asarray(leaf))
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        draw = jax.jit(
            lambda key: jax.random.normal(key, leaf.shape, jnp.float32).astype(leaf.dtype)
        )
        return draw(jax.random.key(seed, impl="unsafe_rbg"))
    return jnp.zeros(leaf.shape, leaf.dtype)
