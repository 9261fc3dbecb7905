"""Laying tensors out as Hugging Face files do, and back."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from zaya_jax.hf.layout import contiguous, flat, from_hf, hf_shape, to_hf

SHAPES = {
    "same": (3, 4),
    "transposed": (2, 3, 4),
    "depthwise": (3, 8),
    "grouped": (2, 5, 4, 4),
}


@pytest.mark.parametrize("layout", SHAPES)
def test_there_and_back(layout):
    x = np.arange(np.prod(SHAPES[layout])).reshape(SHAPES[layout])
    there = to_hf(x, layout)
    assert there.shape == hf_shape(x.shape, layout)
    assert np.array_equal(from_hf(there, layout), x)


def test_convolutions_lie_as_torch_reads_them():
    torch = pytest.importorskip("torch")
    random = np.random.default_rng(0)
    x = random.standard_normal((6, 10)).astype(np.float32)  # [S, heads * width]
    taps = random.standard_normal((3, 10)).astype(np.float32)
    theirs = torch.nn.functional.conv1d(
        torch.tensor(x.T[None]), torch.tensor(to_hf(taps, "depthwise").copy()), groups=10
    )[0].T.numpy()
    ours = sum(x[k : k + 4] * taps[k] for k in range(3))
    np.testing.assert_allclose(theirs, ours, rtol=1e-5)

    heads = random.standard_normal((2, 5, 2, 2)).astype(np.float32)
    theirs = torch.nn.functional.conv1d(
        torch.tensor(x.T[None]), torch.tensor(to_hf(heads, "grouped").copy()), groups=5
    )[0].T.numpy()
    split = x.reshape(6, 5, 2)
    ours = sum(np.einsum("shi,hio->sho", split[k : k + 5], heads[k]) for k in range(2))
    np.testing.assert_allclose(theirs, ours.reshape(5, 10), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float32, np.float64])
def test_contiguous_moves_every_value(dtype):
    x = np.random.default_rng(0).standard_normal((37, 50)).astype(dtype)
    for view in (x, x.T, x[::2], x.reshape(37, 5, 10).transpose(2, 0, 1)):
        found = contiguous(view)
        assert found.flags.c_contiguous and np.array_equal(found, view)
    assert contiguous(x) is x
    assert np.shares_memory(flat(x.T), x) and flat(x[:, ::2]).size == 37 * 25


def test_unknown_layouts():
    for f in (
        lambda: to_hf(np.zeros(1), "x"),
        lambda: from_hf(np.zeros(1), "x"),
        lambda: hf_shape((1,), "x"),
    ):
        with pytest.raises(ValueError, match="unknown layout 'x'"):
            f()
