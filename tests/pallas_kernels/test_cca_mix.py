"""cca_mix: implementations against the definition, and what a user would miss if it broke."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.cca_mix import IMPLEMENTATIONS, cca_mix, example, reference, triton
from tests.pallas_kernels.agreement import assert_close, evaluate, widened

# Relative to the largest entry. float32: sums of at most 2 C = 32 terms, divided by a length that
# may be small. bfloat16: latents, convolutions and outputs round 2^-9 each, and a short vector's
# direction feels it in full.
TOLERANCE = {"float64": 1e-11, "float32": 2e-5, "bfloat16": 4e-2}
ROPE = (5, 6)  # cos and sin: nothing learns through the tables


@pytest.fixture(autouse=True, scope="module")
def interpreted():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(interpret.VARIABLE, "1")
        yield


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
    small = {"tokens": 16, "chunk": 8, "num_warps": 4, "num_stages": 1}
    sums = {"tokens": 16, "steps": 2, "columns": 8, "num_warps": 4, "num_stages": 1}
    with (
        tuned.trying("cca_mix", "forward", small),
        tuned.trying("cca_mix", "normalise", small),
        tuned.trying("cca_mix", "latents", small),
        tuned.trying("cca_mix", "correlate", sums),
    ):
        drawn = dict(shape=shape, heads=heads, kernels=kernels, with_state=with_state)
        check("triton", *example.draw(5, jnp.dtype(dtype), **drawn, channels=16))


def test_kernel_decodes_as_it_reads_a_row():
    """Token by token from a state gives what the whole row gives."""
    (q, k, current, delayed, weights, cos, sin, positions, _), options = example.draw(
        0, jnp.float32, shape=(2, 5), heads=(2, 1), channels=16
    )
    run = jax.jit(lambda *args: triton.cca_mix(*args, **options))
    whole = run(q, k, current, delayed, weights, cos, sin, positions)
    past = weights.depthwise.shape[0] + weights.grouped.shape[0] - 2
    latents = jnp.pad(jnp.concatenate([q, k], -1), ((0, 0), (past, 0), (0, 0)))
    values = jnp.pad(delayed, ((0, 0), (1, 0), (0, 0)))
    for t in range(5):
        state = example.State(latents[:, t : t + past], values[:, t])
        now = [x[:, t : t + 1] for x in (q, k, current, delayed)]
        tables = [x[:, t : t + 1] for x in (cos, sin, positions)]
        step = run(*now, weights, *tables, state)
        for found, expected in zip(step, whole, strict=True):
            np.testing.assert_allclose(found[:, 0], expected[:, t], atol=1e-5)


@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_zeros_have_finite_gradients(implementation):
    """Padding can be all zeros; the L2 norm's gradient there must not be NaN."""
    args, options = example.draw(0, jnp.float32, shape=(1, 9), heads=(2, 1), channels=16)
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


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_lowers_for_a_gpu_forward_and_backward(platform, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE)
    args, options = example.draw(0, jnp.bfloat16, shape=(2, 50), channels=64)

    def loss(arrays, weights):
        out = cca_mix(*arrays, weights, *args[5:], **options)
        return sum(jnp.sum(x.astype(jnp.float32)) for x in out)

    with dispatch.compiling_for(platform):
        step = jax.jit(lambda *a: jax.value_and_grad(loss, argnums=(0, 1))(*a))
        text = step.trace(args[:4], args[4]).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("gpu$xla.gpu.triton") == 4
