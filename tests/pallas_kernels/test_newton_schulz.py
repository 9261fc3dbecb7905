"""newton_schulz: implementations against the definition, and what a user would miss if it broke."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.draws import Draws
from pallas_kernels.newton_schulz import IMPLEMENTATIONS, newton_schulz, triton, xla
from tests.pallas_kernels.agreement import assert_close

# Of the largest entry. float32: five quintics, whose slope at 0 is 3.4 each, of sums of at most 80
# terms. bfloat16: X, A and F round 2^-9 each, and a singular value near 1 passes the quintic with a
# slope below 2.
TOLERANCE = {"float64": 1e-11, "float32": 1e-4, "bfloat16": 6e-2}
KERNELS = ("gram", "factor", "apply")


def run(implementation, x, products=None, iterations=5):
    call = jax.jit(
        lambda x: newton_schulz(x, iterations, products=products, implementation=implementation)
    )
    return call(x)


@pytest.mark.parametrize(
    ("implementation", "dtype", "products", "shape"),
    [
        ("xla", "float64", None, (2, 3, 37, 50)),
        ("xla", "bfloat16", None, (50, 37)),
        ("xla", "float32", "bfloat16", (40, 64)),
        # Tiles in several rows and columns of the triangle; sides that fill none.
        ("triton", "float32", None, (2, 70, 40)),
        ("triton", "float32", None, (1, 17)),
        ("triton", "float32", "bfloat16", (2, 40, 72)),
        ("triton", "bfloat16", None, (33, 16)),
    ],
)
def test_agrees_with_the_definition(implementation, dtype, products, shape, monkeypatch):
    monkeypatch.setattr(xla, "BLOCK", 16)
    small = {"block": 16, "rows": 16, "columns": 32, "depth": 16, "num_warps": 4, "num_stages": 1}
    with jax.enable_x64(dtype == "float64"):
        x = Draws(1, jnp.dtype(dtype)).normal(shape)
        expected = run("reference", x, products)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(tuned, "settings", lambda op, kernel, dtype: small)
            found = run(implementation, x, products)
    assert found.dtype == jnp.promote_types(dtype, jnp.float32)
    assert_close(found, expected, TOLERANCE[products or found.dtype.name], floor=1e-3)


@pytest.mark.kernel
def test_the_kernels_settings_cut_what_they_are_given():
    """With the settings of `tuned.json`, and more than one tile a side."""
    x = Draws(2).normal((130, 200))
    assert_close(run("triton", x), run("reference", x), TOLERANCE["float32"])


def test_the_symmetric_product_is_exactly_symmetric(monkeypatch):
    monkeypatch.setattr(xla, "BLOCK", 8)
    x = jax.random.normal(jax.random.key(0), (2, 37, 50))  # odd halves
    found = jax.jit(xla.symmetric_product)(x)
    np.testing.assert_allclose(found, np.asarray(x) @ np.asarray(x.mT), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found, found.mT)


def test_only_one_triangle_of_tiles_is_multiplied_out(monkeypatch):
    """The grid of a symmetric product has n (n + 1) / 2 programs, not n^2."""
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    x = jax.ShapeDtypeStruct((3, 256, 512), jnp.float32)
    with dispatch.compiling_for("cuda"):
        tiles = 256 // tuned.settings("newton_schulz", "gram_float32")["block"]
        jaxpr = str(jax.make_jaxpr(newton_schulz)(x))
    assert tiles > 1
    assert jaxpr.count(f"grid=({tiles * (tiles + 1) // 2}, 3)") == 2


@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_singular_values_are_near_one_and_zeros_stay_zero(implementation):
    x = jax.random.normal(jax.random.key(0), (2, 32, 128)).at[1].set(0)
    found = np.asarray(run(implementation, x))
    values = np.linalg.svd(found[0], compute_uv=False)
    assert 0.65 < values.min() and values.max() < 1.25
    np.testing.assert_array_equal(found[1], 0)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
@pytest.mark.parametrize("products", [None, jnp.bfloat16])
def test_lowers_for_a_gpu_and_never_to_tf32(platform, products, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    x = jax.ShapeDtypeStruct((2, 100, 64), jnp.float32)
    with dispatch.compiling_for(platform):
        traced = jax.jit(lambda x: newton_schulz(x, products=products)).trace(x)
    assert traced.lower(lowering_platforms=(platform,)).as_text().count("xla.gpu.triton") == 3
    text = str(traced.jaxpr)
    assert text.count("dot_general[") == text.count("precision=(Precision.HIGHEST") == 3


def test_says_what_it_does_not_take():
    x = jnp.zeros((4, 8))
    for message, call in {
        "no implementation 'cuda'": lambda: newton_schulz(x, implementation="cuda"),
        r"floating \[..., m, n\]; got float32 \(8,\)": lambda: newton_schulz(x[0]),
        "got int32": lambda: newton_schulz(x.astype(jnp.int32)),
        "must not be negative, got -1": lambda: newton_schulz(x, -1),
        "a floating dtype, not int8": lambda: newton_schulz(x, products=jnp.int8),
    }.items():
        with pytest.raises(ValueError, match=message):
            call()
    with pytest.raises(ValueError, match="products in bfloat16 or float32, not float16"):
        newton_schulz(x, products=jnp.float16, implementation="triton")
    lack = triton.supports(x[:0], products=jnp.float32)
    assert lack is not None and "(0, 8)" in lack
    assert set(IMPLEMENTATIONS) == {"triton", "xla", "reference"}
