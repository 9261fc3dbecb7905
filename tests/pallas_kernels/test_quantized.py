"""Quantized experts: what is stored, and that every implementation computes what is meant."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pallas_kernels import dispatch, interpret
from pallas_kernels.draws import Draws
from pallas_kernels.grouped_matmul import example, experts, reference, triton
from pallas_kernels.grouped_matmul.quantized_xla import product
from pallas_kernels.quantized import (
    KINDS,
    LARGEST,
    of_e2m1,
    of_e4m3fn,
    pack,
    quantize,
    unpack,
)
from pallas_kernels.shapes import FORMS
from tests.pallas_kernels.agreement import few_examples, widened

# Of the largest entry of the definition in float32. No weight is rounded by any implementation, so
# these are the bounds of the plain experts: sums in float32, activations rounded to x's dtype three
# times, the product with the probability once more.
TOLERANCE = {"float32": 2e-5, "bfloat16": 3e-2}


@few_examples
@given(
    kind=st.sampled_from(KINDS),
    groups=st.integers(1, 3),
    half=st.integers(1, 8),
    columns=st.integers(1, 5),
    seed=st.integers(0, 99),
)
def test_a_weight_is_off_by_half_a_step_at_most(kind, groups, half, columns, seed):
    group = 2 * half
    weights = np.random.default_rng(seed).normal(size=(2, groups * group, columns))
    weights[0, :group] = 0  # a group of zeros has no scale of its own

    @jax.jit
    def there_and_back(weights):
        found = quantize(weights, kind, group)
        return found, found.dequantize()

    found, back = there_and_back(jnp.asarray(weights, jnp.float32))
    found.check("weights")
    assert found.shape == weights.shape and found.kind == kind
    error = np.abs(np.asarray(back) - weights)
    scales = np.repeat(np.asarray(found.scales), group, axis=1)
    # e4m3 has three bits behind the point: half a step is 2^-4 of the number, 2^-10 of the least.
    step = np.maximum(np.abs(weights) * 2**-3, scales * 2**-9) if kind == "fp8" else scales
    if kind == "fp4":  # one bit behind the point: 0, 1, 2, 3, then 4, 6, then 8, 12
        times = np.abs(weights) / scales
        step = scales * np.where(times < 4, 1, np.where(times < 8, 2, 4))
    assert (error <= step / 2 * (1 + 1e-4)).all()
    peak = np.abs(weights).reshape(2, groups, group, columns).max(2)
    np.testing.assert_allclose(found.scales, np.where(peak > 0, peak / LARGEST[kind], 1), rtol=1e-6)


@few_examples
@given(groups=st.integers(1, 3), half=st.integers(1, 5), seed=st.integers(0, 99))
def test_two_values_in_a_byte_come_out_again(groups, half, seed):
    shape = (2, groups * 2 * half, 3)
    values = np.random.default_rng(seed).integers(-8, 8, shape).astype(np.int8)
    packed = jax.jit(pack, static_argnums=1)(values, 2 * half)
    assert packed.dtype == jnp.uint8 and packed.size == values.size / 2
    np.testing.assert_array_equal(jax.jit(unpack, static_argnums=1)(packed, 2 * half), values)


def draw(kind, tokens, choices=1, dtype="float32", hidden=64, width=96, group=32, experts=4):
    draws = Draws(3, jnp.dtype(dtype))
    index = draws.array(draws.numpy.integers(-1, experts + 1, (tokens, choices)), jnp.int32)
    weight = draws.array(draws.numpy.random((tokens, choices)))
    gate_up = draws.normal((experts, hidden, 2 * width), hidden**-0.5, dtype=jnp.float32)
    down = draws.normal((experts, width, hidden), width**-0.5, dtype=jnp.float32)
    both = jax.jit(lambda *w: [quantize(x, kind, group) for x in w])(gate_up, down)
    return (draws.normal((tokens, hidden)), index, weight, *both)


def assert_agrees(implementation, args):
    dtype = args[0].dtype
    run = jax.jit(experts, static_argnames="implementation")
    found = run(*args, implementation=implementation)
    expected = run(*widened(args[:3]), *args[3:], implementation="reference")
    assert found.dtype == dtype
    error = np.abs(np.asarray(found, np.float64) - np.asarray(expected, np.float64)).max()
    assert error <= TOLERANCE[dtype.name] * max(1, np.abs(expected).max())


@pytest.mark.parametrize("implementation", ["xla", "triton"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("tokens", "choices", "dtype"),
    [(1, 1, "float32"), (9, 2, "bfloat16"), (301, 1, "bfloat16")],
)
def test_agrees_with_the_definition(implementation, kind, tokens, choices, dtype):
    """Decoding, decoding where some tokens share an expert, and a prompt."""
    assert_agrees(implementation, draw(kind, tokens, choices, dtype))


@pytest.mark.parametrize("implementation", ["xla", "triton"])
@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_a_scale_a_column_as_published(implementation, kind):
    args = draw(kind, 5)
    wide = [quantize(w.dequantize(), kind) for w in args[3:]]
    assert [w.group for w in wide] == [64, 96]
    assert_agrees(implementation, (*args[:3], *wide))


def test_the_definition_is_that_of_the_weights_that_are_meant():
    args = draw("int8", 40)
    meant = [w.dequantize() for w in args[3:]]
    expected = jax.jit(reference.experts)(*args[:3], *meant)
    found = jax.jit(lambda *args: experts(*args, implementation="reference"))(*args)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize("tokens", [1, 2])
def test_every_number_of_fp8_is_read_exactly(tokens):
    """All finite codes of e4m3fn, subnormal ones too, by tokens that pick one row each."""
    codes = np.arange(256, dtype=np.uint8)
    codes = codes[(codes & 0x7F) != 0x7F]
    values = jnp.asarray(codes.view(jnp.float8_e4m3fn.dtype).reshape(2, 127))
    weights = of_e4m3fn(values[None], jnp.ones((1, 1, 127)))
    found = jax.jit(lambda left: product(left, weights, 0))(jnp.eye(2)[:tokens])
    np.testing.assert_array_equal(found, np.asarray(values, np.float32)[:tokens])


def test_every_number_of_fp4_is_twice_that_of_e2m1():
    """All codes, against the library's own float4, in both places of a byte."""
    codes = np.arange(16, dtype=np.uint8)
    wanted = codes.view(np.uint8).astype(np.uint8)
    numbers = np.array([jnp.float4_e2m1fn.dtype.type(0)] * 16)
    numbers.view(np.uint8)[:] = wanted
    weights = of_e2m1(jnp.asarray(np.stack([codes, codes[::-1]])), jnp.full((1, 16), 0.5))
    weights.check("weights")
    found = np.asarray(jax.jit(lambda w: w.dequantize())(weights))
    expected = numbers.astype(np.float32)
    np.testing.assert_array_equal(found, np.stack([expected, expected[::-1]]))


