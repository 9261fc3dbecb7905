"""Every implementation of cross-entropy agrees with the definition, and that with torch."""

import contextlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example as example_of
from hypothesis import given, settings
from hypothesis import strategies as st

from pallas_kernels import dispatch, interpret, tuned
from pallas_kernels.cross_entropy import IMPLEMENTATIONS, cross_entropy, example, triton, xla
from pallas_kernels.draws import Draws
from tests.pallas_kernels.agreement import few_examples

two_examples = settings(few_examples, max_examples=2)  # each is interpreted
FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
# Relative to the largest entry, or to 1. float32: dots of few terms of order one, in another order.
# bfloat16: operands are given in it and sums are float32, so values agree closely; the logits'
# gradient is rounded before the last products and these after, by 2^-9 each, on both sides.
TOLERANCE = {"float64": 1e-10, "float32": 1e-5, "bfloat16": 2e-2}


@pytest.fixture(autouse=True, scope="module")
def several_tiles():
    """Even a small call has several tiles."""
    with small_tiles(16, 2):
        yield


@contextlib.contextmanager
def small_tiles(columns, programs):
    chosen = {"rows": 16, "columns": columns, "depth": 16, "together": 2}
    chosen |= {"num_warps": 4, "num_stages": 1}
    with contextlib.ExitStack() as stack:
        for kernel in ("forward", "backward", "forward_float32", "backward_float32"):
            more = {"programs": programs} if "forward" in kernel else {}
            stack.enter_context(tuned.trying("cross_entropy", kernel, chosen | more))
        yield


