"""cca_mix and router: implementations against the reference, and what a user would
miss if it broke."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import cca_mix, router
from pallas_kernels.cca_mix import example as cca_example
from pallas_kernels.router import example as router_example

TOLERANCE = {"float32": 2e-4, "bfloat16": 0.1, "float64": 1e-11}


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(
    ("dtype", "shape", "heads", "kernels"),
    [
        ("float64", (2, 13), (4, 2), (2, 2)),
        ("float64", (1, 1), (6, 3), (4, 3)),
        ("float64", (3, 7), (3, 3), (1, 4)),
        ("float64", (2, 5), (2, 1), (3, 1)),
        ("float32", (2, 11), (2, 1), (2, 3)),
        ("bfloat16", (2, 9), (4, 2), (2, 2)),
    ],
)
def test_cca_mix_agrees_with_its_reference(dtype, shape, heads, kernels, with_state):
    with jax.enable_x64(dtype == "float64"):
        args, options = cca_example.draw(
            jax.random.key(3),
            jnp.dtype(dtype),
            shape=shape,
            heads=heads,
            channels=8,
            kernels=kernels,
            with_state=with_state,
        )
        table = cca_mix.IMPLEMENTATIONS
        both = jax.jit(lambda *a: [table[n](*a, **options) for n in ("xla", "reference")])
        for found, expected in zip(*both(*args), strict=True):
            assert found.dtype == expected.dtype == jnp.dtype(dtype)
            np.testing.assert_allclose(
                np.asarray(found, np.float64),
                np.asarray(expected, np.float64),
                atol=TOLERANCE[dtype],
            )


def test_cca_mix_gradients_agree_with_the_reference():
    with jax.enable_x64(True):
        args, options = cca_example.draw(
            jax.random.key(1), jnp.float64, kernels=(3, 2), with_state=True
        )
        floats = (0, 1, 2, 3, 4, 8)

        def loss(run):
            def f(chosen):
                full = list(args)
                for i, value in zip(floats, chosen, strict=True):
                    full[i] = value
                return sum(jnp.sum(jnp.sin(x)) for x in run(*full, **options))

            return jax.jit(jax.grad(f))([args[i] for i in floats])

        a, b = (loss(cca_mix.IMPLEMENTATIONS[name]) for name in ("xla", "reference"))
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-11), a, b)


def test_cca_mix_of_zeros_has_finite_gradients():
    """Padding can be all zeros; the L2 norm's gradient there must not be NaN."""
    args, options = cca_example.draw(jax.random.key(0), jnp.float32)
    zero = [jnp.zeros_like(x) for x in args[:4]]
    weights = jax.tree.map(jnp.zeros_like, args[4])

    def loss(zero):
        out = cca_mix.cca_mix(*zero, weights, *args[5:], **options)
        return sum(x.sum() for x in out)

    for g in jax.jit(jax.grad(loss))(zero):
        assert np.isfinite(g).all()


def test_router_bias_moves_the_choice_but_not_the_weight():
    args, options = router_example.draw(jax.random.key(0), jnp.float32)
    x, state, weights, biases, _ = args
    plain = router.router(x, state, weights, biases, **options)
    pushed = router.router(x, state, weights, biases.at[3].set(10.0), **options)
    assert (pushed.index == 3).all() and not (plain.index == 3).all()
    np.testing.assert_array_equal(pushed.weight[:, 0], pushed.probabilities[:, 3])
    np.testing.assert_array_equal(pushed.probabilities, plain.probabilities)


def test_router_never_routes_nor_counts_padding():
    args, options = router_example.draw(jax.random.key(0), jnp.float32)
    routing = router.router(*args, **options)
    live, classes = args[4], args[3].shape[0]
    assert (routing.index[~live] == classes).all() and (routing.index[live] < classes).all()
    assert routing.counts.sum() == live.sum()


def test_router_top_k_takes_distinct_classes_by_biased_probability():
    args, options = router_example.draw(jax.random.key(2), jnp.float32)
    routing = router.router(*args, **{**options, "top_k": 3})
    biased = np.asarray(routing.probabilities + args[3])
    live = np.asarray(args[4])
    expected = np.argsort(-biased, axis=-1)[:, :3]
    np.testing.assert_array_equal(np.asarray(routing.index)[live], expected[live])