@pytest.mark.parametrize("kind", KINDS)
def test_decoding_writes_no_converted_weights_to_memory(kind):
    """On a CPU what is saved is memory traffic: temporaries are far smaller than a matrix."""
    args = draw(kind, 1, hidden=256, width=256, group=64)
    run = jax.jit(lambda *args: experts(*args, implementation="xla"))
    planned = run.lower(*args).compile().memory_analysis()
    assert planned.temp_size_in_bytes < 4 * 256 * 512 / 16


@pytest.mark.parametrize("implementation", ["xla", "triton", "reference"])
def test_nothing_is_differentiated(implementation):
    x, *others = draw("int8", 3)
    with pytest.raises(ValueError, match="nothing is differentiated through quantized weights"):
        jax.grad(lambda x: experts(x, *others, implementation=implementation).sum())(x)


def test_says_what_it_does_not_take():
    x, index, weight, gate_up, down = draw("int8", 3)
    other = dataclasses.replace
    refusals = {
        "gate_up: 2 bits; accepted: 8 and 4": other(gate_up, bits=2),
        "groups of 48; accepted: numbers that divide 64": other(gate_up, group=48),
        r"scales float32 \(4, 2, 192\); expected floating \(4, 4, 192\)": other(gate_up, group=16),
        "values of 8 bits in int32; accepted: int8 or uint8": other(
            gate_up, values=gate_up.values.astype(jnp.int32)
        ),
        "sizes T, D, E, F": gate_up[:2],
        "gate_up is a plain float32 array": gate_up.dequantize(),
    }
    for message, wrong in refusals.items():
        with pytest.raises(ValueError, match=message):
            experts(x, index, weight, wrong, down)
    with pytest.raises(ValueError, match="in float8_e4m3fnuz; accepted: float8_e4m3fn"):
        of_e4m3fn(jnp.zeros((2, 8, 4), jnp.float8_e4m3fnuz), jnp.ones((2, 1, 4)))
    with pytest.raises(ValueError, match="no kind 'nf4'; accepted: int8, int4, fp8, fp4"):
        quantize(x, "nf4")
    with pytest.raises(ValueError, match="groups of 3; accepted: even numbers that divide 96"):
        quantize(down.dequantize(), "int4", 3)
    odd = [quantize(w.dequantize(), "int4", 16) for w in (gate_up, down)]
    assert "multiples of 32 rows, not 16" in (triton.supports(x, index, weight, *odd) or "")
    with pytest.raises(ValueError, match="'triton' does not take this call: int4 groups"):
        experts(x, index, weight, *odd, implementation="triton")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("experts_taken", [True, False])
def test_weights_whose_offsets_would_overflow_go_to_xla(kind, experts_taken):
    """Of more than 2^31 bytes and up to 2^32; nothing is allocated."""
    shape, rows = jax.ShapeDtypeStruct, 2048 if kind in ("int8", "fp8") else 4096
    least = 2**31 // (2048 * 4096)  # experts whose gate_up has 2^31 bytes
    E = least if experts_taken else least + 1
    weights = [
        jax.eval_shape(lambda w: quantize(w, kind, 32), shape((E, *sides), jnp.float32))
        for sides in ((rows, 4096), (2048, rows))
    ]
    args = (shape((8, rows), jnp.bfloat16), shape((8, 1), jnp.int32), shape((8, 1), jnp.bfloat16))
    lack = triton.supports(*args, *weights)
    told = f"{kind} weights of up to 2 GiB in numbers of one byte, or of more than 4, not 2.01 GiB"
    assert lack == (None if experts_taken else told)
    with dispatch.compiling_for("cuda"):
        taken = "pallas_call" in str(jax.make_jaxpr(lambda *args: experts(*args))(*args, *weights))
    assert taken == experts_taken


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
@pytest.mark.parametrize("form", ["decode_8", "prefill"])
def test_lowers_for_a_gpu(platform, form, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    calls = example.shapes_8b(FORMS[form])
    for kind in KINDS:
        with dispatch.compiling_for(platform):
            traced = jax.jit(lambda *args: experts(*args)).trace(*calls[kind].args)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("gpu$xla.gpu.triton") == 2
