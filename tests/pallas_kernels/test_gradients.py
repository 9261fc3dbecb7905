"""Gradients of every op's definition against finite differences, in float64.

Implementations are compared with `reference.py`, so it is the reference's own gradient that all of
them stand on: here it is compared with what needs no derivative at all.
"""

from __future__ import annotations

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.cca_mix import example as cca_mix_example
from pallas_kernels.draws import Draws
from pallas_kernels.router import example as router_example
from tests.pallas_kernels.agreement import is_float, of_floats

STEP = 1e-5
# A central difference errs by STEP^2 / 6 of a third derivative, and by 1e-16 |loss| / STEP.
TOLERANCE = 1e-7


def attention(draws: Draws):
    B, K, G, C = (int(draws.numpy.integers(1, 4)) for _ in range(4))
    S, offset = int(draws.numpy.integers(1, 9)), int(draws.numpy.integers(0, 4))
    ids = np.sort(draws.numpy.integers(0, 3, (B, S + offset)), axis=1)  # documents and padding
    arrays = [draws.normal((B, n, heads, C)) for n, heads in ((S, K * G), *[(S + offset, K)] * 2)]
    options = {"query_offset": offset, "window": 3, "return_lse": True}
    return (*arrays, draws.array(ids, jnp.int32)), options


def decode_attention(draws: Draws):
    B, K, G, T, C = (int(n) for n in draws.numpy.integers(1, 5, 5))
    q = draws.normal((B, K * G, C))
    caches = [draws.normal((B, K, T, C)) for _ in range(2)]
    lengths = draws.array(draws.numpy.integers(0, T + 1, B), jnp.int32)
    return (q, *caches, lengths), {}


def grouped_matmul(draws: Draws):
    T, k, D, F, E = (int(n) for n in draws.numpy.integers(2, 6, 5))
    index = draws.array(draws.numpy.integers(-1, E + 1, (T, k)), jnp.int32)
    x, weight = draws.normal((T, D)), draws.normal((T, k))
    return (x, index, weight, draws.normal((E, D, 2 * F)), draws.normal((E, F, D))), {}


def cca_mix(draws: Draws):
    S, K, G, K0, K1 = (int(n) for n in draws.numpy.integers(1, 4, 5))
    return cca_mix_example.draw(
        int(draws.numpy.integers(99)),
        jnp.float64,
        shape=(2, 3 * S),
        heads=(K * G, K),
        channels=4,
        kernels=(K0, K1),
        with_state=bool(draws.numpy.integers(2)),
    )


def router(draws: Draws):
    args, options = router_example.draw(int(draws.numpy.integers(99)), jnp.float64)
    tokens = int(draws.numpy.integers(1, 24))
    x, state, weights, biases, live = args
    return (x[:tokens], state[:tokens], weights, biases, live[:tokens]), options


def residual_norm(draws: Draws):
    shape = tuple(int(n) for n in draws.numpy.integers(1, 9, 3))
    vectors = [draws.normal(shape[-1:], 0.5, mean=1) for _ in range(5)]
    options = dict(eps=1e-5, **{f"{x}_dtype": jnp.float64 for x in ("merge", "stream", "norm")})
    return (draws.normal(shape), draws.normal(shape), tuple(vectors[:4]), vectors[4]), options


def cross_entropy(draws: Draws):
    T, D, V = (int(n) for n in draws.numpy.integers(1, 9, 3))
    targets = draws.array(draws.numpy.integers(0, V, T), jnp.int32)
    return (draws.normal((T, D)), draws.normal((V, D)), targets), {}


def projections(draws: Draws):
    T, D, n, m = (int(size) for size in draws.numpy.integers(1, 6, 4))
    return (draws.normal((T, D)), (draws.normal((D, n)), draws.normal((D, m)))), {}


def newton_schulz(draws: Draws):
    shape = tuple(int(n) for n in draws.numpy.integers(1, 6, 3))
    return (draws.normal(shape),), {"products": jnp.float64}


def differences(run, args, rng) -> list[tuple[float, float, float]]:
    """For each floating array of `args`: the slope of a random sum of the outputs along a random
    direction by central difference, the same by the gradient, and the gradient's length."""
    forward, chosen = of_floats(run, args)

    def outputs(chosen):
        return [x for x in jax.tree.leaves(forward(chosen)) if is_float(x)]

    weights = [rng.normal(size=x.shape) for x in jax.eval_shape(outputs, chosen)]

    @jax.jit
    def evaluate(chosen):
        def loss(chosen):
            pairs = zip(weights, outputs(chosen), strict=True)
            return sum(jnp.vdot(w, x) for w, x in pairs)

        return jax.value_and_grad(loss)(chosen)

    _, gradients = evaluate(chosen)
    found = []
    for i, gradient in enumerate(gradients):
        direction = rng.normal(size=gradient.shape)
        ahead, behind = (
            float(evaluate([x + s * direction if j == i else x for j, x in enumerate(chosen)])[0])
            for s in (STEP, -STEP)
        )
        slope = float(jnp.vdot(gradient, direction))
        found.append(((ahead - behind) / (2 * STEP), slope, float(jnp.linalg.norm(gradient))))
    return found


@pytest.mark.parametrize("op", dispatch.OPS)
def test_the_definition_has_the_gradient_of_its_values(op):
    with jax.enable_x64(True):
        draws = Draws(7, jnp.dtype(jnp.float64))
        args, options = globals()[op](draws)
        reference = importlib.import_module(f"pallas_kernels.{op}.reference")
        name = {"grouped_matmul": "experts"}.get(op, op)
        run = functools.partial(getattr(reference, name), **options)
        found = differences(run, args, draws.numpy)
    assert found
    for by_difference, by_gradient, size in found:
        assert abs(by_difference - by_gradient) <= TOLERANCE * max(1, size), found
    assert any(size > 0 for _, _, size in found)
