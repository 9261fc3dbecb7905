"""cca_mix: implementations against the definition, and what a user would miss if it broke."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.cca_mix import (
    DECODE,
    IMPLEMENTATIONS,
    Cache,
    Place,
    State,
    cca_mix,
    cca_mix_decode,
    example,
    reference,
    triton,
)
from tests.pallas_kernels.agreement import assert_close, evaluate, widened

# Relative to the largest entry. float32: sums of at most 2 C = 128 terms, divided by a length that
# may be small. bfloat16: latents, convolutions and outputs round 2^-9 each, and a short vector's
# direction feels it in full.
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 4e-2}
ROPE = (5, 6)  # cos and sin: nothing learns through the tables
C = 64  # channels of kernels' heads: the fewest that are compiled where half of them are rotated


def fixed_tables(run):
    """`run` with RoPE's tables as constants."""

    def fixed(*args, **options):
        args = [jax.lax.stop_gradient(x) if i in ROPE else x for i, x in enumerate(args)]
        return run(*args, **options)

    return fixed


def check(implementation: str, args, options, **parts) -> None:
    dtype = args[0].dtype
    found = evaluate(fixed_tables(IMPLEMENTATIONS[implementation]), args, options | parts)
    exact = {"norm_dtype": jnp.promote_types(dtype, jnp.float32)}
    expected = evaluate(fixed_tables(reference.cca_mix), widened(args), exact | parts)
    assert all(x.dtype == dtype for x in found[0])
    assert_close(found, expected, TOLERANCE[dtype.name], floor=1)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize(
    ("dtype", "shape", "heads", "kernels"),
    [
        ("float64", (2, 13), (4, 2), (2, 2)),
        ("float64", (1, 1), (6, 3), (4, 3)),
        ("float64", (3, 7), (3, 3), (1, 4)),
        ("float32", (2, 11), (2, 1), (2, 3)),
        ("bfloat16", (2, 9), (4, 2), (2, 2)),
    ],
)
def test_xla_agrees_with_the_definition(dtype, shape, heads, kernels, with_state):
    with jax.enable_x64(dtype == "float64"):
        drawn = dict(shape=shape, heads=heads, kernels=kernels, with_state=with_state, channels=8)
        check("xla", *example.draw(3, jnp.dtype(dtype), **drawn))


def without(convolutions, seed, dtype, *, with_state, value_shift=True):
    """A drawn call with these convolutions: their widths, depthwise first."""
    kernels = (*convolutions, 1, 1)[:2]
    args, options = example.draw(
        seed, jnp.dtype(dtype), shape=(2, 9), kernels=kernels, with_state=with_state, channels=8
    )
    weights, state = args[4], args[8]
    if len(convolutions) < 2:
        weights = weights._replace(grouped=None, grouped_bias=None)
    if len(convolutions) < 1:
        weights = weights._replace(depthwise=None, depthwise_bias=None)
    if state is not None and not value_shift:
        state = state._replace(v_delayed=None)
    return (*args[:4], weights, *args[5:8], state), options


