"""Causal attention: implementations against the definition, and that against torch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels.attention import IMPLEMENTATIONS, attention, example, reference
from pallas_kernels.attention.xla import MAX_BLOCK, tiling

FAST = sorted(set(IMPLEMENTATIONS) - {"reference"})
# Relative to the largest entry of the reference's result in float32 or better.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}


def draw(seed: int, B: int, S: int, H: int, K: int, C: int, dtype) -> list[jax.Array]:
    """q, k, v and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    heads = (H, K, K, H)
    return [jnp.asarray(rng.normal(size=(B, S, n, C)), dtype) for n in heads]


def packed(seed: int, B: int, S: int) -> jax.Array:
    """int32 [B, S]: a few documents a row, numbered from 1, and padding (0) behind or in front."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.integers(1, 5, size=(B, S)), axis=1)
    for row in ids:
        padding = rng.integers(0, S // 3 + 1)
        row[slice(S - padding, S) if rng.random() < 0.5 else slice(0, padding)] = 0
    return jnp.asarray(ids, jnp.int32)


def value_and_gradients(run, q, k, v, cotangent, segment_ids, **options):
    """out, dq, dk, dv."""

    @jax.jit  # one compilation; op by op, each would be compiled for itself
    def evaluate(q, k, v, cotangent, segment_ids):
        out, pullback = jax.vjp(lambda q, k, v: run(q, k, v, segment_ids, **options), q, k, v)
        return out, *pullback(cotangent)

    return evaluate(q, k, v, cotangent, segment_ids)


def check(implementation, arrays, segment_ids=None, **options):
    """Values and gradients against the reference evaluated in float32 at least."""
    dtype = arrays[0].dtype
    exact = [x.astype(jnp.promote_types(dtype, jnp.float32)) for x in arrays]
    got = value_and_gradients(IMPLEMENTATIONS[implementation], *arrays, segment_ids, **options)
    want = value_and_gradients(reference.attention, *exact, segment_ids, **options)
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert a.dtype == dtype, name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Where a gradient cancels to zero (a row that sees one key has none in q), the rounding of
        # its terms remains: measure against the size of the terms, which are of order one or more.
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1)
        assert error < TOLERANCE[dtype.name], (name, error)


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64"])
@given(
    seed=st.integers(0, 2**16),
    B=st.integers(1, 2),
    S=st.sampled_from([1, 2, 17, 128, 129, 257, 300]),
    K=st.sampled_from([1, 2, 3]),
    G=st.sampled_from([1, 2, 4]),
    C=st.sampled_from([16, 32]),
    window=st.sampled_from([None, 1, 5, 100, 1000]),
    segments=st.booleans(),
)
@settings(max_examples=4, deadline=None)
def test_agrees_with_the_reference(implementation, dtype, seed, B, S, K, G, C, window, segments):
    with jax.enable_x64(dtype == "float64"):
        arrays = draw(seed, B, S, K * G, K, C, jnp.dtype(dtype))
        segment_ids = packed(seed, B, S) if segments else None
        check(implementation, arrays, segment_ids, window=window)


@pytest.mark.parametrize("implementation", FAST)
def test_agrees_on_the_example_and_with_a_given_scale(implementation):
    args, options = example.draw(jax.random.key(0))
    cotangent = jnp.cos(jnp.arange(args[0].size, dtype=jnp.float32)).reshape(args[0].shape)
    check(implementation, [*args[:3], cotangent], args[3], scale=0.5, **options)


@pytest.mark.parametrize("implementation", FAST)
def test_segments_in_any_order_over_several_blocks(implementation):
    """Skipping of key blocks must not rely on ids that grow along the row."""
    S = 2 * MAX_BLOCK + 40
    ids = jnp.asarray(np.repeat([[7, 3, 7, 0, 5, 3]], S // 6 + 1, axis=1)[:, :S], jnp.int32)
    shuffled = jnp.asarray(np.random.default_rng(0).permutation(np.asarray(ids[0]))[None])
    for segment_ids in (ids, shuffled):
        check(implementation, draw(0, 1, S, 2, 1, 16, jnp.float32), segment_ids, window=400)


@pytest.mark.parametrize("implementation", FAST)
def test_survives_scores_far_beyond_the_range_of_exp(implementation):
    q, k, v, cotangent = draw(0, 1, 300, 2, 1, 16, jnp.float32)
    results = value_and_gradients(
        IMPLEMENTATIONS[implementation], 1e3 * q, 1e3 * k, v, cotangent, None
    )
    want = reference.attention(1e3 * q, 1e3 * k, v)
    assert all(np.isfinite(x).all() for x in results)
    np.testing.assert_allclose(results[0], want, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_documents_of_a_packed_row_are_those_attended_alone(implementation):
    q, k, v, cotangent = draw(1, 1, 200, 4, 2, 16, jnp.float32)
    run = IMPLEMENTATIONS[implementation]
    ids = jnp.asarray(np.repeat([1, 2, 3], [90, 1, 109])[None], jnp.int32)
    together = value_and_gradients(run, q, k, v, cotangent, ids)
    for part in (slice(0, 90), slice(90, 91), slice(91, 200)):
        alone = value_and_gradients(run, *(x[:, part] for x in (q, k, v, cotangent)), None)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[:, part], b, atol=2e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("window", [None, 33])
def test_agrees_with_torch(implementation, window):
    """An oracle that shares no line with ours: torch's attention with an explicit mask."""
    torch = pytest.importorskip("torch")
    B, S, H, K, C = 2, 150, 6, 3, 16
    segment_ids = packed(3, B, S)
    arrays = draw(2, B, S, H, K, C, jnp.float32)
    i, j = np.arange(S)[:, None], np.arange(S)[None, :]
    ids = np.asarray(segment_ids)
    visible = (j <= i) & (i - j < (window or S)) & (ids[:, :, None] == ids[:, None, :])

    tq, tk, tv, cotangent = (torch.tensor(np.asarray(x)).transpose(1, 2) for x in arrays)
    leaves = [x.clone().requires_grad_() for x in (tq, tk, tv)]
    out = torch.nn.functional.scaled_dot_product_attention(
        *leaves, attn_mask=torch.tensor(visible)[:, None], enable_gqa=True
    )
    want = [out, *torch.autograd.grad(out, leaves, cotangent)]
    run = functools.partial(attention, implementation=implementation)
    got = value_and_gradients(run, *arrays, segment_ids, window=window)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b.detach().transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.parametrize("implementation", FAST)
