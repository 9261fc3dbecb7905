"""Packed rows are exact: a document gives what it gives alone, and so do its gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests import oracles
from zaya_jax.model.functional import merge

SHAPE = dict(layers=3, kernels=(3, 2), pattern=("sliding", "full", "full"), window=4, hidden=32)
ROW, DOCUMENTS = 24, 6


def setup(dtype):
    model = oracles.tiny_model(dtype=dtype, **SHAPE)
    return model, *oracles.from_torch(model, oracles.torch_model(model, 11))


def functions(model, biases):
    """Logits, and the gradient of a fixed scalar of the logits, of rows [B, ROW] of segments."""

    def logits(params, ids, segments):
        decoder = merge(model, params, biases)
        return decoder.logits(decoder(ids, segments).hidden)

    def scalar(params, ids, segments, probe):
        out = logits(params, ids, segments) * probe
        return jnp.sum(jnp.where(segments[..., None] > 0, out, 0))

    return jax.jit(logits), jax.jit(jax.grad(scalar))


def rows(documents):
    """All documents in one row, and each alone at the start of a row; shapes stay fixed."""
    packed = np.zeros((DOCUMENTS, ROW), np.int32)
    packed_segments = np.zeros_like(packed)
    alone, alone_segments = np.zeros_like(packed), np.zeros_like(packed)
    at, spans = 0, []
    for i, ids in enumerate(documents):
        packed[0, at : at + len(ids)] = ids
        packed_segments[0, at : at + len(ids)] = i + 1
        alone[i, : len(ids)] = ids
        alone_segments[i, : len(ids)] = 1
        spans.append((at, at + len(ids)))
        at += len(ids)
    return (packed, packed_segments), (alone, alone_segments), spans


lengths = st.lists(st.integers(1, 9), min_size=1, max_size=DOCUMENTS).filter(
    lambda n: sum(n) <= ROW
)


@pytest.mark.parametrize(
    ("dtype", "bound"), [("float64", 1e-10), pytest.param("float32", 1e-5, marks=pytest.mark.slow)]
)
def test_packed_equals_separate(dtype, bound):
    with jax.enable_x64(dtype == "float64"):
        model, params, biases = setup(dtype)
        logits, gradient = functions(model, biases)

        @settings(max_examples=12)
        @example(sizes=[1, 1, 1, 1, 1, 1], seed=0)
        @example(sizes=[9, 1, 9, 5], seed=1)
        @given(sizes=lengths, seed=st.integers(0, 99))
        def check(sizes, seed):
            rng = np.random.default_rng(seed)
            documents = [rng.integers(3, 97, n) for n in sizes]
            (ids, segments), (ids1, segments1), spans = rows(documents)
            packed = np.asarray(logits(params, ids, segments))[0]
            alone = np.asarray(logits(params, ids1, segments1))
            pieces = [alone[i, : b - a] for i, (a, b) in enumerate(spans)]
            expected, found = np.concatenate(pieces), packed[: spans[-1][1]]
            assert np.abs(found - expected).max() <= bound * np.abs(expected).max()

            probe = rng.normal(size=(DOCUMENTS, ROW, 97)).astype(dtype)
            probe1 = np.zeros_like(probe)
            for i, (a, b) in enumerate(spans):
                probe1[i, : b - a] = probe[0, a:b]
            g = gradient(params, ids, segments, probe)
            g1 = gradient(params, ids1, segments1, probe1)
            # A key temperature's gradient is one number a head, a sum over all tokens of terms
            # that cancel: float32 knows it to the rounding of its terms, not of what is left.
            largest = max(np.abs(value).max() for value in g1.values())
            for path, value in g1.items():
                cancels = dtype == "float32" and path.endswith("temperature")
                scale = largest if cancels else max(np.abs(value).max(), 1e-3)
                assert np.abs(g[path] - value).max() <= bound * scale, path

        check()


def test_padding_is_never_counted_and_changes_nothing():
    model, params, biases = setup("float32")
    ids = np.random.default_rng(0).integers(3, 97, (1, ROW))
    segments = np.where(np.arange(ROW) < 15, 1, 0)[None]
    forward = jax.jit(lambda ids: merge(model, params, biases)(ids, jnp.asarray(segments)))
    out = forward(ids)
    other = forward(np.where(segments > 0, ids, 5))
    np.testing.assert_array_equal(out.stats.counts.sum(-1), 15)
    np.testing.assert_array_equal(out.hidden[:, :15], other.hidden[:, :15])
