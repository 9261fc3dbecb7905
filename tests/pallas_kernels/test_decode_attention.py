"""Attention to a cache: implementations against the definition, and that against torch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.attention import attention
from pallas_kernels.decode_attention import (
    IMPLEMENTATIONS,
    decode_attention,
    example,
    reference,
)

FAST = sorted(set(IMPLEMENTATIONS) - {"reference"})
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}


def draw(seed: int, B: int, H: int, K: int, T: int, C: int, dtype) -> list[jax.Array]:
    """q, k_cache and v_cache."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in [(B, H, C), (B, K, T, C), (B, K, T, C)]]


@functools.partial(jax.jit, static_argnames=("implementation", "window", "scale"))
def run(q, k, v, lengths, start=None, *, implementation, window=None, scale=None):
    return decode_attention(
        q, k, v, lengths, window=window, scale=scale, start=start, implementation=implementation
    )


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@given(
    seed=st.integers(0, 2**16),
    T=st.sampled_from([1, 300, 5000]),
    heads=st.sampled_from([(1, 1), (2, 4), (3, 1)]),
    window=st.sampled_from([None, 1, 200]),
    fill=st.sampled_from([0.05, 0.4, 1.0]),
)
@settings(max_examples=5, deadline=None)
def test_agrees_with_the_reference(implementation, dtype, seed, T, heads, window, fill):
    K, G = heads
    B = 4
    with jax.enable_x64(dtype == "float64"):
        rng = np.random.default_rng(seed)
        q, k, v = draw(seed, B, K * G, K, T, 16, jnp.dtype(dtype))
        lengths = rng.integers(0, int(fill * T) + 1, B)
        start = jnp.asarray(rng.integers(0, lengths // 2 + 1), jnp.int32)
        lengths = jnp.asarray(lengths, jnp.int32)
        got = run(q, k, v, lengths, start, implementation=implementation, window=window)
        exact = [x.astype(jnp.promote_types(dtype, jnp.float32)) for x in (q, k, v)]
        want = run(*exact, lengths, start, implementation="reference", window=window)
        assert got.dtype == q.dtype
        error = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).max()
        assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("implementation", FAST)
def test_agrees_on_the_example_and_with_a_given_scale(implementation):
    args, options = example.draw(jax.random.key(0))
    got = IMPLEMENTATIONS[implementation](*args, scale=0.5, **options)
    np.testing.assert_allclose(
        got, reference.decode_attention(*args, scale=0.5, **options), atol=1e-5
    )


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [1, 129, 700, 999])
def test_agrees_with_torch(implementation, length):
    torch = pytest.importorskip("torch")
    q, k, v = draw(1, 2, 6, 3, 1000, 32, jnp.float32)
    live = [
        torch.tensor(np.asarray(x)) for x in (q[:, :, None], k[:, :, :length], v[:, :, :length])
    ]
    want = torch.nn.functional.scaled_dot_product_attention(*live, enable_gqa=True)[:, :, 0]
    got = run(q, k, v, jnp.full(2, length, jnp.int32), implementation=implementation)
    np.testing.assert_allclose(got, want.numpy(), atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 40])
def test_decoding_repeats_the_last_row_of_attention(implementation, window):
    """Left padding is a start; the cache holds keys at [B, K, T, C], a sequence at [B, S, K, C]."""
    q, k, v = draw(2, 2, 4, 2, 5000, 16, jnp.float32)
    S, start = 120, jnp.array([0, 50], jnp.int32)
    queries = jnp.broadcast_to(q[:, None], (2, S, 4, 16))
    segment_ids = (jnp.arange(S) >= start[:, None]).astype(jnp.int32)
    rows = (k[:, :, :S].swapaxes(1, 2), v[:, :, :S].swapaxes(1, 2))
    want = attention(queries, *rows, segment_ids, window=window, implementation="reference")[:, -1]
    lengths = jnp.full(2, S, jnp.int32)
    got = run(q, k, v, lengths, start, implementation=implementation, window=window)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("longest", [0, 60, 3000])
def test_an_idle_row_is_zero_and_disturbs_nobody(implementation, longest):
    q, k, v = draw(3, 2, 4, 2, 3000, 16, jnp.float32)
    beside_idle = run(q, k, v, jnp.array([longest, 0], jnp.int32), implementation=implementation)
    assert not np.any(beside_idle[1])
    beside_live = run(q, k, v, jnp.full(2, longest, jnp.int32), implementation=implementation)
    np.testing.assert_allclose(beside_idle[0], beside_live[0], atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("length", [100, 4900])
def test_what_lies_beyond_the_length_does_not_matter(implementation, length):
    """A cache row is reused without being cleared."""
    q, k, v = draw(4, 1, 4, 2, 5000, 16, jnp.float32)
    lengths = jnp.array([length], jnp.int32)
    stale = [x.at[:, :, length:].set(1e4) for x in (k, v)]
    clean = run(q, k, v, lengths, implementation=implementation)
    np.testing.assert_array_equal(run(q, *stale, lengths, implementation=implementation), clean)


@pytest.mark.parametrize("implementation", FAST)
def test_no_copy_of_the_cache(implementation):
    shapes = [(8, 8, 64), (8, 2, 8192, 64), (8, 2, 8192, 64)]
    q, k, v = (jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)
    lengths = jax.ShapeDtypeStruct((8,), jnp.int32)
    compiled = run.lower(q, k, v, lengths, implementation=implementation).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < k.size * 4 / 4


def test_refuses_an_unknown_implementation():
    q, k, v = draw(0, 1, 2, 1, 4, 16, jnp.float32)
    with pytest.raises(ValueError, match="'paged'; accepted: auto, .*xla, reference"):
        decode_attention(q, k, v, jnp.ones(1, jnp.int32), implementation="paged")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (2, 3, 16)}, r"multiple.*q \(2, 3, 16\), k_cache \(2, 2, 8, 16\)"),
        ({"q": (3, 4, 16)}, r"agree in B and C.*q \(3, 4, 16\)"),
        ({"v": (2, 2, 9, 16)}, r"one shape.*v_cache \(2, 2, 9, 16\)"),
        ({"q": (2, 1, 4, 16)}, r"q must be \[B, H, C\].*q \(2, 1, 4, 16\)"),
        ({"k": (2, 2, 0, 16), "v": (2, 2, 0, 16)}, "no axis may be empty"),
        ({"lengths": (3,)}, r"lengths must be integers of shape \[B\] = \(2,\); got int32 \(3,\)"),
        ({"start": (2, 1)}, r"start must be integers of shape \[B\] = \(2,\); got int32 \(2, 1\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(change, message):
    shapes = {
        "q": (2, 4, 16),
        "k": (2, 2, 8, 16),
        "v": (2, 2, 8, 16),
        "lengths": (2,),
        "start": (2,),
    }
    shapes |= change
    q, k, v = (jnp.zeros(shapes[name]) for name in "qkv")
    lengths, start = (jnp.zeros(shapes[name], jnp.int32) for name in ("lengths", "start"))
    with pytest.raises(ValueError, match=message):
        decode_attention(q, k, v, lengths, start=start)


def test_refuses_a_window_of_nothing():
    q, k, v = draw(0, 1, 2, 1, 4, 16, jnp.float32)
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        decode_attention(q, k, v, jnp.ones(1, jnp.int32), window=0)
