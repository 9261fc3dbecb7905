"""On a GPU: every Triton kernel with the settings of `tuned.json`, beside its op's definition.

`make test-gpu` runs these; everywhere else they are skipped. It also runs the tests of kernels in
`tests/pallas_kernels`, most of which take settings of their own, with which a small call has many
tiles.
"""

from __future__ import annotations

import importlib

import jax
import jax.numpy as jnp
import pytest

from pallas_kernels import dispatch
from tests.pallas_kernels.agreement import assert_close, evaluate, widened

pytestmark = pytest.mark.gpu

# Relative to the largest entry: what the interpreted tests allow at most, see their modules.
TOLERANCE = {"float32": 1e-4, "bfloat16": 6e-2}
WITHOUT_GRADIENT = ("decode_attention", "projections", "newton_schulz")
"""Ops of decoding and of an optimizer: nothing is learnt through them."""
CONSTANT = {"cca_mix": (5, 6)}
"""Arguments that the kernel gives no gradient: cosines and sines."""


def implementations(op: str):
    """What there is of an op, and its example's arguments."""
    module = importlib.import_module(f"pallas_kernels.{op}")
    return module.IMPLEMENTATIONS, importlib.import_module(f"pallas_kernels.{op}.example")


def held(op: str, run):
    """The same, with its constants held."""

    def call(*args, **options):
        constant = CONSTANT.get(op, ())
        args = [jax.lax.stop_gradient(x) if i in constant else x for i, x in enumerate(args)]
        return run(*args, **options)

    return call


KERNELS = [op for op in dispatch.OPS if "triton" in implementations(op)[0]]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("op", KERNELS)
def test_a_kernel_computes_what_its_definition_says(op, dtype):
    """Values and, where there are any, gradients, of the settings chosen for this device."""
    table, example = implementations(op)
    args, options = example.draw(0, jnp.dtype(dtype))
    with jax.default_matmul_precision("highest"):
        if op in WITHOUT_GRADIENT:
            found = jax.jit(lambda args: table["triton"](*args, **options))(args)
            expected = jax.jit(lambda args: table["reference"](*args, **options))(widened(args))
            assert_close(found, expected, TOLERANCE[dtype], floor=1e-3)
            return
        found, grown = evaluate(held(op, table["triton"]), args, options)
        expected, wanted = evaluate(held(op, table["reference"]), widened(args), options)
    assert_close(found, expected, TOLERANCE[dtype], floor=1e-3)
    assert_close(grown, wanted, TOLERANCE[dtype], floor=1e-3)


def test_auto_takes_the_kernels_here():
    for op in KERNELS:
        assert dispatch.resolve(op, implementations(op)[0]) == "triton"
