"""Times programs on the GPU that is attached to this process."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels import dispatch
from zaya_jax.aot.program import Program, arrays_only
from zaya_jax.aot.targets import Target
from zaya_jax.errors import UserError

WARM, RUNS = 2, 7
# Calls in a row: as many as take `SPAN` seconds, found out from `FEW` of them.
FEW, MOST, SPAN = 4, 1000, 0.02
# Cards of the same generation with fewer cores or a slower memory say so in their name.
LESSER = ("pcie", "nvl")


def require_attached(target: Target) -> None:
    """Raises:
    UserError: jax runs on something else than the target here: its settings would be another's.
    """
    platform, kind = dispatch.platform(), jax.devices()[0].device_kind
    if platform != target.platform:
        raise UserError(
            f"--time: {target.name} needs a GPU of {target.platform}, and jax runs on {platform}"
        )
    name = kind.lower()
    if target.name not in name or any(word in name for word in LESSER):
        raise UserError(
            f"--time: --target={target.name} needs an {target.title}, and {kind} is attached"
        )


def seconds_of(program: Program) -> float:
    """The median over runs of a call's time, each run many calls in a row.

    Arrays without values are drawn at random (integers are 0, bools true): those whose values
    steer a kernel's work belong into `shapes_8b`. Nothing is donated.
    """
    call, arrays = arrays_only(program)
    leaves, structure = jax.tree.flatten(arrays)
    drawn = [_drawn(leaf, position) for position, leaf in enumerate(leaves)]
    given = jax.tree.unflatten(structure, drawn)
    once = _timed(repeated(call, FEW), given, 1, 1) / FEW
    calls = min(max(math.ceil(SPAN / once), FEW), MOST)
    return _timed(repeated(call, calls), given, WARM, RUNS) / calls


def repeated(call: Callable, calls: int) -> Callable:
    """A function of the same arguments that does `call` so many times, one after the other, on the
    device alone, and gives a sum over the rounds of numbers of each, and the last results.

    A kernel of microseconds is done before Python has launched the next. The number of rounds is
    static, for XLA would fetch another one's condition from the device in each. Every round's
    arguments pass a barrier together with that sum, so that XLA can neither take the call out of
    the loop nor leave a round away.
    """

    def run(*args):
        def step(_, carry):
            token, _ = carry
            token, tied = lax.optimization_barrier((token, args))
            out = call(*tied)
            return sum(map(_first, jax.tree.leaves(out)), token), out

        shapes = jax.eval_shape(call, *args)
        nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
        return lax.fori_loop(0, calls, step, (jnp.zeros((), jnp.float32), nothing))

    return run


def _first(array: jax.Array) -> jax.Array:
    """Its first number."""
    return lax.slice(array, (0,) * array.ndim, (1,) * array.ndim).reshape(()).astype(jnp.float32)


def _timed(function: Callable, given: tuple, warm: int, runs: int) -> float:
    """The median of a function's seconds."""
    run = jax.jit(function).lower(*given).compile()
    times = []
    for _ in range(warm + runs):
        began = time.perf_counter()
        jax.block_until_ready(run(*given))
        times.append(time.perf_counter() - began)
    return statistics.median(times[warm:])


def _drawn(leaf: Any, seed: int) -> jax.Array:
    if not isinstance(leaf, jax.ShapeDtypeStruct):
        return jnp.asarray(np.asarray(leaf))
    if jnp.issubdtype(leaf.dtype, jnp.floating):
        draw = jax.jit(
            lambda key: jax.random.normal(key, leaf.shape, jnp.float32).astype(leaf.dtype)
        )
        return draw(jax.random.key(seed, impl="unsafe_rbg"))
    return jnp.full(leaf.shape, leaf.dtype == jnp.bool_, leaf.dtype)
