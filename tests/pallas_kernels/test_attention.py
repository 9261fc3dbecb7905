"""Causal attention: implementations against the definition, and that against torch."""

from __future__ import annotations

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.attention import IMPLEMENTATIONS, attention, example, reference, triton, visits
from pallas_kernels.attention.xla import MAX_BLOCK, tiling

PORTABLE = sorted(set(IMPLEMENTATIONS) - {"reference", "triton"})
FAST = sorted(set(IMPLEMENTATIONS) - {"reference"})
# Relative to the largest entry of the reference's result in float32 or better. float32: sums of a
# few hundred terms of order one, in another order. bfloat16: probabilities and score gradients are
# rounded before their matmuls, the result after, each by at most 2^-9; errors of many terms average
# out, so four of them (8e-3) would bound one term's path and 2e-2 leaves room for the sum of few.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}
# Blocks of kernels: many of them in a short row, none dividing it.
BLOCKS = {"rows": 16, "keys": 16, "num_warps": 4, "num_stages": 1}
KERNELS = [k + d for k in ("forward", "backward_rows", "backward_keys") for d in ("", "_float32")]


@pytest.fixture(autouse=True, scope="module")
def small_blocks():
    with contextlib.ExitStack() as stack:
        for kernel in KERNELS:
            stack.enter_context(tuned.trying("attention", kernel, BLOCKS))
        yield


