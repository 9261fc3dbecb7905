"""Bytes and FLOPs counted in lowered kernels, against what one counts by hand."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from tests.aot.programs import copy_rows, pallas, shape, tiled_matmul
from zaya_jax.aot import launches


def counted(function, *args, platform="rocm"):
    """The launches of `function`; arrays with values are known, structs are not."""
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in args]
    jaxpr = jax.make_jaxpr(function)(*shapes)
    known = [None if isinstance(a, jax.ShapeDtypeStruct) else a for a in args]
    _, calls = launches.follow(jaxpr.jaxpr, jaxpr.consts, known)
    return [launches.counted(call, platform) for call in calls]


@given(
    sizes=st.tuples(*[st.integers(1, 70)] * 3),
    tile=st.sampled_from([16, 32]),
    platform=st.sampled_from(["rocm", "cuda"]),
)
def test_masked_tiles_count_what_lies_inside(sizes, tile, platform):
    M, K, N = sizes
    a, b = shape(M, K), shape(K, N)
    [launch] = counted(lambda a, b: tiled_matmul(a, b, tile), a, b, platform=platform)
    blocks = [math.ceil(size / tile) for size in sizes]
    counts = launch.counts
    assert launch.grid == (blocks[0], blocks[2], 1)
    assert counts.exact
    if counts.sampled == 1:
        assert counts.reads[:2] == (2 * M * K * blocks[2], 2 * K * N * blocks[0])
        assert counts.loads == sum(counts.reads)
        assert counts.stores == 2 * M * N
    assert counts.matrix == {"bfloat16": 2 * tile**3 * math.prod(blocks)}


@given(lengths=st.lists(st.integers(0, 64), min_size=1, max_size=5))
def test_known_lengths_bound_the_loops(lengths):
    x = shape(len(lengths), 64, 32)
    # The kernel gets them by way of other operations, through which they are followed.
    clipped = jax.jit(lambda x, n: copy_rows(x, jnp.minimum(n, 48)))
    [launch] = counted(clipped, x, np.array(lengths, np.int32))
    rows = sum(min(length, 48) for length in lengths)
    assert launch.counts.exact
    assert launch.counts.stores == rows * 32 * 2
    assert launch.counts.reads[0] == rows * 32 * 2
    # Nor has anything to be moved of what is not read.
    assert launch.least_bytes == 2 * rows * 32 * 2 + len(lengths) * 4


def test_unknown_lengths_are_not_guessed():
    [launch] = counted(copy_rows, shape(2, 64, 32), shape(2, dtype=jnp.int32))
    assert launch.counts is None
    assert "depends on values that are not known" in launch.note


def test_an_unknown_mask_counts_all_lanes_and_says_so():
    def kernel(x_ref, n_ref, out_ref):
        mask = jnp.arange(64) < n_ref[0]
        plgpu.store(out_ref, plgpu.load(x_ref, mask=mask, other=0), mask=mask)

    call = pallas(kernel, (3,), shape(64, dtype=jnp.float32))
    x, n = shape(64, dtype=jnp.float32), shape(1, dtype=jnp.int32)
    [launch] = counted(call, x, n)
    assert not launch.counts.exact and launch.counts.stores == 3 * 256
    [launch] = counted(call, x, np.array([10], np.int32))
    assert launch.counts.exact and launch.counts.stores == 3 * 40


def test_a_branch_is_taken_where_it_is_known():
    def kernel(x_ref, out_ref):
        @pl.when(pl.program_id(0) < 2)
        def _():
            out_ref[...] = x_ref[...] * 2

    [launch] = counted(pallas(kernel, (8,), shape(64)), shape(64))
    assert launch.counts.stores == 2 * 128


def test_overlapping_loads_of_a_workgroup_read_an_element_once():
    def kernel(x_ref, out_ref):
        at = pl.program_id(0) * 32 + jnp.arange(32)
        before = x_ref[jnp.maximum(at - 1, 0)]
        out_ref[at] = before + x_ref[at]

    counts = counted(pallas(kernel, (4,), shape(128)), shape(128))[0].counts
    assert counts.loads == 2 * 2 * 128
    assert counts.reads[0] == 2 * (32 + 33 * 3)


def test_many_workgroups_are_sampled_without_bias():
    def kernel(x_ref, out_ref):
        def step(i, total):
            return total + x_ref[pl.ds(i * 16, 16)].sum()

        out_ref[pl.program_id(0)] = jax.lax.fori_loop(0, pl.program_id(0), step, 0.0)

    x = shape(16 * 1024, dtype=jnp.float32)
    counts = counted(pallas(kernel, (1024,), shape(1024, dtype=jnp.float32)), x)[0].counts
    assert counts.sampled < 0.1
    assert counts.loads == pytest.approx(64 * 1024 * 1023 / 2, rel=0.01)


def test_memory_serves_a_small_operand_once_and_a_large_one_to_everybody():
    [launch] = counted(lambda a, b: tiled_matmul(a, b, 16), shape(64, 64), shape(64, 64))
    each = 64 * 64 * 2
    assert launch.traffic(cache_bytes=2 * each) == 3 * each
    assert launch.traffic(cache_bytes=each) == (4 + 4 + 1) * each
    assert launch.traffic(cache_bytes=2 * each, caches=3) == (3 + 3 + 1) * each
