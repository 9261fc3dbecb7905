"""What the tests of ops share: values and gradients of one implementation beside another's."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from hypothesis import Phase, settings

# Each example compiles: few of them, and a failing one is not made smaller.
few_examples = settings(max_examples=3, phases=(Phase.explicit, Phase.generate))


def is_float(x: Any) -> bool:
    return isinstance(x, jax.Array) and jnp.issubdtype(x.dtype, jnp.floating)


def widened(tree: Any) -> Any:
    """The floats of a tree in float32 at least, to evaluate a definition in."""

    def wide(x):
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if is_float(x) else x

    return jax.tree.map(wide, tree)


def of_floats(run: Callable, args: Any) -> tuple[Callable[[list[jax.Array]], Any], list[jax.Array]]:
    """`run` as a function of the list of the floats in `args`, the rest as given; and that list."""
    leaves, structure = jax.tree.flatten(args)
    floats = [i for i, leaf in enumerate(leaves) if is_float(leaf)]

    def forward(chosen: list[jax.Array]) -> Any:
        full = list(leaves)
        for i, value in zip(floats, chosen, strict=True):
            full[i] = value
        return run(*jax.tree.unflatten(structure, full))

    return forward, [leaves[i] for i in floats]


def evaluate(run: Callable, args: tuple, options: Mapping[str, Any], seed: int = 0) -> Any:
    """`(outputs, gradients)`: what `run` returns, and gradients of every float in `args` against
    cotangents that depend on the seed and on the shapes only."""
    forward, floats = of_floats(functools.partial(run, **options), args)

    @jax.jit  # one compilation; op by op, each would be compiled for itself
    def both(chosen):
        outputs, pullback = jax.vjp(forward, chosen)
        rng = np.random.default_rng(seed)

        def cotangent(x):
            if not jnp.issubdtype(x.dtype, jnp.floating):
                return np.zeros(x.shape, jax.dtypes.float0)
            return jnp.asarray(rng.normal(size=x.shape)).astype(x.dtype)

        return outputs, pullback(jax.tree.map(cotangent, outputs))[0]

    return both(floats)


def assert_close(found: Any, expected: Any, tolerance: float, floor: float = 0.0) -> None:
    """Every float leaf within `tolerance` of its expected value, relative to the largest entry
    expected in that leaf or `floor`, whichever is larger; other leaves equal."""
    found_leaves = jax.tree_util.tree_leaves_with_path(found)
    for (path, a), b in zip(found_leaves, jax.tree.leaves(expected), strict=True):
        assert a.shape == b.shape, path
        if not is_float(b):
            np.testing.assert_array_equal(a, b, err_msg=str(path))
            continue
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.abs(a - b).max(initial=0) / max(np.abs(b).max(initial=0), floor, 1e-30)
        assert error <= tolerance, (jax.tree_util.keystr(path), error)
