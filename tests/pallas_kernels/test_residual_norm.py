"""residual_norm: implementations against the definition, and what a user would miss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.draws import Draws
from pallas_kernels.residual_norm import IMPLEMENTATIONS, reference, residual_norm, triton
from tests.pallas_kernels.agreement import assert_close, evaluate, few_examples, widened

# Relative to the largest entry. float32: a row's mean of D squares is off by D/2 rounding errors at
# worst (1e-5 at D = 200), a column's sum over T rows by as much. bfloat16: the sum of three rounded
# terms, then the norm's own rounding: four of 2^-9. XLA sums columns in bfloat16: twice that.
TOLERANCE = {"float32": 1e-5, "bfloat16": 2e-2}
FAST = sorted(name for name in IMPLEMENTATIONS if name != "reference")


def draw(seed: int, T: int, D: int, dtype, policy: str, scaled: bool = True, normed: bool = True):
    """A call in the dtypes of a numerics policy (see `zaya_jax.model.numerics`)."""
    draws, wide = Draws(seed, dtype), jnp.promote_types(dtype, jnp.float32)
    merge = norm = wide if policy == "training" else dtype
    scales = tuple(draws.normal((D,), 0.5, mean=1) for _ in range(4)) if scaled else None
    weight = draws.normal((D,), 0.5, mean=1) if normed else None
    args = draws.normal((T, D)), draws.normal((T, D), dtype=wide), scales, weight
    return args, dict(eps=1e-5, merge_dtype=merge, stream_dtype=wide, norm_dtype=norm)


def check(implementation: str, args, options):
    dtype = args[0].dtype
    found = evaluate(IMPLEMENTATIONS[implementation], args, options)
    exact = {name: jnp.float32 if "dtype" in name else x for name, x in options.items()}
    expected = evaluate(reference.residual_norm, widened(args), exact)
    assert_close(found, expected, TOLERANCE[dtype.name], floor=1)
    assert found[0][0].dtype == options["stream_dtype"]
    assert all(
        jax.tree.leaves(
            jax.tree.map(
                lambda g, x: g.dtype == x.dtype, found[1], [x for x in jax.tree.leaves(args)]
            )
        )
    )


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(
    seed=st.integers(0, 2**16),
    T=st.sampled_from([1, 2, 5, 64, 67]),
    D=st.sampled_from([1, 16, 48, 128, 200]),
    policy=st.sampled_from(["training", "reference"]),
    scaled=st.booleans(),
    normed=st.booleans(),
)
@few_examples
def test_agrees_with_the_definition(implementation, dtype, seed, T, D, policy, scaled, normed):
    check(implementation, *draw(seed, T, D, jnp.dtype(dtype), policy, scaled, normed))


@pytest.mark.kernel
@pytest.mark.parametrize("kernel_rows", [1, 4])
def test_programs_of_several_steps_agree_with_the_definition(kernel_rows, monkeypatch):
    """The shares of many programs, the last one partly beyond the end, add up."""
    monkeypatch.setattr(triton, "PROGRAMS", 3)
    chosen = {"rows": kernel_rows, "steps": 4, "num_warps": 4, "num_stages": 1}
    with (
        tuned.trying("residual_norm", "forward", chosen),
        tuned.trying("residual_norm", "backward", chosen),
    ):
        check("triton", *draw(0, 37, 24, jnp.dtype("float32"), "training"))


@pytest.mark.kernel
def test_leading_axes_are_kept():
    (mixer, stream, *parameters), options = draw(0, 6, 16, jnp.dtype("float32"), "training")
    flat = IMPLEMENTATIONS["triton"](mixer, stream, *parameters, **options)
    deep = IMPLEMENTATIONS["triton"](
        mixer.reshape(2, 3, 16), stream.reshape(2, 3, 16), *parameters, **options
    )
    assert deep[0].shape == deep[1].shape == (2, 3, 16)
    np.testing.assert_array_equal(deep[1].reshape(6, 16), flat[1])


@pytest.mark.kernel
def test_adds_the_bias_before_the_scale():
    one = jnp.ones((1, 4))
    scales = tuple(jnp.full(4, v) for v in (2.0, 3.0, 5.0, 7.0))
    wide = jnp.float32
    options = dict(eps=0.0, merge_dtype=wide, stream_dtype=wide, norm_dtype=wide)
    for implementation in IMPLEMENTATIONS:
        stream, normed = residual_norm(
            one, one, scales, jnp.full(4, 0.5), **options, implementation=implementation
        )
        np.testing.assert_allclose(stream, (1 + 3) * 2 + (1 + 7) * 5)
        np.testing.assert_allclose(normed, 0.5, rtol=1e-6)


def test_says_what_the_kernel_lacks():
    args, options = draw(0, 2, 8, jnp.dtype("float32"), "training")
    assert triton.supports(*args, **options) is None
    halves = jax.tree.map(lambda x: x.astype(jnp.float16), args)
    with pytest.raises(ValueError, match="float32 and bfloat16, not float16"):
        residual_norm(*halves, **options, implementation="triton")
    wide = jax.ShapeDtypeStruct((2, 32_768), jnp.float32)
    lacks = triton.supports(wide, wide, None, None, **options)
    assert lacks is not None and f"{triton.MAX_WIDTH} channels" in lacks


def test_shapes_that_do_not_fit_are_told():
    args, options = draw(0, 2, 8, jnp.dtype("float32"), "training")
    mixer, stream, scales, weight = args
    for wrong, told in (
        ((mixer, stream[:, :4], scales, weight), "of one shape"),
        ((mixer, stream, scales, weight[:4]), r"norm_weight must be \[8\]; got \(4,\)"),
        ((mixer, stream, (*scales[:3], scales[3][:1]), weight), r"scales must be \[8\]"),
    ):
        with pytest.raises(ValueError, match=told):
            residual_norm(*wrong, **options)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_lowers_for_a_gpu_forward_and_backward(platform, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    (mixer, *rest), options = draw(0, 100, 48, jnp.dtype("bfloat16"), "training")

    def loss(args):
        return sum(jnp.sum(x.astype(jnp.float32)) for x in residual_norm(*args, **options))

    with dispatch.compiling_for(platform):
        step = jax.jit(lambda args: jax.value_and_grad(loss)(args))
        text = step.trace((mixer, *rest)).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("gpu$xla.gpu.triton") == 2
