"""The numerics policy seen from outside: dtypes of what flows, and bfloat16 beside transformers."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.oracles import tiny_model
from zaya_jax.bench import drift
from zaya_jax.errors import UserError
from zaya_jax.model import cache as caches
from zaya_jax.model.functional import declarations, init, merge


def shapes(model):
    """Abstract stream, hidden, logits and cache of a call on bfloat16 activations."""
    params, biases = jax.eval_shape(lambda: init(model, jax.random.key(0)))

    def run(params, biases, ids):
        decoder = merge(model, params, biases)
        out = decoder(ids, cache=caches.empty(model, 1, 8))
        return decoder.embed(ids), out.hidden, decoder.logits(out.hidden), out.cache.layers[0].k

    return jax.eval_shape(run, params, biases, jnp.zeros((1, 4), jnp.int32))


@pytest.mark.parametrize(
    ("numerics", "in_fp32", "param_dtype", "expected"),
    [
        ("training", True, "bfloat16", ("float32", "float32", "float32", "bfloat16")),
        ("training", False, "float32", ("bfloat16", "float32", "float32", "bfloat16")),
        ("reference", True, "bfloat16", ("float32", "bfloat16", "bfloat16", "bfloat16")),
        ("reference", False, "bfloat16", ("bfloat16", "bfloat16", "bfloat16", "bfloat16")),
    ],
)
def test_stream_hidden_logits_and_cache_have_the_policys_dtypes(
    numerics, in_fp32, param_dtype, expected
):
    model = dataclasses.replace(
        tiny_model(layers=2),
        numerics=numerics,
        residual_in_fp32=in_fp32,
        param_dtype=param_dtype,
        activation_dtype="bfloat16",
    )
    assert tuple(str(x.dtype) for x in shapes(model)) == expected


def test_head_multiplies_in_the_dtype_that_weights_are_stored_in():
    """Master weights keep their float32 in the head; bfloat16 weights are not copied to float32."""
    for stored in ("float32", "bfloat16"):
        model = dataclasses.replace(
            tiny_model(layers=1),
            numerics="training",
            param_dtype=stored,
            activation_dtype="bfloat16",
        )
        params, biases = jax.eval_shape(lambda m=model: init(m, jax.random.key(0)))
        run = lambda p, b, m=model: merge(m, p, b).head(jnp.ones((3, m.hidden_size)))  # noqa: E731
        assert {str(x.dtype) for x in jax.eval_shape(run, params, biases)} == {stored}


def test_bfloat16_drifts_no_further_than_transformers():
    """`reference` follows transformers' dtype flow: its drift from float32 is the same size.

    A changed route moves a token by far more than rounding does, so the bound is on the layers in
    front of the first changed route, and loose.
    """
    rows = drift.measure(tiny_model(layers=3, hidden=64, experts=4), batch=2, length=48, seed=3)
    first = rows[0]
    assert 1e-4 < first.transformers < 5e-2
    assert first.reference < 2 * first.transformers and first.between < 3 * first.transformers
    assert all(np.isfinite(list(dataclasses.asdict(row).values())).all() for row in rows)


def test_float64_without_64_bit_jax_is_refused():
    model = dataclasses.replace(tiny_model(dtype="float64"), vocab_size=101)
    with pytest.raises(UserError, match="JAX_ENABLE_X64"):
        declarations(model)