def draw(seed: int, B: int, S: int, H: int, K: int, C: int, dtype, T: int | None = None) -> list:
    """q, k, v and a cotangent of the output."""
    rng = np.random.default_rng(seed)
    shapes = [(B, S, H, C), (B, T or S, K, C), (B, T or S, K, C), (B, S, H, C)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


def packed(seed: int, B: int, S: int) -> jax.Array:
    """int32 [B, S]: a few documents a row, numbered from 1, and padding (0) behind or in front."""
    rng = np.random.default_rng(seed)
    ids = np.sort(rng.integers(1, 5, size=(B, S)), axis=1)
    for row in ids:
        padding = rng.integers(0, S // 3 + 1)
        row[slice(S - padding, S) if rng.random() < 0.5 else slice(0, padding)] = 0
    return jnp.asarray(ids, jnp.int32)


def value_and_gradients(implementation, q, k, v, cotangent, segment_ids, offset=0, **options):
    """out, dq, dk, dv; one compilation for all calls of the same shapes and options."""
    program = _program(implementation, tuple(options.items()))
    return program(q, k, v, cotangent, segment_ids, jnp.int32(offset))


@functools.cache
def _program(implementation, options):
    @jax.jit
    def evaluate(q, k, v, cotangent, segment_ids, offset):
        def run(q, k, v):
            call = IMPLEMENTATIONS[implementation]
            return call(q, k, v, segment_ids, query_offset=offset, **dict(options))

        out, pullback = jax.vjp(run, q, k, v)
        if isinstance(out, tuple):  # with log-sum-exp: its cotangent is any function of the shape
            cotangent = (cotangent, jnp.sin(jnp.arange(out[1].size)).reshape(out[1].shape))
            cotangent = jax.tree.map(lambda c, o: c.astype(o.dtype), cotangent, out)
        return jax.tree.leaves((out, pullback(cotangent)))

    return evaluate


def check(implementation, arrays, segment_ids=None, offset=0, **options):
    """Values and gradients against the reference evaluated in float32 at least."""
    dtype = arrays[0].dtype
    exact = [x.astype(jnp.promote_types(dtype, jnp.float32)) for x in arrays]
    got = value_and_gradients(implementation, *arrays, segment_ids, offset, **options)
    want = value_and_gradients("reference", *exact, segment_ids, offset, **options)
    names = ("out", "lse", "dq", "dk", "dv") if len(got) == 5 else ("out", "dq", "dk", "dv")
    for name, a, b in zip(names, got, want, strict=True):
        assert a.dtype == (b.dtype if name == "lse" else dtype), name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        # Where a gradient cancels to zero (a row that sees one key has none in q), the rounding of
        # its terms remains: measure against the size of the terms, which are of order one or more.
        error = np.abs(a - b).max() / max(np.abs(b).max(), 1)
        assert error < TOLERANCE[dtype.name], (name, error)


@pytest.mark.parametrize(
    ("implementation", "dtype"),
    [
        *((name, dtype) for name in PORTABLE for dtype in ("float32", "bfloat16", "float64")),
        pytest.param("triton", "float32", marks=pytest.mark.slow),
        pytest.param("triton", "bfloat16", marks=pytest.mark.slow),
    ],
)
@given(
    seed=st.integers(0, 2**16),
    B=st.integers(1, 2),
    S=st.sampled_from([1, 2, 17, 128, 129, 257, 300]),
    before=st.sampled_from([0, 0, 1, 150]),
    behind=st.sampled_from([0, 0, 40]),
    K=st.sampled_from([1, 2, 3]),
    G=st.sampled_from([1, 2, 3, 4]),
    C=st.sampled_from([16, 32]),
    window=st.sampled_from([None, 1, 5, 100, 1000]),
    segments=st.booleans(),
    lse=st.booleans(),
)
@settings(max_examples=3)
def test_agrees_with_the_reference(
    implementation, dtype, seed, B, S, before, behind, K, G, C, window, segments, lse
):
    with jax.enable_x64(dtype == "float64"):
        T = before + S + behind
        arrays = draw(seed, B, S, K * G, K, C, jnp.dtype(dtype), T)
        segment_ids = packed(seed, B, T) if segments else None
        check(implementation, arrays, segment_ids, before, window=window, return_lse=lse)


# What kernels depend on beside data, each drawn shape of which takes seconds to interpret.
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("S", "T", "K", "G", "C", "dtype", "options"),
    [
        (50, 50, 2, 3, 16, "float32", {}),  # rows, keys and group divided by no block
        (21, 70, 1, 4, 16, "float32", {"window": 13, "return_lse": True}),
        (64, 64, 3, 1, 32, "bfloat16", {}),  # every block full
        # The widths that are compiled for GPUs.
        pytest.param(33, 40, 1, 4, 64, "bfloat16", {}, marks=pytest.mark.slow),
        pytest.param(33, 40, 1, 4, 128, "bfloat16", {"window": 20}, marks=pytest.mark.slow),
        pytest.param(33, 40, 1, 4, 128, "float32", {"return_lse": True}, marks=pytest.mark.slow),
    ],
)
@given(seed=st.integers(0, 2**16), kind=st.sampled_from(["packed", "blocks", "shuffled", "one"]))
@settings(max_examples=8)
def test_kernels_agree_with_the_reference(S, T, K, G, C, dtype, options, seed, kind):
    rng = np.random.default_rng(seed)
    segment_ids = {
        "packed": packed(seed, 2, T),
        "blocks": jnp.repeat(packed(seed, 2, -(-T // 16)), 16, axis=1)[:, :T],  # at block edges
        "shuffled": jnp.asarray(rng.permutation(np.arange(2 * T) % 5).reshape(2, T), jnp.int32),
        "one": jnp.ones((2, T), jnp.int32),
    }[kind]
    arrays = draw(seed, 2, S, K * G, K, C, jnp.dtype(dtype), T)
    check("triton", arrays, segment_ids, rng.integers(0, T - S + 1), **options)


@pytest.mark.kernel
@pytest.mark.parametrize("blocks", [None, {"rows": 16, "keys": 32}])
def test_kernels_on_one_token(blocks):
    """With the settings of the GPU, whose blocks are larger than everything, and others."""
    known = tuned.table("attention")
    own = known.get(dispatch.platform(), known["rocm"])
    chosen = BLOCKS | blocks if blocks else own["forward_float32"]
    q, k, v, _ = draw(0, 2, 1, 6, 2, 16, jnp.float32)
    with tuned.trying("attention", "forward_float32", chosen):
        out, lse = triton.attention(q, k, v, return_lse=True)
    np.testing.assert_allclose(out, jnp.repeat(v, 3, axis=2), atol=1e-6)
    scores = (q * jnp.repeat(k, 3, axis=2)).sum(-1) / 4
    np.testing.assert_allclose(lse, scores, atol=1e-5)


@pytest.mark.parametrize(
    "sizes",
    [
        visits.Sizes(45, 80, group=3, block_rows=8, block_keys=16, window=None),
        visits.Sizes(45, 80, group=2, block_rows=16, block_keys=8, window=21),
        visits.Sizes(5, 70, group=1, block_rows=32, block_keys=32, window=1),
    ],
)
@given(
    offset=st.integers(0, 35),
    segments=st.sampled_from([None, 1, 3, 30]),
    seed=st.integers(0, 2**16),
)
@settings(max_examples=12)
def test_kernels_visit_all_that_is_visible(sizes, offset, segments, seed):
    """And mask whatever is not: a tile counts as plain only if all of its pairs are visible."""
    S, T, G, rows, keys, window = sizes
    ids = None
    if segments:
        drawn = np.random.default_rng(seed).integers(0, segments, (2, T))
        ids = jnp.asarray(np.sort(drawn, axis=1), jnp.int32)
    row, key = np.arange(sizes.row_blocks * rows), np.arange(sizes.key_blocks * keys)
    # Rows and keys over the end repeat the last one.
    query, other = np.minimum(row, S * G - 1) // G, np.minimum(key, T - 1)
    ahead = (offset + query)[:, None] - other[None, :]
    visible = ((ahead >= 0) & (ahead < (window or T)))[None]
    if ids is not None:
        own = np.asarray(ids)[:, offset + query]
        visible = visible & (own[:, :, None] == np.asarray(ids)[:, None, other])
    exists = (row < S * G)[:, None] & (key < T)[None, :]

    def tiles(pairs):  # [B, row_blocks, key_blocks, a tile]
        blocks = pairs.reshape(-1, sizes.row_blocks, rows, sizes.key_blocks, keys)
        return blocks.swapaxes(2, 3).reshape(*blocks.shape[:2], sizes.key_blocks, -1)

    seen = tiles(visible & exists).any(3)
    plain_for_rows = tiles(visible & (key < T)).all(3)
    plain_for_keys = tiles(visible & (row < S * G)[:, None]).all(3).swapaxes(1, 2)
    for spans, seen_here, plain_here in [
        (VISITS["rows"](sizes, jnp.int32(offset), ids), seen, plain_for_rows),
        (VISITS["keys"](sizes, jnp.int32(offset), ids), seen.swapaxes(1, 2), plain_for_keys),
    ]:
        number = np.arange(seen_here.shape[2])
        begin, plain_begin, plain_end, end = np.moveaxis(np.asarray(spans)[..., None], 2, 0)
        assert (begin <= plain_begin).all() and (plain_begin <= plain_end).all()
        assert (plain_end <= end).all() and (end <= number.size).all()
        visited = (number >= begin) & (number < end)
        plain = (number >= plain_begin) & (number < plain_end)
        assert not (seen_here & ~visited).any()
        assert not (plain & ~plain_here).any()
        if segments is None:  # then nothing is visited or masked in vain
            np.testing.assert_array_equal(visited, seen_here)
            np.testing.assert_array_equal(plain, plain_here)


VISITS = {
    own: jax.jit(function, static_argnums=0)
    for own, function in (("rows", visits.of_rows), ("keys", visits.of_keys))
}


def test_kernels_skip_what_shares_no_segment():
    """Packed documents cost what they cost alone."""
    sizes = visits.Sizes(4096, 4096, 4, 128, 32, None)
    ids = jnp.repeat(jnp.arange(8, dtype=jnp.int32), 512)[None]
    packed_row = VISITS["rows"](sizes, jnp.int32(0), ids)
    alone = VISITS["rows"](sizes._replace(queries=512, keys=512), jnp.int32(0), None)
    count = lambda spans: int((spans[..., 3] - spans[..., 0]).sum())  # noqa: E731
    assert count(packed_row) == 8 * count(alone)


@pytest.mark.parametrize("implementation", PORTABLE)
def test_agrees_on_the_example_and_with_a_given_scale(implementation):
    args, options = example.draw(jax.random.key(0))
    cotangent = jnp.cos(jnp.arange(args[0].size, dtype=jnp.float32)).reshape(args[0].shape)
    check(implementation, [*args[:3], cotangent], args[3], scale=0.5, **options)


@pytest.mark.parametrize("implementation", PORTABLE)
def test_segments_in_any_order_over_several_blocks(implementation):
    """Skipping of key blocks must not rely on ids that grow along the row."""
    S = 2 * MAX_BLOCK + 40
    ids = jnp.asarray(np.repeat([[7, 3, 7, 0, 5, 3]], S // 6 + 1, axis=1)[:, :S], jnp.int32)
    shuffled = jnp.asarray(np.random.default_rng(0).permutation(np.asarray(ids[0]))[None])
    for segment_ids in (ids, shuffled):
        check(implementation, draw(0, 1, S, 2, 1, 16, jnp.float32), segment_ids, window=400)


@pytest.mark.parametrize("implementation", FAST)
def test_survives_scores_far_beyond_the_range_of_exp(implementation):
    q, k, v, cotangent = draw(0, 2, 50, 6, 2, 16, jnp.float32)
    ids = jnp.ones((2, 50), jnp.int32)
    results = value_and_gradients(implementation, 1e3 * q, 1e3 * k, v, cotangent, ids)
    want = reference.attention(1e3 * q, 1e3 * k, v)
    assert all(np.isfinite(x).all() for x in results)
    np.testing.assert_allclose(results[0], want, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", *PORTABLE])
def test_documents_of_a_packed_row_are_those_attended_alone(implementation):
    arrays = draw(1, 1, 200, 4, 2, 16, jnp.float32)
    ids = jnp.asarray(np.repeat([1, 2, 3], [90, 1, 109])[None], jnp.int32)
    together = value_and_gradients(implementation, *arrays, ids)
    for part in (slice(0, 90), slice(90, 91), slice(91, 200)):
        alone = value_and_gradients(implementation, *(x[:, part] for x in arrays), None)
        for a, b in zip(together, alone, strict=True):
            np.testing.assert_allclose(a[:, part], b, atol=2e-5)


@pytest.mark.parametrize("implementation", FAST)
def test_shards_of_the_queries_give_what_the_whole_row_gives(implementation):
    """As a context-parallel device does with gathered keys; gradients of keys add up."""
    q, k, v, cotangent = draw(5, 2, 50, 6, 2, 16, jnp.float32)
    ids = packed(5, 2, 50)
    want = value_and_gradients(implementation, q, k, v, cotangent, ids)
    parts = [
        value_and_gradients(implementation, q[:, at], k, v, cotangent[:, at], ids, at.start)
        for at in (slice(0, 25), slice(25, 50))
    ]
    for number, (a, b) in enumerate(zip(*parts, strict=True)):
        joined = jnp.concatenate([a, b], axis=1) if number < 2 else a + b
        np.testing.assert_allclose(joined, want[number], atol=2e-5)


def test_gradients_of_the_definition_are_finite_differences():
    with jax.enable_x64(True):
        arrays = draw(8, 1, 6, 2, 1, 4, jnp.float64, T=9)
        ids = packed(8, 1, 9)

        @jax.jit
        def both(q, k, v):
            return reference.attention(q, k, v, ids, query_offset=2, window=4, return_lse=True)

        check_grads(both, arrays[:3], order=1, modes=["rev"], atol=1e-7, rtol=1e-7)


def test_log_sum_exp_joins_two_calls():
    """Attention to all keys, from attention to the older and to the newer ones."""
    q, k, v, _ = draw(6, 1, 40, 2, 1, 16, jnp.float32)

    @jax.jit
    def parts(q, k, v):
        run = functools.partial(attention, return_lse=True, implementation="xla")
        # Older keys only: each new query stands behind all of them.
        scores = jnp.einsum("bihc,bjc->bihj", q[:, 20:], k[:, :20, 0]) / 4
        older = jnp.einsum("bihj,bjc->bihc", jax.nn.softmax(scores), v[:, :20, 0])
        newer, newer_lse = run(q[:, 20:], k[:, 20:], v[:, 20:])
        share = jax.nn.sigmoid(jax.nn.logsumexp(scores, axis=-1) - newer_lse)[..., None]
        return share * older + (1 - share) * newer, reference.attention(q, k, v)[:, 20:]

    np.testing.assert_allclose(*parts(q, k, v), atol=1e-5)


@pytest.mark.parametrize(
    ("implementation", "window", "S", "K"),
    [
        *((name, window, 150, 3) for name in ("reference", *PORTABLE) for window in (None, 33)),
        ("triton", None, 50, 2),
    ],
)
def test_agrees_with_torch(implementation, window, S, K):
    """An oracle that shares no line with ours: torch's attention with an explicit mask."""
    torch = pytest.importorskip("torch")
    B, H, C = 2, 6, 16
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
    options = {} if window is None else {"window": window}
    got = value_and_gradients(implementation, *arrays, segment_ids, **options)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b.detach().transpose(1, 2).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    "implementation", [*PORTABLE, pytest.param("triton", marks=pytest.mark.slow)]
)
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


@given(st.integers(1, 10_000), st.integers(0, 10_000))
@settings(max_examples=50)
def test_tiling_covers_a_row_with_little_padding(S, more):
    tiles = tiling(S, S + more)
    assert tiles.block_k <= MAX_BLOCK
    assert tiles.block_q * tiles.queries >= S > tiles.block_q * (tiles.queries - 1)
    assert tiles.block_k * tiles.keys >= S + more
    assert tiles.block_k * tiles.keys - (S + more) < 16 * tiles.keys


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_kernels_lower_for_a_gpu(platform, dtype, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    arrays = draw(0, 1, 100, 6, 2, 64, jnp.dtype(dtype))

    def loss(q, k, v, ids):
        return jnp.sum(attention(q, k, v, ids, window=30).astype(jnp.float32))

    with dispatch.compiling_for(platform):
        traced = jax.jit(jax.value_and_grad(loss, (0, 1, 2))).trace(*arrays[:3], packed(0, 1, 100))
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("gpu$xla.gpu.triton") == 3
    # Triton's default for float32 is TF32; interpreted, that would not show.
    text = str(traced.jaxpr)
    assert text.count("dot_general[") > 0
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST")


def test_says_what_the_kernels_lack():
    q, k, v, _ = draw(0, 1, 4, 2, 1, 16, jnp.float32)
    assert triton.supports(q, k, v, window=3) is None
    refusals = {
        "bfloat16 or all float32, not bfloat16, float32": (q.astype(jnp.bfloat16), k, v),
        "not float16": tuple(x.astype(jnp.float16) for x in (q, k, v)),
        "heads of width 16, 32, 64, 128, not 24": tuple(jnp.zeros((1, 4, 1, 24)) for _ in range(3)),
    }
    for message, args in refusals.items():
        with pytest.raises(ValueError, match=f"'triton' does not take this call: .*{message}"):
            attention(*args, implementation="triton")
    with pytest.raises(ValueError, match="a positive scale, not -1"):
        attention(q, k, v, scale=-1, implementation="triton")


def test_refuses_an_unknown_implementation():
    q, k, v, _ = draw(0, 1, 4, 2, 1, 16, jnp.float32)
    with pytest.raises(ValueError, match="'cudnn'; accepted: auto, .*xla, reference"):
        attention(q, k, v, implementation="cudnn")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (1, 4, 2, 16), "v": (1, 4, 2, 16)}, r"multiple.*\(1, 4, 3, 16\), k \(1, 4, 2, 16\)"),
        ({"k": (1, 4, 1, 8), "v": (1, 4, 1, 8)}, r"agree in B and C.*k \(1, 4, 1, 8\)"),
        ({"k": (1, 3, 1, 16), "v": (1, 3, 1, 16)}, r"queries must be positions.*query_offset 0"),
        ({"offset": 1}, r"queries must be positions of the keys.*query_offset 1"),
        ({"offset": -1}, r"queries must be positions of the keys.*query_offset -1"),
        ({"v": (1, 5, 1, 16)}, r"one shape.*v \(1, 5, 1, 16\)"),
        ({"q": (4, 3, 16)}, r"must be \[B, S, heads, C\].*q \(4, 3, 16\)"),
        ({"q": (1, 0, 3, 16), "k": (1, 0, 1, 16), "v": (1, 0, 1, 16)}, "no axis may be empty"),
        ({"ids": (1, 5)}, r"segment_ids must be \[B, T\] = \(1, 4\); got \(1, 5\)"),
    ],
)
def test_refuses_shapes_that_do_not_fit(change, message):
    shapes = {"q": (1, 4, 3, 16), "k": (1, 4, 1, 16), "v": (1, 4, 1, 16), "ids": (1, 4)} | change
    offset = shapes.pop("offset", 0)
    q, k, v = (jnp.zeros(shapes[name]) for name in "qkv")
    with pytest.raises(ValueError, match=message):
        attention(q, k, v, jnp.zeros(shapes["ids"], jnp.int32), query_offset=offset)


def test_refuses_a_window_of_nothing_and_segments_that_are_not_integers():
    q, k, v, _ = draw(0, 1, 4, 2, 1, 16, jnp.float32)
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        attention(q, k, v, window=0)
    with pytest.raises(ValueError, match="segment_ids must be integers; got float32"):
        attention(q, k, v, jnp.ones((1, 4)))
