"""Float32 products are no TF32 on NVIDIA GPUs, also where `launch.py` has told jax nothing."""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch
from pallas_kernels.decode_attention import decode_attention
from pallas_kernels.draws import Draws
from pallas_kernels.grouped_matmul import example as experts_example
from pallas_kernels.grouped_matmul import experts
from pallas_kernels.projections import projections, tied
from pallas_kernels.quantized import quantize
from tests.pallas_kernels.agreement import is_float, of_floats

FORWARD_ONLY = ("decode_attention", "newton_schulz")  # nothing is learnt through them
WITHOUT_PRODUCTS = ("residual_norm",)


def products(run, args, platform: str, *, backward: bool) -> list[str]:
    """The lines of the products in a lowered program, where jax is left at its own default."""
    forward, floats = of_floats(run, args)

    def loss(chosen):
        found = jax.tree.leaves(forward(chosen))
        return sum(jnp.sum(x.astype(jnp.float32)) for x in found if is_float(x))

    step = jax.jit(jax.value_and_grad(loss) if backward else loss)
    with jax.default_matmul_precision("default"), dispatch.compiling_for(platform):
        traced = step.trace(floats)
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    return [line for line in text.splitlines() if "stablehlo.dot" in line]


def implementation_and_example(op: str, name: str, dtype: str):
    run = dispatch.load(op).IMPLEMENTATIONS[name]
    example = importlib.import_module(f"pallas_kernels.{op}.example")
    args, options = example.draw(0, jnp.dtype(dtype))
    return lambda *args: run(*args, **options), args


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("name", ["xla", "reference"])
@pytest.mark.parametrize("op", dispatch.OPS)
def test_float32_is_multiplied_at_full_precision(op, name, platform):
    run, args = implementation_and_example(op, name, "float32")
    found = products(run, args, platform, backward=op not in FORWARD_ONLY)
    assert bool(found) == (op not in WITHOUT_PRODUCTS)
    assert all("precision = [HIGHEST, HIGHEST]" in line for line in found), found


@pytest.mark.parametrize("op", [op for op in dispatch.OPS if op != "newton_schulz"])
def test_bfloat16_is_left_to_the_matrix_units(op):
    run, args = implementation_and_example(op, "xla", "bfloat16")
    found = products(run, args, "cuda", backward=op not in FORWARD_ONLY)
    assert not [line for line in found if "HIGH" in line]


def of_pages(draws: Draws):
    """Decoding from an int8 cache in pages."""
    numbers = draws.array(draws.numpy.integers(-127, 128, (6, 2, 8, 16)), jnp.int8)
    table = draws.array(np.arange(6).reshape(2, 3), jnp.int32)
    scales = (draws.normal((6, 2, 8)),) * 2
    lengths = jnp.array([24, 5], jnp.int32)

    def run(q, numbers, lengths):
        return decode_attention(
            q, numbers, numbers, lengths, pages=table, scales=scales, implementation="xla"
        )

    return run, (draws.normal((2, 4, 16)), numbers, lengths)


def of_quantized_experts(draws: Draws):
    """Few tokens, and all of them."""
    (x, index, weight, *tables), _ = experts_example.draw(0, jnp.dtype("float32"))
    tables = [quantize(table, "int8", 16) for table in tables]

    def run(x):
        few = experts(x[:9], index[:9], weight[:9], *tables, implementation="xla")
        return few, experts(x, index, weight, *tables, implementation="xla")

    return run, (x,)


def of_quantized_matrices(draws: Draws):
    """A scale a column and several, few tokens and many, and an embedding."""
    matrix, embedding = draws.normal((32, 16)), draws.normal((40, 32, 1))
    stored = quantize(matrix, "int8"), quantize(matrix, "int4", 16), matrix

    def run(x):
        found = [projections(part, stored, implementation="xla") for part in (x, x[:3])]
        return found, tied(x, quantize(embedding, "int8"), jnp.float32)

    return run, (draws.normal((40, 32)),)


@pytest.mark.parametrize("platform", ["cpu", "cuda"])
@pytest.mark.parametrize("of", [of_pages, of_quantized_experts, of_quantized_matrices])
def test_so_is_what_stands_in_few_bits(of, platform):
    run, args = of(Draws(0, jnp.dtype("float32")))
    found = products(run, args, platform, backward=False)
    assert found and all("precision = [HIGHEST, HIGHEST]" in line for line in found), found