def test_transforms_that_training_uses(implementation):
    """jit, vmap and rematerialization give what the plain call gives."""
    q, k, v, _ = draw(4, 2, 140, 4, 2, 16, jnp.float32)
    ids = packed(4, 2, 140)
    run = functools.partial(IMPLEMENTATIONS[implementation], window=70)

    def loss(q, k, v):
        return jnp.sum(jnp.sin(run(q, k, v, ids)))

    want = jax.jit(jax.grad(loss, (0, 1, 2)))(q, k, v)
    rematerialized = jax.jit(jax.grad(jax.checkpoint(loss), (0, 1, 2)))(q, k, v)
    for a, b in zip(rematerialized, want, strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)
    by_row = jax.jit(jax.vmap(lambda *row: run(*(x[None] for x in row))[0]))(q, k, v, ids)
    np.testing.assert_allclose(by_row, jax.jit(run)(q, k, v, ids), atol=1e-6)


@pytest.mark.parametrize("packing", [False, True])
def test_memory_of_the_gradient_grows_with_the_length_and_not_its_square(packing):
    H, K, C = 4, 2, 32

    def temporary(S):
        shapes = [jax.ShapeDtypeStruct((1, S, n, C), jnp.float32) for n in (H, K, K)]
        ids = jax.ShapeDtypeStruct((1, S), jnp.int32)

        def loss(q, k, v, ids):
            return attention(q, k, v, ids if packing else None, implementation="xla").sum()

        lowered = jax.jit(jax.grad(loss, (0, 1, 2))).lower(*shapes, ids)
        return lowered.compile().memory_analysis().temp_size_in_bytes

    at_4k, at_128k = temporary(4096), temporary(131072)
    assert at_4k < 4096 * 4096 * H * 4 / 8
    assert at_128k < 32 * at_4k


@given(st.integers(1, 10_000))
@settings(max_examples=50, deadline=None)
def test_tiling_covers_a_row_with_little_padding(S):
    tiles = tiling(S)
    assert tiles.block_k <= MAX_BLOCK
    assert tiles.block_q * tiles.queries == tiles.block_k * tiles.keys >= S
    assert tiles.block_k * tiles.keys - S < 16 * tiles.keys
    assert tiles.block_k % tiles.block_q == 0


def test_refuses_an_unknown_implementation():
    q, k, v, _ = draw(0, 1, 4, 2, 1, 16, jnp.float32)
    with pytest.raises(ValueError, match="'cudnn'; accepted: auto, .*xla, reference"):
        attention(q, k, v, implementation="cudnn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (1, 4, 2, 16), "v": (1, 4, 2, 16)}, r"multiple.*\(1, 4, 3, 16\), k \(1, 4, 2, 16\)"),
        ({"k": (1, 5, 1, 16), "v": (1, 5, 1, 16)}, r"agree in B, S and C.*k \(1, 5, 1, 16\)"),
        ({"v": (1, 5, 1, 16)}, r"one shape.*v \(1, 5, 1, 16\)"),
        ({"q": (4, 3, 16)}, r"must be \[B, S, heads, C\].*q \(4, 3, 16\)"),
        ({"q": (1, 0, 3, 16), "k": (1, 0, 1, 16), "v": (1, 0, 1, 16)}, "no axis may be empty"),
        ({"ids": (1, 5)}, r"segment_ids must be \[B, S\] = \(1, 4\); got \(1, 5\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(change, message):
    shapes = {"q": (1, 4, 3, 16), "k": (1, 4, 1, 16), "v": (1, 4, 1, 16), "ids": (1, 4)} | change
    q, k, v = (jnp.zeros(shapes[name]) for name in "qkv")
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, jnp.zeros(shapes["ids"], jnp.int32))


def test_refuses_a_window_of_nothing_and_segments_that_are_not_integers():
    q, k, v, _ = draw(0, 1, 4, 2, 1, 16, jnp.float32)
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        attention(q, k, v, window=0)
    with pytest.raises(ValueError, match="segment_ids must be integers; got float32"):
        attention(q, k, v, jnp.ones((1, 4)))