def token_by_token(args, qk_mean, value_shift):
    """The mix from its equations, a token and a head at a time, in numpy."""
    q, k, current, delayed, w, cos, sin, positions, state = jax.tree.map(np.asarray, args)
    x = np.concatenate([q, k], -1)
    (B, S, N), K = x.shape, len(w.temperature)
    C = k.shape[-1] // K
    H = N // C - K

    def latent(b, t, p):
        """Of the token at place t, position p; zero in front of its document."""
        if p < 0:
            return np.zeros(N)
        return x[b, t] if t >= 0 else state.qk[b, t]

    def depthwise(b, t, p):
        if w.depthwise is None:
            return latent(b, t, p)
        taps = (w.depthwise[-1 - d] * latent(b, t - d, p - d) for d in range(len(w.depthwise)))
        return sum(taps, w.depthwise_bias)

    def grouped(b, t, p):
        if w.grouped is None:
            return depthwise(b, t, p)
        total = w.grouped_bias.reshape(H + K, C)
        for d in range(len(w.grouped)):
            taps = depthwise(b, t - d, p - d).reshape(H + K, C)
            total = total + np.stack(
                [tap @ m for tap, m in zip(taps, w.grouped[-1 - d], strict=True)]
            )
        return total

    def turned(head, b, t):
        half = cos.shape[-1]
        z = (head[:half] + 1j * head[half : 2 * half]) * (cos[b, t] + 1j * sin[b, t])
        return np.concatenate([z.real, z.imag, head[2 * half :]])

    outs = np.zeros((B, S, H + K, C)), np.zeros((B, S, K * C))
    for b, t in np.ndindex(B, S):
        heads = np.array(grouped(b, t, positions[b, t])).reshape(H + K, C)
        if qk_mean:
            own = x[b, t].reshape(H + K, C)
            means = (own[:H] + np.repeat(own[H:], H // K, axis=0)) / 2
            heads[:H] += means
            heads[H:] += means.reshape(K, H // K, C).mean(1)
        heads *= C**0.5 / np.linalg.norm(heads, axis=-1, keepdims=True)
        heads[H:] *= w.temperature[:, None]
        outs[0][b, t] = [turned(head, b, t) for head in heads]
        late = delayed[b, t]
        if value_shift and positions[b, t] < 1:
            late = np.zeros_like(late)
        elif value_shift:
            late = delayed[b, t - 1] if t else state.v_delayed[b]
        outs[1][b, t] = np.concatenate([current[b, t], late])
    return outs[0][:, :, :H], outs[0][:, :, H:], outs[1].reshape(B, S, K, C)


@pytest.mark.parametrize("with_state", [False, True])
@pytest.mark.parametrize("convolutions", [(), (3,), (2, 3)])
def test_the_definition_follows_the_equations_with_every_part_on_and_off(convolutions, with_state):
    with jax.enable_x64(True):
        for qk_mean, value_shift in itertools.product([True, False], repeat=2):
            args, options = without(
                convolutions, 2, "float64", with_state=with_state, value_shift=value_shift
            )
            parts = dict(qk_mean=qk_mean, value_shift=value_shift)
            found = jax.jit(lambda *a, o=options | parts: reference.cca_mix(*a, **o))(*args)
            for a, b in zip(found, token_by_token(args, qk_mean, value_shift), strict=True):
                np.testing.assert_allclose(a, b, atol=1e-12)


@pytest.mark.parametrize(
    ("convolutions", "qk_mean", "value_shift", "with_state"),
    [
        ((), True, True, True),
        ((), False, False, False),
        ((3,), True, False, True),
        ((3,), False, True, False),
        ((2, 3), False, False, True),
    ],
)
def test_xla_agrees_with_the_definition_where_parts_are_left_out(
    convolutions, qk_mean, value_shift, with_state
):
    args, options = without(
        convolutions, 4, "float32", with_state=with_state, value_shift=value_shift
    )
    check("xla", args, options, qk_mean=qk_mean, value_shift=value_shift)


def test_a_mix_that_the_kernel_lacks_is_told_or_left_to_another_implementation():
    args, options = example.draw(0, jnp.float32, channels=64)
    one = args[4]._replace(grouped=None, grouped_bias=None)
    for changed, parts, told in (
        (one, {}, "a mix with both convolutions, not without"),
        (args[4], dict(qk_mean=False), "a mix with the q-k mean, not without"),
        (args[4], dict(value_shift=False), "a mix with the value shift, not without"),
    ):
        call = (*args[:4], changed, *args[5:])
        with pytest.raises(ValueError, match=told):
            cca_mix(*call, **options, **parts, implementation="triton")
        with dispatch.compiling_for("cuda"):
            text = str(jax.make_jaxpr(lambda *a, o=options | parts: cca_mix(*a, **o))(*call))
        assert "pallas_call" not in text


slow = pytest.mark.slow


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("dtype", "shape", "heads", "kernels", "with_state"),
    [
        # Rows that begin inside a tile, documents that begin anywhere, tiles across both.
        ("float32", (3, 19), (2, 1), (2, 2), False),
        ("bfloat16", (2, 17), (4, 2), (2, 2), True),
        pytest.param("float32", (1, 1), (2, 1), (2, 2), False, marks=slow),
        pytest.param("float32", (2, 35), (6, 3), (2, 2), True, marks=slow),
        pytest.param("float32", (3, 7), (3, 3), (1, 4), True, marks=slow),
        pytest.param("float32", (2, 9), (4, 1), (4, 1), False, marks=slow),
        pytest.param("float32", (2, 20), (2, 1), (1, 1), True, marks=slow),
    ],
)
def test_kernel_agrees_with_the_definition(dtype, shape, heads, kernels, with_state):
    small = {"tokens": 16, "chunk": 16, "num_warps": 4, "num_stages": 1}
    sums = {"tokens": 16, "steps": 2, "columns": 32, "num_warps": 4, "num_stages": 1}
    suffix = "_float32" * (dtype == "float32")
    with (
        tuned.trying("cca_mix", f"forward{suffix}", small),
        tuned.trying("cca_mix", f"normalise{suffix}", small),
        tuned.trying("cca_mix", f"latents{suffix}", small),
        tuned.trying("cca_mix", f"correlate{suffix}", sums),
    ):
        drawn = dict(shape=shape, heads=heads, kernels=kernels, with_state=with_state)
        check("triton", *example.draw(5, jnp.dtype(dtype), **drawn, channels=C))


@pytest.mark.kernel
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels", [64, 128])
def test_kernel_agrees_at_the_widths_and_settings_that_are_compiled(channels, dtype):
    """Half of the channels rotated, as in the 8B; the settings of `tuned.json`."""
    args, options = example.draw(
        6, jnp.dtype(dtype), shape=(2, 37), heads=(4, 1), channels=channels
    )
    assert triton.supports(*args, **options) is None
    check("triton", args, options)


def one_token(seed, rows, dtype="float32", heads=(2, 1), kernels=(2, 2), room=3, channels=C):
    """A token a row and a cache: `(tokens, cache, options)`; the first row rests."""
    drawn = dict(shape=(rows, 1), heads=heads, kernels=kernels, with_state=True, channels=channels)
    (*tokens, state), options = example.draw(seed, jnp.dtype(dtype), **drawn)
    shape = (rows, heads[1], room, channels)
    return tokens, Cache(jnp.full(shape, 3, dtype), jnp.full(shape, 4, dtype), state), options


def written(old, new, b, slot):
    """Row b of a cache after a token [1, K, C] in a slot."""
    return np.asarray(old[b]).copy() if new is None else np.asarray(old[b].at[:, slot].set(new[0]))


@pytest.mark.parametrize("implementation", ["triton", "xla"])
@pytest.mark.parametrize(
    ("dtype", "rows", "heads", "kernels"),
    [
        ("float32", 19, (4, 2), (2, 2)),  # rows that fill no tile
        ("bfloat16", 3, (3, 3), (1, 3)),
    ],
)
def test_a_token_goes_into_the_cache(implementation, dtype, rows, heads, kernels):
    """Its key, its value and the state behind it; the mix is the definition's."""
    tokens, cache, options = one_token(6, rows, dtype, heads, kernels)
    place = Place(jnp.arange(rows, dtype=jnp.int32) % 3, jnp.arange(rows) > 0)
    run = jax.jit(lambda *args: DECODE[implementation](*args, **options))
    q, after = run(*tokens, cache, place)
    exact = {"norm_dtype": jnp.float32}
    mix = jax.jit(lambda *args: reference.cca_mix(*args, **exact))
    expected_q, k, v = mix(*widened((*tokens, cache.state)))
    assert q.dtype == dtype
    assert_close(q, expected_q, TOLERANCE[dtype], floor=1)
    latents = jnp.concatenate([tokens[0], tokens[1]], axis=-1)
    for b in range(rows):
        slot, live = int(place.slot[b]), bool(place.live[b])
        for old, new, token in ((cache.keys, after.keys, k), (cache.values, after.values, v)):
            wanted = written(old.astype(jnp.float32), token[b], b, slot)
            assert_close(new[b].astype(jnp.float32), jnp.asarray(wanted), TOLERANCE[dtype], floor=1)
        pushed = jnp.concatenate([cache.state.qk[b, 1:], latents[b]])
        np.testing.assert_array_equal(after.state.qk[b], pushed if live else cache.state.qk[b])
        kept = tokens[3][b, 0] if live else cache.state.v_delayed[b]
        np.testing.assert_array_equal(after.state.v_delayed[b], kept)


@pytest.mark.parametrize("implementation", DECODE)
def test_pages_are_read_and_written_where_they_lie(implementation):
    """Row 1 stays in its page, row 2 goes on to another, row 0 rests: page 0 is nobody's."""
    tokens, cache, options = one_token(8, 3)
    slot, live = jnp.array([0, 2, 0], jnp.int32), jnp.array([False, True, True])
    run = jax.jit(lambda *args: DECODE[implementation](*args, **options))
    expected, after = run(*tokens, cache, Place(slot, live))
    read, write = jnp.array([0, 4, 2], jnp.int32), jnp.array([0, 4, 5], jnp.int32)
    pool = jax.tree.map(lambda x: jnp.full((6, *x.shape[1:]), 7, x.dtype).at[read].set(x), cache)
    found, pool_after = run(*tokens, pool, Place(slot, live, (read, write)))
    # Two programs: compilers may join multiplications and additions differently.
    np.testing.assert_allclose(found, expected, atol=1e-6)
    np.testing.assert_allclose(pool_after.keys[4], after.keys[1], atol=1e-6)
    np.testing.assert_array_equal(pool_after.values[5, :, 0], after.values[2, :, 0])
    untouched = jnp.array([1, 2, 3])
    for new, old in zip(jax.tree.leaves(pool_after), jax.tree.leaves(pool), strict=True):
        np.testing.assert_array_equal(new[untouched], old[untouched])
    for new, one in zip(pool_after.state, after.state, strict=True):
        np.testing.assert_array_equal(new[write[1:]], one[1:])


@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_decodes_as_it_reads_a_row(implementation):
    """Token by token, each from the cache that the one before wrote, gives what a row gives."""
    (q, k, current, delayed, weights, cos, sin, positions, _), options = example.draw(
        0, jnp.float32, shape=(2, 5), heads=(2, 1), channels=C
    )
    whole_q, whole_k, whole_v = jax.jit(lambda *args: reference.cca_mix(*args, **options))(
        q, k, current, delayed, weights, cos, sin, positions
    )
    past = weights.depthwise.shape[0] + weights.grouped.shape[0] - 2
    width = q.shape[-1] + k.shape[-1]
    state = State(jnp.zeros((2, past, width)), jnp.zeros((2, delayed.shape[-1])))
    cache = Cache(*(jnp.zeros((2, 1, 5, C)) for _ in range(2)), state)
    run = jax.jit(lambda *args: DECODE[implementation](*args, **options))
    for t in range(5):
        now = [x[:, t : t + 1] for x in (q, k, current, delayed)]
        tables = [x[:, t : t + 1] for x in (cos, sin, positions)]
        place = Place(jnp.full(2, t, jnp.int32), jnp.ones(2, bool))
        found, cache = run(*now, weights, *tables, cache, place)
        np.testing.assert_allclose(found[:, 0], whole_q[:, t], atol=1e-5)
    np.testing.assert_allclose(cache.keys.swapaxes(1, 2), whole_k, atol=1e-5)
    np.testing.assert_allclose(cache.values.swapaxes(1, 2), whole_v, atol=1e-5)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
@pytest.mark.parametrize("paged", [False, True])
def test_a_token_and_its_cache_are_one_launch_in_place(platform, paged, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    (*tokens, state), options = example.draw(0, jnp.bfloat16, shape=(8, 1), with_state=True)
    cache = Cache(*(jnp.zeros((8, 2, 4, 64), jnp.bfloat16) for _ in range(2)), state)
    rows = jnp.zeros(8, jnp.int32)
    place = Place(rows, jnp.ones(8, bool), (rows, rows) if paged else None)
    with dispatch.compiling_for(platform):
        run = jax.jit(lambda *args: cca_mix_decode(*args, **options))
        text = run.trace(*tokens, cache, place).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("gpu$xla.gpu.triton") == 1
    assert text.count("output_operand_alias<") == 4
    lines = [line for line in text.splitlines() if "stablehlo." in line]
    done = {line.split("stablehlo.")[1].split(" ")[0] for line in lines}
    assert done <= {"custom_call", "reshape"}, done


def test_says_what_decoding_lacks():
    tokens, cache, options = one_token(0, 2, channels=16)
    place = Place(jnp.zeros(2, jnp.int32), jnp.ones(2, bool))
    with pytest.raises(ValueError, match="one token a row, not 19"):
        args, _ = example.draw(0, jnp.float32)
        cca_mix_decode(*args[:8], cache, place, **options)
    wide = jax.tree.map(lambda x: x.astype(jnp.bfloat16), cache)
    lack = triton.supports_decode(*tokens, wide, place, **options)
    assert lack == "0, 32, 64, ... rotated channels up to 16, not 8"
    (*tokens, state), options = example.draw(0, jnp.float32, shape=(2, 1), with_state=True)
    cache = Cache(*(jnp.zeros((2, 2, 4, 64)) for _ in range(2)), state)
    assert triton.supports_decode(*tokens, cache, place, **options) is None
    half = cache._replace(keys=cache.keys.astype(jnp.bfloat16))
    lack = triton.supports_decode(*tokens, half, place, **options)
    assert lack == "a cache in the latents' float32, not bfloat16, float32"


@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_zeros_have_finite_gradients(implementation):
    """Padding can be all zeros; the L2 norm's gradient there must not be NaN."""
    args, options = example.draw(0, jnp.float32, shape=(1, 9), heads=(2, 1), channels=C)
    zero = [jnp.zeros_like(x) for x in args[:4]]
    weights = jax.tree.map(jnp.zeros_like, args[4])

    def loss(zero):
        out = IMPLEMENTATIONS[implementation](*zero, weights, *args[5:], **options)
        return sum(x.sum() for x in out)

    for g in jax.jit(jax.grad(loss))(zero):
        assert np.isfinite(g).all()


def test_says_what_the_kernel_lacks():
    args, options = example.draw(0, jnp.float32, channels=64)
    assert triton.supports(*args, **options) is None
    narrow, _ = example.draw(0, jnp.float32, channels=8)
    assert "not 8" in (triton.supports(*narrow, **options) or "")
    few, _ = example.draw(0, jnp.float32, channels=32)
    with pytest.raises(ValueError, match="32, 64, ... rotated channels up to 32, not 16"):
        cca_mix(*few, **options, implementation="triton")
    with pytest.raises(ValueError, match="not float16"):
        cca_mix(args[0].astype(jnp.float16), *args[1:], **options, implementation="triton")


NAMES = ("q", "k", "v_current", "v_delayed", "weights", "cos", "sin", "positions", "state")


def changed(values: dict, path: str, shape: tuple[int, ...] | None) -> dict:
    """`values` with an array of another shape, or None, at `path`: a name, or one and a field."""
    name, _, field = path.partition(".")
    new = None if shape is None else jnp.zeros(shape)
    return values | {name: values[name]._replace(**{field: new}) if field else new}


@pytest.mark.parametrize(
    ("path", "shape", "told"),
    [
        # Query head 2 of k's two would be in no group, and was never written.
        ("q", (2, 5, 48), r"q's heads must be a multiple of k's; got q \(2, 5, 48\), k \(2, 5, "),
        # Weights of 6 query heads: the keys' were read from those of queries.
        ("q", (2, 5, 96), r"weights.depthwise must be \[2, 128\]; got \(2, 96\)"),
        ("weights.grouped", (2, 8, 16, 16), r"must be \[2, 6, 16, 16\]; got \(2, 8, 16, 16\)"),
        ("weights.grouped", (2, 6, 16, 8), r"must be \[2, 6, 16, 16\]; got \(2, 6, 16, 8\)"),
        ("weights.grouped_bias", (32,), r"weights.grouped_bias must be \[96\]; got \(32,\)"),
        ("weights.depthwise", (2, 64), r"weights.depthwise must be \[2, 96\]; got \(2, 64\)"),
        ("weights.depthwise_bias", (64,), r"weights.depthwise_bias must be \[96\]; got \(64,\)"),
        ("weights.depthwise_bias", None, "weights.depthwise has a bias, or both are None"),
        ("weights.temperature", (3,), r"k must have channels for K heads; got .* \(3,\)"),
        ("weights.temperature", (4,), r"weights.grouped must be \[2, 12, 8, 8\]"),
        ("q", (2, 5), r"want q \[B, S, H \* C\].* got q \(2, 5\)"),
        ("k", (1, 5, 32), r"k must be \[2, 5, 32\]; got \(1, 5, 32\)"),
        ("v_current", (2, 5, 32), r"v_current must be \[2, 5, 16\]; got \(2, 5, 32\)"),
        ("v_delayed", (2, 5, 8), r"v_delayed must be \[2, 5, 16\]; got \(2, 5, 8\)"),
        ("cos", (1, 5, 4), r"cos must be \[2, 5, 4\]; got \(1, 5, 4\)"),
        ("cos", (2, 5, 9), r"with n up to 8, half of a head; got \(2, 5, 9\)"),
        ("sin", (2, 5, 2), r"sin must be \[2, 5, 4\]; got \(2, 5, 2\)"),
        ("positions", (1, 5), r"positions must be \[2, 5\]; got \(1, 5\)"),
        ("state.qk", (2, 2, 64), r"state.qk must be \[2, 2, 96\]; got \(2, 2, 64\)"),
        ("state.qk", (2, 1, 96), r"state.qk must be \[2, 2, 96\]; got \(2, 1, 96\)"),
        ("state.v_delayed", (2, 8), r"state.v_delayed must be \[2, 16\]; got \(2, 8\)"),
        ("state.v_delayed", None, r"a value shift wants state.v_delayed \[2, 16\]; got None"),
    ],
)
def test_refuses_widths_that_do_not_fit(path, shape, told):
    """Kernels would read other memory, or leave some of the result unwritten."""
    args, options = example.draw(
        0, jnp.float32, shape=(2, 5), heads=(4, 2), channels=16, with_state=True
    )
    call = changed(dict(zip(NAMES, args, strict=True)), path, shape)
    with pytest.raises(ValueError, match=f"^cca_mix: .*{told}"):
        cca_mix(**call, **options)


@pytest.mark.parametrize("paged", [False, True])
@pytest.mark.parametrize(
    ("path", "shape", "told"),
    [
        ("q", (3, 1, 24), r"q's heads must be a multiple of k's"),
        ("k", (3, 1, 32), r"v_current must be \[3, 1, 16\]; got \(3, 1, 8\)"),
        ("weights.grouped", (2, 5, 16, 16), r"must be \[2, 3, 16, 16\]; got \(2, 5, 16, 16\)"),
        ("v_delayed", (3, 1, 16), r"v_delayed must be \[3, 1, 8\]; got \(3, 1, 16\)"),
        ("cache.keys", (3, 2, 3, 16), r"keys must be \[3, 1, 3, 16\]; got \(3, 2, 3, 16\)"),
        ("cache.keys", (3, 1, 16), r"cache.keys must be \[B, K, T, C\]; got \(3, 1, 16\)"),
        ("cache.values", (3, 1, 2, 16), r"cache.values must be \[3, 1, 3, 16\]"),
        ("place.slot", (2,), r"place.slot must be \[3\]; got \(2,\)"),
        ("place.live", (4,), r"place.live must be \[3\]; got \(4,\)"),
    ],
)
def test_decoding_refuses_widths_that_do_not_fit(path, shape, told, paged):
    tokens, cache, options = one_token(0, 3, channels=16)
    rows = jnp.zeros(3, jnp.int32)
    place = Place(rows, jnp.ones(3, bool), (rows, rows) if paged else None)
    call = dict(zip(NAMES[:8], tokens, strict=True)) | {"cache": cache, "place": place}
    with pytest.raises(ValueError, match=f"^cca_mix_decode: .*{told}"):
        cca_mix_decode(**changed(call, path, shape), **options)


@pytest.mark.parametrize(
    ("state", "told"),
    [
        (((3, 2, 48), (2, 8)), r"state.v_delayed must be \[3, 8\]; got \(2, 8\)"),
        (((3, 2, 32), (3, 8)), r"state.qk must be \[3, 2, 48\]; got \(3, 2, 32\)"),
        (((3, 2, 48), None), r"a value shift wants state.v_delayed \[3, 8\]; got None"),
    ],
)
def test_decoding_refuses_a_state_that_does_not_fit(state, told):
    tokens, cache, options = one_token(0, 3, channels=16)
    cache = cache._replace(state=State(*(None if x is None else jnp.zeros(x) for x in state)))
    place = Place(jnp.zeros(3, jnp.int32), jnp.ones(3, bool))
    with pytest.raises(ValueError, match=f"^cca_mix_decode: {told}"):
        cca_mix_decode(*tokens, cache, place, **options)


def test_decoding_refuses_pages_of_other_rows():
    tokens, cache, options = one_token(0, 3, channels=16)
    rows = jnp.zeros(3, jnp.int32)
    place = Place(rows, jnp.ones(3, bool), (rows, rows[:2]))
    with pytest.raises(ValueError, match=r"place.pages\[1\] must be \[3\]; got \(2,\)"):
        cca_mix_decode(*tokens, cache, place, **options)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_lowers_for_a_gpu_forward_and_backward(platform, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    args, options = example.draw(0, jnp.bfloat16, shape=(2, 50), channels=64)

    def loss(arrays, weights):
        out = cca_mix(*arrays, weights, *args[5:], **options)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in out)

    with dispatch.compiling_for(platform):
        step = jax.jit(lambda *a: jax.value_and_grad(loss, argnums=(0, 1))(*a))
        text = step.trace(args[:4], args[4]).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("gpu$xla.gpu.triton") == 4
