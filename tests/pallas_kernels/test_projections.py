"""projections: the kernel against the definition, and what it refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.draws import Draws
from pallas_kernels.projections import example, projections, reference, tied, triton
from pallas_kernels.quantized import quantize
from tests.pallas_kernels.agreement import assert_close, widened

# Of the largest entry. Sums of at most 96 terms in float32; bfloat16 rounds the result 2^-9.
TOLERANCE = {"float32": 2e-6, "bfloat16": 4e-3}
TILES = {"rows": 32, "columns": 32, "depth": 32, "num_warps": 4, "num_stages": 1}


def draw(dtype, tokens, hidden, widths):
    draws = Draws(tokens, jnp.dtype(dtype))
    weights = tuple(draws.normal((hidden, width), hidden**-0.5) for width in widths)
    return draws.normal((tokens, hidden)), weights


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("dtype", "tokens", "hidden", "widths"),
    [
        ("bfloat16", 1, 96, (64, 32, 16, 16)),  # a token; blocks as narrow as the narrowest matrix
        ("float32", 40, 64, (96, 32)),  # tiles that the tokens do not fill
        ("float32", 256, 48, (64,)),
    ],
)
def test_agrees_with_the_definition(dtype, tokens, hidden, widths):
    x, weights = draw(dtype, tokens, hidden, widths)
    suffix = "" if dtype == "bfloat16" else "_float32"
    with tuned.trying("projections", f"project{suffix}", TILES):
        found = jax.jit(lambda x, w: projections(x, w, implementation="triton"))(x, weights)
    expected = jax.jit(reference.projections)(*widened((x, weights)))
    assert [y.dtype.name for y in found] == [dtype] * len(widths)
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize(("tokens", "dtype"), [(1, "float32"), (40, "bfloat16")])
@pytest.mark.parametrize(("kind", "group"), [("int8", None), ("int4", 32), ("fp4", 32)])
def test_quantized_matrices_agree_with_the_definition(tokens, dtype, kind, group):
    x, weights = draw(dtype, tokens, 96, (64, 32))
    weights = jax.jit(lambda w: [quantize(m, kind, group) for m in w])(weights)
    run = jax.jit(projections, static_argnames="implementation")
    found = run(x, weights, implementation="xla")
    expected = run(x, weights, implementation="reference")
    assert [y.dtype.name for y in found] == [dtype] * 2
    assert_close(found, expected, TOLERANCE[dtype])


@pytest.mark.parametrize("platform", ["rocm", "cuda", "cpu"])
def test_a_quantized_embedding_is_multiplied_as_it_is_meant(platform):
    """More rows than a block holds, and no multiple of it; also as a GPU computes it."""
    draws = Draws(0, jnp.dtype("float32"))
    x, embedding = draws.normal((3, 32)), draws.normal((300, 32))
    stored = jax.jit(lambda e: quantize(e[..., None], "int8"))(embedding)
    assert stored.shape == (300, 32, 1) and stored.group == 32
    with dispatch.compiling_for(platform):
        found = jax.jit(lambda *args: tied(*args, jnp.float32))(x, stored)
    np.testing.assert_allclose(found, x @ stored.dequantize()[..., 0].T, atol=1e-5)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_quantized_matrices_of_a_gpu_are_those_that_are_meant(platform):
    x, weights = draw("float32", 5, 64, (32,))
    for kind, group in (("int8", None), ("int4", 32)):
        stored = jax.jit(lambda w, k=kind, g=group: quantize(w, k, g))(weights[0])
        with dispatch.compiling_for(platform):
            [found] = jax.jit(lambda x, w: projections(x, [w], implementation="xla"))(x, stored)
        np.testing.assert_allclose(found, x @ stored.dequantize(), atol=1e-5)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_is_one_launch_and_nothing_else(platform, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    args, _ = example.draw(0, jnp.bfloat16)
    with dispatch.compiling_for(platform):
        text = jax.jit(lambda *args: projections(*args)).trace(*args)
        text = text.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("gpu$xla.gpu.triton") == 1 and "stablehlo.dot" not in text


def test_says_what_it_does_not_take():
    x, weights = draw("float32", 3, 32, (16,))
    for message, call in {
        r"\[T, D\] and \[D, n\] each; got x float32 \(3, 32\), weights float32 \(31, 16\)": (
            x,
            [jnp.zeros((31, 16))],
        ),
        "want one floating dtype": (x, [weights[0].astype(jnp.bfloat16)]),
    }.items():
        with pytest.raises(ValueError, match=message):
            projections(*call)
    for message, call in {
        "1 to 256 tokens, not 257": (jnp.zeros((257, 32)), weights),
        "multiples of 16, not 24": (x, (jnp.zeros((32, 24)),)),
        "bfloat16 or float32, not float16": draw("float16", 3, 32, (16,)),
        "at least one matrix": (x, ()),
    }.items():
        assert message in (triton.supports(*call) or "")
        with pytest.raises(ValueError, match="'triton' does not take this call"):
            projections(*call, implementation="triton")
