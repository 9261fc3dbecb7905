"""Attention to a cache: implementations against the definition, and that against torch."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.attention import attention
from pallas_kernels.decode_attention import (
    IMPLEMENTATIONS,
    decode_attention,
    example,
    reference,
    triton,
)

PORTABLE = sorted(set(IMPLEMENTATIONS) - {"reference", "triton"})
FAST = sorted(set(IMPLEMENTATIONS) - {"reference"})
# Absolute: results are means of values of order one. float32: sums of some thousand terms at most.
# bfloat16: probabilities and the result are rounded, each by 2^-9 of values up to four.
TOLERANCE = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 2e-2}
# Of kernels: several splits of several blocks in a short cache.
SETTINGS = {"keys": 16, "programs": 16, "num_warps": 4, "num_stages": 1}


@pytest.fixture(autouse=True, scope="module")
def several_splits():
    with (
        tuned.trying("decode_attention", "split", SETTINGS),
        tuned.trying("decode_attention", "split_float32", SETTINGS),
    ):
        yield


def draw(seed: int, B: int, H: int, K: int, T: int, C: int, dtype) -> list[jax.Array]:
    """q, k_cache and v_cache."""
    rng = np.random.default_rng(seed)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in [(B, H, C), (B, K, T, C), (B, K, T, C)]]


@functools.partial(jax.jit, static_argnames=("implementation", "window", "scale"))
def run(
    q,
    k,
    v,
    lengths,
    start=None,
    pages=None,
    scales=None,
    *,
    implementation,
    window=None,
    scale=None,
):
    return decode_attention(
        q,
        k,
        v,
        lengths,
        window=window,
        scale=scale,
        start=start,
        pages=pages,
        scales=scales,
        implementation=implementation,
    )


def paged(rng, cache: jax.Array, room: int, first, end) -> tuple[jax.Array, jax.Array]:
    """A cache [B, K, T, C] or its scales [B, K, T] as pages in any order, and their numbers; what
    is not attended has no page: its number is far out of range."""
    B, K, T = cache.shape[:3]
    N = -(-T // room)
    full = np.zeros((B, K, N * room, *cache.shape[3:]), np.float32)
    full[:, :, :T] = np.asarray(cache, np.float32)
    parts = full.reshape(B, K, N, room, *cache.shape[3:]).swapaxes(1, 2)
    numbers = np.full((B, N), 10**8)
    free = list(rng.permutation(B * N + 1))
    pool = rng.normal(size=(B * N + 1, *parts.shape[2:])).astype(np.float32)
    for b in range(B):
        for n in range(first[b] // room, -(-end[b] // room)):
            numbers[b, n] = free.pop()
            pool[numbers[b, n]] = parts[b, n]
    return jnp.asarray(pool).astype(cache.dtype), jnp.asarray(numbers, jnp.int32)


def quantized(cache: jax.Array, dtype: str) -> tuple[jax.Array, jax.Array]:
    """`(numbers, scales)`."""
    scale = jnp.abs(cache.astype(jnp.float32)).max(-1) / {"int8": 127, "float8_e4m3fn": 448}[dtype]
    numbers = cache.astype(jnp.float32) / scale[..., None]
    return (jnp.round(numbers) if dtype == "int8" else numbers).astype(dtype), scale


# What kernels depend on beside data, each of which takes a second to interpret.
@pytest.mark.kernel
@pytest.mark.parametrize(
    ("K", "G", "T", "window", "dtype", "room", "quantization"),
    [
        (2, 4, 100, None, "float32", None, None),  # capacity divided by no block
        (1, 3, 96, 33, "float32", None, None),
        (3, 1, 96, 33, "float32", 32, None),  # a page holds whole blocks
        (1, 17, 90, None, "bfloat16", 10, None),  # a block spans pages; more heads than a tile
        (2, 2, 96, None, "bfloat16", 32, "int8"),
        (2, 2, 90, 50, "float32", None, "float8_e4m3fn"),
    ],
)
@given(seed=st.integers(0, 2**16), fill=st.sampled_from([0.1, 0.5, 1.0]))
@settings(max_examples=6)
def test_kernels_agree_with_the_reference(K, G, T, window, dtype, room, quantization, seed, fill):
    B, rng = 3, np.random.default_rng(seed)
    q, k, v = draw(seed, B, K * G, K, T, 16, jnp.dtype(dtype))
    lengths = rng.integers(0, int(fill * T) + 1, B)
    start = rng.integers(0, lengths // 2 + 1)
    scales = pages = None
    if quantization:
        (k, k_scale), (v, v_scale) = (quantized(x, quantization) for x in (k, v))
        scales = k_scale, v_scale
    arguments = [q, k, v, jnp.asarray(lengths, jnp.int32), jnp.asarray(start, jnp.int32)]
    wide = [q.astype(jnp.float32), *(x if quantization else x.astype(jnp.float32) for x in (k, v))]
    want = run(*wide, *arguments[3:], None, scales, implementation="reference", window=window)
    if room:
        first, end = (np.asarray(x) for x in reference.attended(lengths, start, window))
        arguments[1], pages = paged(np.random.default_rng(seed), k, room, first, end)
        arguments[2], _ = paged(np.random.default_rng(seed), v, room, first, end)
        if quantization:
            scales = tuple(
                paged(np.random.default_rng(seed), x, room, first, end)[0] for x in scales
            )
    got = run(*arguments, pages, scales, implementation="triton", window=window)
    assert got.dtype == q.dtype
    error = np.abs(np.asarray(got, np.float64) - np.asarray(want, np.float64)).max()
    assert error < TOLERANCE[dtype], error


@pytest.mark.parametrize("implementation", ["reference", *PORTABLE])
def test_pages_and_scales_change_where_numbers_are_and_not_which(implementation):
    B, K, T, room = 2, 2, 60, 8
    q, k, v = draw(5, B, 4, K, T, 16, jnp.float32)
    lengths, start = np.array([60, 23]), np.array([0, 9])
    first, end = reference.attended(lengths, start, 20)
    (k, k_scale), (v, v_scale) = (quantized(x, "int8") for x in (k, v))
    data = [jnp.asarray(x, jnp.int32) for x in (lengths, start)]
    plain = [x.astype(jnp.float32) * scale[..., None] for x, scale in ((k, k_scale), (v, v_scale))]
    want = run(q, *plain, *data, implementation="reference", window=20)
    (k, pages), (v, _), (k_scale, _), (v_scale, _) = (
        paged(np.random.default_rng(0), x, room, np.asarray(first), np.asarray(end))
        for x in (k, v, k_scale, v_scale)
    )
    scales = k_scale, v_scale
    got = run(q, k, v, *data, pages, scales, implementation=implementation, window=20)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize(("room", "window"), [(64, None), (16, 100), (200, None)])
def test_portable_pages_are_visited_in_chunks_whose_number_changes_no_bit(room, window):
    B, K, T = 3, 2, 400
    q, k, v = draw(6, B, 4, K, T, 16, jnp.float32)
    lengths = np.array([30, 390, 150])
    first, end = reference.attended(jnp.asarray(lengths), None, window)
    (kp, pages), (vp, _) = (
        paged(np.random.default_rng(1), x, room, np.asarray(first), np.asarray(end)) for x in (k, v)
    )
    options = {"implementation": "xla", "window": window}
    together = run(q, kp, vp, jnp.asarray(lengths), None, pages, **options)
    want = run(q, k, v, jnp.asarray(lengths), implementation="reference", window=window)
    np.testing.assert_allclose(together, want, atol=1e-5)
    for row in range(B):  # the same shapes; the others rest
        only = jnp.asarray(np.where(np.arange(B) == row, lengths, 0))
        alone = run(q, kp, vp, only, None, pages, **options)
        np.testing.assert_array_equal(alone[row], together[row])
        assert not np.delete(np.asarray(alone), row, 0).any()


@pytest.mark.kernel
@pytest.mark.parametrize("programs", [1, 1000])
def test_one_split_or_as_many_as_there_are_blocks_for(programs):
    q, k, v = draw(7, 2, 4, 2, 256, 16, jnp.float32)
    lengths = jnp.array([256, 3], jnp.int32)
    want = run(q, k, v, lengths, implementation="reference")
    with tuned.trying("decode_attention", "split_float32", SETTINGS | {"programs": programs}):
        got = triton.decode_attention(q, k, v, lengths)
        # A function of its own: jax does not see settings, and would give back what it has traced.
        traced = jax.make_jaxpr(lambda *args: triton.decode_attention(*args))(q, k, v, lengths)
    launches = str(traced).count("pallas_call[")
    np.testing.assert_allclose(got, want, atol=1e-5)
    assert launches == (1 if programs == 1 else 2)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_kernels_lower_for_a_gpu(platform, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    q, k, v = draw(0, 2, 6, 2, 2048, 64, jnp.float32)
    with dispatch.compiling_for(platform):
        traced = jax.jit(decode_attention).trace(q, k, v, jnp.ones(2, jnp.int32))
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("gpu$xla.gpu.triton") == 2
    text = str(traced.jaxpr)  # Triton's default for float32 is TF32; interpreted, it would not show
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST") == 2


@pytest.mark.parametrize("implementation", PORTABLE)
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


@pytest.mark.parametrize("implementation", ["reference", *PORTABLE])
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


@pytest.mark.parametrize("implementation", PORTABLE)
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
        ({"pages": (3, 4)}, r"pages must be integers of shape \[B, N\], B = 2; got int32 \(3, 4\)"),
        ({"k_scale": (2, 8)}, r"scales of keys must be \(2, 2, 8\); got \(2, 8\)"),
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
    pages = jnp.zeros(shapes["pages"], jnp.int32) if "pages" in shapes else None
    scales = (jnp.zeros(shapes["k_scale"]), jnp.zeros((2, 2, 8))) if "k_scale" in shapes else None
    with pytest.raises(ValueError, match=message):
        decode_attention(q, k, v, lengths, start=start, pages=pages, scales=scales)


def test_says_what_the_kernels_lack():
    q, k, v = draw(0, 2, 2, 1, 4, 16, jnp.float32)
    ones, scales = jnp.ones(2, jnp.int32), (jnp.ones((2, 1, 4)),) * 2
    refusals = [
        ((q.astype(jnp.float16), k, v), None, "q in bfloat16 or float32, not float16"),
        ((q, k.astype(jnp.int8), v), None, "caches in float32, not int8, float32"),
        ((q, k, v), scales, "caches with scales in int8 or float8_e4m3fn, not float32"),
        (tuple(x[..., :12] for x in (q, k, v)), None, "heads of width 16, 32, 64, 128, not 12"),
    ]
    for args, own_scales, message in refusals:
        with pytest.raises(ValueError, match=f"'triton' does not take this call: {message}"):
            decode_attention(*args, ones, scales=own_scales, implementation="triton")


@pytest.mark.parametrize(
    ("dtype", "pages", "lack"),
    [
        ("int8", 2**16, None),  # offsets up to 2^31 - 1
        ("int8", 2**16 + 1, "2 GiB"),
        ("float8_e4m3fn", 2**17, "4 GiB"),
        ("int8", 2**17 + 1, None),  # more than 2^32 bytes: offsets have 64 bits
        ("bfloat16", 2**16 + 1, None),
    ],
)
@pytest.mark.parametrize("paged", [True, False])
def test_caches_whose_offsets_would_overflow_go_to_xla(dtype, pages, lack, paged):
    """Of more than 2^31 numbers of a byte; nothing is allocated."""
    shape, B = jax.ShapeDtypeStruct, 4 if paged else pages
    cache, ints = shape((pages, 2, 128, 128), dtype), shape((B,), jnp.int32)
    scales = None if dtype == "bfloat16" else (shape(cache.shape[:3], jnp.float32),) * 2
    table = shape((B, 8), jnp.int32) if paged else None
    args = shape((B, 4, 128), jnp.bfloat16), cache, cache, ints
    options = {"pages": table, "scales": scales}
    told = f"caches of up to 2 GiB in numbers of one byte, or of more than 4, not {lack}"
    assert triton.supports(*args, **options) == (told if lack else None)
    with dispatch.compiling_for("cuda"):
        jaxpr = jax.make_jaxpr(lambda args, options: decode_attention(*args, **options))
        assert ("pallas_call" in str(jaxpr(args, options))) == (lack is None)


def test_refuses_a_window_of_nothing():
    q, k, v = draw(0, 1, 2, 1, 4, 16, jnp.float32)
    with pytest.raises(ValueError, match="window must be at least 1; got 0"):
        decode_attention(q, k, v, jnp.ones(1, jnp.int32), window=0)