def make_call(seed, tokens, hidden, vocabulary, dtype):
    draws = Draws(seed, dtype)
    words = draws.numpy.integers(vocabulary, size=tokens)
    return (
        draws.normal((tokens, hidden), 2),
        draws.normal((vocabulary, hidden), hidden**-0.5),
        draws.array(words, jnp.int32),
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


def check(implementation, args, chunk=None):
    expected, got = outputs("reference", args), outputs(implementation, args, chunk)
    for a, b in zip(expected, got, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        tolerance = TOLERANCE[args[0].dtype.name]
        assert np.abs(a - b).max() < tolerance * max(1.0, np.abs(a).max())


@pytest.mark.parametrize("dtype", TOLERANCE)
@given(
    tokens=st.integers(1, 40),
    vocabulary=st.integers(1, 70),
    chunk=st.sampled_from([None, 1, 7, 16]),
    tile=st.sampled_from([5, 16, 2048]),
    seed=st.integers(0, 99),
)
@few_examples
def test_xla_agrees_with_the_reference(dtype, tokens, vocabulary, chunk, tile, seed):
    with jax.enable_x64(dtype == "float64"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(xla, "VOCABULARY", tile)
        check("xla", make_call(seed, tokens, 12, vocabulary, dtype), chunk)


@pytest.mark.kernel
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@given(
    tokens=st.sampled_from([1, 16, 37, 48]),  # one to three blocks of rows, in one or two groups
    hidden=st.sampled_from([16, 48]),
    vocabulary=st.sampled_from([1, 16, 64, 65, 70, 95]),
    columns=st.sampled_from([16, 32]),
    programs=st.sampled_from([1, 6, 99]),
    chunk_bytes=st.sampled_from([1, 6000, triton.LARGEST]),
    seed=st.integers(0, 99),
)
# Two chunks and a rest that is no whole tile; the last share has fewer tiles.
@example_of(
    tokens=37, hidden=48, vocabulary=75, columns=16, programs=6, chunk_bytes=37 * 4 * 32, seed=5
)
@two_examples
def test_triton_agrees_with_the_reference(
    dtype, tokens, hidden, vocabulary, columns, programs, chunk_bytes, seed
):
    """Tiles over the end of tokens and words; shares of a part of the tiles; gradients of logits in
    one chunk, in several, and in several with a rest."""
    with small_tiles(columns, programs), pytest.MonkeyPatch.context() as patch:
        patch.setattr(triton, "LARGEST", chunk_bytes)
        check("triton", make_call(seed, tokens, hidden, vocabulary, dtype))


@pytest.mark.parametrize("implementation", FAST)
def test_a_target_that_is_no_word_changes_nothing_of_the_others(implementation):
    """Padding's target may be -1 as long as its cotangent is 0."""
    hidden, head, targets = make_call(6, 20, 16, 40, jnp.float32)
    weight = (jnp.arange(20) < 13).astype(jnp.float32)

    @jax.jit
    def gradients(targets):
        def loss(hidden, head):
            logprob = cross_entropy(hidden, head, targets, implementation=implementation)
            return -jnp.sum(jnp.where(weight > 0, logprob, 0))

        return jax.grad(loss, (0, 1))(hidden, head)

    for invalid in (-1, 40, 2**31 - 1):
        changed = gradients(targets.at[13:].set(invalid))
        for a, b in zip(gradients(targets), changed, strict=True):
            np.testing.assert_array_equal(a, b)


def test_the_definition_agrees_with_torch():
    torch = pytest.importorskip("torch")
    hidden, head, targets = make_call(1, 30, 16, 50, jnp.float32)
    weight = np.random.RandomState(0).randint(0, 2, 30).astype(np.float32)

    def loss(hidden, head):
        logprob = cross_entropy(hidden, head, targets, implementation="reference")
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
    head = jnp.eye(16) * 1e4
    hidden = jnp.concatenate([jnp.eye(16), -jnp.eye(16)])
    targets = jnp.tile(jnp.arange(16), 2)
    logprob, *gradients = outputs(implementation, (hidden, head, targets), chunk=5)
    assert np.isfinite(logprob).all() and (logprob <= 0).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    np.testing.assert_allclose(logprob[:16], 0, atol=1e-6)


@pytest.mark.parametrize("implementation", FAST)
def test_a_token_without_weight_sends_no_gradient(implementation):
    hidden, head, targets = make_call(2, 12, 16, 20, jnp.float32)
    weight = (jnp.arange(12) < 7).astype(jnp.float32)

    def loss(hidden, targets):
        logprob = cross_entropy(hidden, head, targets, chunk=5, implementation=implementation)
        return -(logprob * weight).sum()

    grad = jax.jit(jax.grad(loss))
    gradient = grad(hidden, targets)
    assert (gradient[7:] == 0).all() and (gradient[:7] != 0).any(1).all()
    other = grad(hidden, targets.at[7:].set(0))
    np.testing.assert_array_equal(gradient, other)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_sum_exp_is_differentiable_for_a_z_loss(implementation, dtype):
    hidden, head, targets = make_call(3, 9, 16, 15, dtype)

    def with_z_loss(hidden, head):
        logprob, lse = cross_entropy(
            hidden, head, targets, return_lse=True, implementation=implementation
        )
        return (0.1 * lse**2 - logprob).sum()

    def plain(hidden, head):
        logits = jnp.einsum(
            "td,vd->tv", hidden, head, precision="highest", preferred_element_type=jnp.float32
        )
        lse = jax.nn.logsumexp(logits, axis=1)
        return (0.1 * lse**2 - jax.nn.log_softmax(logits)[jnp.arange(9), targets]).sum()

    loss, mine = jax.jit(jax.value_and_grad(with_z_loss, (0, 1)))(hidden, head)
    expected, theirs = jax.value_and_grad(plain, (0, 1))(hidden, head)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    for a, b in zip(mine, theirs, strict=True):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=0, atol=TOLERANCE[dtype] * np.abs(b).max())


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


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
@pytest.mark.parametrize(
    ("tokens", "vocabulary", "kernels"),
    # The forward pass, and the backward pass at once or in a loop with words left over.
    [(4096, 262_272, 3), (4096, 1000, 2), (100, 1024, 2), (100, 1000, 2)],
)
def test_lowers_for_a_gpu_without_logits_of_all_words(
    platform, tokens, vocabulary, kernels, monkeypatch
):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    shape = jax.ShapeDtypeStruct
    hidden, head = (shape((n, 2048), jnp.bfloat16) for n in (tokens, vocabulary))
    grad = jax.grad(lambda *args: cross_entropy(*args).sum(), (0, 1))
    with dispatch.compiling_for(platform):
        traced = jax.jit(grad).trace(hidden, head, shape((tokens,), jnp.int32))
        text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert text.count("gpu$xla.gpu.triton") == kernels
    assert "4096x262272" not in text


def test_says_what_the_kernel_lacks():
    args, _ = example.draw(0, jnp.float16)
    with pytest.raises(ValueError, match="both bfloat16 or both float32, not float16"):
        cross_entropy(*args, implementation="triton")
    shape = jax.ShapeDtypeStruct
    ids, odd = shape((4,), jnp.int32), shape((4, 40), jnp.float32)
    assert "multiple of 16, not 40" in (triton.supports(odd, odd, ids) or "")
    wide, narrow = shape((4, 32), jnp.float32), shape((4, 32), jnp.bfloat16)
    assert "not bfloat16, float32" in (triton.supports(wide, narrow, ids) or "")
    assert "one token" in (triton.supports(shape((0, 32), jnp.float32), wide, ids) or "")
    assert triton.supports(wide, wide, ids) is None


def test_example_runs():
    args, kwargs = example.draw(jax.random.key(0), jnp.bfloat16)
    assert cross_entropy(*args, **kwargs).dtype == jnp.float32


def test_unknown_implementation_is_named():
    args, _ = example.draw(jax.random.key(0))
    with pytest.raises(ValueError, match="'cuda'.*auto, triton, xla, reference"):
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
