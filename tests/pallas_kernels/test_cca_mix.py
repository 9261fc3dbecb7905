"""cca_mix: implementations against the definition, and what a user would miss if it broke."""

from __future__ import annotations

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


def check(implementation: str, args, options) -> None:
    dtype = args[0].dtype
    found = evaluate(fixed_tables(IMPLEMENTATIONS[implementation]), args, options)
    exact = {"norm_dtype": jnp.promote_types(dtype, jnp.float32)}
    expected = evaluate(fixed_tables(reference.cca_mix), widened(args), exact)
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
