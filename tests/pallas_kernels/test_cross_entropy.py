"""Every implementation of cross-entropy agrees with the definition, and that with torch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pallas_kernels.cross_entropy import IMPLEMENTATIONS, cross_entropy, example, xla

FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
TOLERANCE = {jnp.float64: 1e-10, jnp.float32: 1e-5, jnp.bfloat16: 2e-2}


def make_call(seed, tokens, hidden, vocabulary, dtype):
    keys = jax.random.split(jax.random.key(seed), 3)
    return (
        2 * jax.random.normal(keys[0], (tokens, hidden), dtype),
        jax.random.normal(keys[1], (vocabulary, hidden), dtype) * hidden**-0.5,
        jax.random.randint(keys[2], (tokens,), 0, vocabulary),
    )


def outputs(implementation, args, chunk=None):
    """The log-probabilities, and gradients of hidden and head for a fixed random cotangent."""
    hidden, head, targets = args

    @jax.jit
    def run(hidden, head, cotangent):
        def call(hidden, head):
            return cross_entropy(hidden, head, targets, chunk=chunk, implementation=implementation)

        logprob, pull = jax.vjp(call, hidden, head)
        return logprob, *pull(cotangent.astype(logprob.dtype))

    return run(hidden, head, np.random.RandomState(7).randn(hidden.shape[0]))


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("dtype", list(TOLERANCE), ids=lambda t: t.__name__)
@settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(1, 70),
    chunk=st.sampled_from([None, 1, 7, 16]),
    tile=st.sampled_from([5, 16, 2048]),
    seed=st.integers(0, 99),
)
def test_agrees_with_the_reference(implementation, dtype, tokens, vocabulary, chunk, tile, seed):
    with jax.enable_x64(dtype == jnp.float64), pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "VOCABULARY", tile)
        args = make_call(seed, tokens, 12, vocabulary, dtype)
        expected, got = outputs("reference", args), outputs(implementation, args, chunk)
        for a, b in zip(expected, got, strict=True):
            assert a.dtype == b.dtype and a.shape == b.shape
            a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
            assert np.abs(a - b).max() < TOLERANCE[dtype] * max(1.0, np.abs(a).max())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_agrees_with_torch(implementation):
    torch = pytest.importorskip("torch")
    hidden, head, targets = make_call(1, 30, 16, 50, jnp.float32)
    weight = np.random.RandomState(0).randint(0, 2, 30).astype(np.float32)

    def loss(hidden, head):
        logprob = cross_entropy(hidden, head, targets, chunk=8, implementation=implementation)
        return -(logprob * weight).sum() / weight.sum()

    value, gradients = jax.jit(jax.value_and_grad(loss, (0, 1)))(hidden, head)
    leaves = [torch.from_numpy(np.array(a)).requires_grad_() for a in (hidden, head)]
    labels = torch.from_numpy(np.where(weight > 0, targets, -100)).long()
    expected = torch.nn.functional.cross_entropy(leaves[0] @ leaves[1].T, labels)
    expected.backward()
    np.testing.assert_allclose(value, expected.detach().numpy(), rtol=1e-6)
    for mine, theirs in zip(gradients, leaves, strict=True):
        np.testing.assert_allclose(mine, theirs.grad.numpy(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("implementation", FAST)
def test_huge_logits_stay_finite_and_probabilities_stay_below_one(implementation):
    head = jnp.eye(8) * 1e4
    hidden = jnp.concatenate([jnp.eye(8), -jnp.eye(8)])
    targets = jnp.tile(jnp.arange(8), 2)
    logprob, *gradients = outputs(implementation, (hidden, head, targets), chunk=5)
    assert np.isfinite(logprob).all() and (logprob <= 0).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_allclose(logprob[:8], 0, atol=1e-6)


@pytest.mark.parametrize("implementation", FAST)
def test_a_token_without_weight_sends_no_gradient(implementation):
    hidden, head, targets = make_call(2, 12, 8, 20, jnp.float32)
    weight = (jnp.arange(12) < 7).astype(jnp.float32)

    def loss(hidden, targets):
        logprob = cross_entropy(hidden, head, targets, chunk=5, implementation=implementation)
        return -(logprob * weight).sum()

    grad = jax.jit(jax.grad(loss))
    gradient = grad(hidden, targets)
    assert (gradient[7:] == 0).all() and (gradient[:7] != 0).any(1).all()
    other = grad(hidden, targets.at[7:].set(0))
    np.testing.assert_array_equal(gradient, other)


def test_log_sum_exp_is_differentiable_for_a_z_loss():
    with jax.enable_x64(True):
        hidden, head, targets = make_call(3, 9, 6, 15, jnp.float64)
        mine = jax.jit(jax.grad(lambda *a: (xla._statistics(*a, targets, 4)[1] ** 2).sum(), (0, 1)))
        plain = jax.grad(lambda h, w: (jax.nn.logsumexp(h @ w.T, axis=1) ** 2).sum(), (0, 1))
        for a, b in zip(mine(hidden, head), plain(hidden, head), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-10)


def temporary_bytes(tokens, vocabulary=262_272, hidden=2048):
    """What the compiled gradient needs beside its inputs and outputs; nothing is run."""
    shape = jax.ShapeDtypeStruct
    grad = jax.grad(lambda h, w, t: cross_entropy(h, w, t, implementation="xla").sum(), (0, 1))
    arguments = (
        shape((tokens, hidden), jnp.float32),
        shape((vocabulary, hidden), jnp.float32),
        shape((tokens,), jnp.int32),
    )
    return jax.jit(grad).lower(*arguments).compile().memory_analysis().temp_size_in_bytes


def test_memory_does_not_grow_with_tokens_times_vocabulary():
    small, large = temporary_bytes(2048), temporary_bytes(8192)
    rows = (8192 - 2048) * 2048 * 4  # bytes of the added tokens' hidden states
    assert large - small < 3 * rows
    assert large < 2048 * 262_272 * 4 / 4


def test_example_runs():
    args, kwargs = example.draw(jax.random.key(0), jnp.bfloat16)
    assert cross_entropy(*args, **kwargs).dtype == jnp.float32


def test_unknown_implementation_is_named():
    args, _ = example.draw(jax.random.key(0))
    with pytest.raises(ValueError, match="'cuda'.*auto, xla, reference"):
        cross_entropy(*args, implementation="cuda")


@pytest.mark.parametrize(
    "change, message",
    [
        ({0: jnp.zeros((39, 32))}, r"hidden \(39, 32\)"),
        ({1: jnp.zeros((96, 31))}, r"head \(96, 31\)"),
        ({2: jnp.zeros((40, 1), jnp.int32)}, r"targets \(40, 1\)"),
        ({2: jnp.zeros((40,))}, "integer, got float32"),
    ],
)
def test_calls_that_do_not_fit_are_refused(change, message):
    args, _ = example.draw(jax.random.key(0))
    args = [change.get(i, value) for i, value in enumerate(args)]
    with pytest.raises(ValueError, match=message):
        cross_entropy(*args)


def test_a_chunk_of_no_tokens_is_refused():
    args, _ = example.draw(jax.random.key(0))
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cross_entropy(*args, chunk=0)
