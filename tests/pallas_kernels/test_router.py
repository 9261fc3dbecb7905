"""router: implementations against the definition, and what a user would miss if it broke."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import dispatch, interpret, special, tuned
from pallas_kernels.draws import Draws
from pallas_kernels.router import IMPLEMENTATIONS, Weights, example, reference, router, triton
from tests.pallas_kernels.agreement import assert_close, evaluate, widened

# Relative to the largest entry. float32: sums of at most 48 terms through five layers. bfloat16:
# each of five layers rounds its 2^-9 into the next, gradients pass them twice.
TOLERANCE = {"float32": 1e-5, "bfloat16": 4e-2}


def draw(seed: int, T: int, D: int, R: int, classes: int, dtype, state=True, live=True):
    draws = Draws(seed, jnp.dtype(dtype))
    weights = Weights(
        down=draws.normal((D, R), D**-0.5),
        down_bias=draws.normal((R,), 0.3),
        state_scale=draws.normal((R,)) if state else None,
        norm=draws.normal((R,), 0.3, mean=1),
        fc1=draws.normal((R, R), R**-0.5),
        fc1_bias=draws.normal((R,), 0.3),
        fc2=draws.normal((R, R), R**-0.5),
        fc2_bias=draws.normal((R,), 0.3),
        out=draws.normal((R, classes)),
    )
    biases = draws.normal((classes,), 0.1, dtype=jnp.float32)
    alive = draws.array(draws.numpy.random(T) < 0.7, jnp.bool_) if live else None
    previous = draws.normal((T, R)) if state else None
    options = dict(top_k=1, eps=1e-5, norm_dtype=jnp.float32, softmax_dtype=jnp.float32)
    return (draws.normal((T, D)), previous, weights, biases, alive), options


def lead(probabilities, biases):
    """[T] by how much a token's choice is ahead of the runner-up."""
    biased = np.sort(np.asarray(probabilities + biases, np.float64), axis=1)
    return biased[:, -1] - biased[:, -2] if biased.shape[1] > 1 else np.full(len(biased), np.inf)


def away_from_ties(args, options, tokens: int):
    """The first `tokens` tokens whose choice rounding cannot change: another choice would be
    another function, with other gradients."""
    x, state, weights, biases, live = args
    probabilities = jax.jit(lambda args: reference.router(*args, **options))(widened(args))[3]
    clear = np.flatnonzero(lead(probabilities, biases) > 2 * TOLERANCE[x.dtype.name])[:tokens]
    assert len(clear) == tokens
    x, state, live = (None if a is None else a[clear] for a in (x, state, live))
    return x, state, weights, biases, live


def check(args, options):
    """The kernel's values, decisions and gradients."""
    tolerance = TOLERANCE[args[0].dtype.name]
    found, grown = evaluate(IMPLEMENTATIONS["triton"], args, options)
    expected, expected_grown = evaluate(reference.router, widened(args), options)
    assert (lead(expected.probabilities, args[3]) > 2 * tolerance).all()
    assert found.weight.dtype == found.state.dtype == args[0].dtype
    assert_close(found, expected, tolerance, floor=1)
    assert_close(grown, expected_grown, tolerance, floor=1)


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("dtype", "T", "D", "R", "classes", "state", "live"),
    [
        ("float32", 37, 40, 32, 5, True, True),
        pytest.param("float32", 1, 16, 16, 17, False, False, marks=pytest.mark.slow),
        pytest.param("float32", 16, 33, 48, 1, True, False, marks=pytest.mark.slow),
        ("bfloat16", 21, 48, 32, 17, True, True),
    ],
)
def test_kernel_agrees_with_the_definition(dtype, T, D, R, classes, state, live):
    """Tokens that fill no tile, channels that fill no block, a width of several parts."""
    chosen = {"tokens": 16, "block": 16, "chunk": 16, "num_warps": 4, "num_stages": 1}
    suffix = "_float32" * (dtype == "float32")
    with (
        tuned.trying("router", f"forward{suffix}", chosen),
        tuned.trying("router", f"backward{suffix}", chosen),
    ):
        args, options = draw(1, 3 * T, D, R, classes, dtype, state, live)
        check(away_from_ties(args, options, T), options)


@pytest.mark.kernel
def test_a_norm_kept_in_float32_is_not_rounded():
    """Parameters of one axis are: 1 + 2^-8 would be 1 in bfloat16."""
    (x, state, weights, biases, live), options = draw(3, 16, 32, 32, 5, "bfloat16")

    def run(implementation, value):
        def of(norm):
            routing = IMPLEMENTATIONS[implementation](
                x, state, weights._replace(norm=norm), biases, live, **options
            )
            return jnp.sum(routing.log_normalizer), routing.log_normalizer

        norm = jnp.full((32,), value, jnp.float32)
        return jax.grad(of, has_aux=True)(norm)

    gradient, found = run("triton", 1 + 2**-8)
    wanted, expected = run("reference", 1 + 2**-8)
    assert gradient.dtype == jnp.float32
    np.testing.assert_allclose(found, expected, atol=2e-2)
    np.testing.assert_allclose(gradient, wanted, atol=4e-2 * np.abs(wanted).max())
    assert (np.asarray(found) != np.asarray(run("triton", 1.0)[1])).any()


@pytest.mark.kernel
def test_all_tokens_to_one_expert_are_counted_there():
    args, options = draw(0, 20, 16, 16, 4, "float32", live=False)
    biases = args[3].at[2].set(10.0)
    for name in IMPLEMENTATIONS:
        routing = router(*args[:3], biases, **options, implementation=name)
        assert (routing.index == 2).all()
        np.testing.assert_array_equal(routing.counts, [0, 0, 20, 0])


def test_bias_moves_the_choice_but_not_the_weight():
    args, options = example.draw(0, jnp.float32)
    x, state, weights, biases, _ = args
    plain = router(x, state, weights, biases, **options)
    pushed = router(x, state, weights, biases.at[3].set(10.0), **options)
    assert (pushed.index == 3).all() and not (plain.index == 3).all()
    np.testing.assert_array_equal(pushed.weight[:, 0], pushed.probabilities[:, 3])
    np.testing.assert_array_equal(pushed.probabilities, plain.probabilities)


@pytest.mark.parametrize("implementation", ["triton", "xla"])
def test_never_routes_nor_counts_padding(implementation):
    args, options = example.draw(0, jnp.float32)
    routing = router(*args, **options, implementation=implementation)
    live, classes = args[4], args[3].shape[0]
    assert (routing.index[~live] == classes).all() and (routing.index[live] < classes).all()
    assert routing.counts.sum() == live.sum()


def test_top_k_takes_distinct_classes_by_biased_probability():
    args, options = example.draw(2, jnp.float32)
    routing = router(*args, **{**options, "top_k": 3})
    biased = np.asarray(routing.probabilities + args[3])
    live = np.asarray(args[4])
    expected = np.argsort(-biased, axis=-1)[:, :3]
    np.testing.assert_array_equal(np.asarray(routing.index)[live], expected[live])


@pytest.mark.parametrize("depth", [0, 1, 2, 4])
def test_the_definition_follows_the_equations_at_every_depth(depth):
    (x, state, w, biases, _), options = example.draw(1, jnp.float32)
    layers = [(w.fc1, w.fc1_bias), (w.fc2, w.fc2_bias), (w.fc2, w.fc1_bias), (w.fc1, w.fc2_bias)]
    (fc1, fc1_bias), (fc2, fc2_bias) = ([*layers[:depth], (None, None), (None, None)])[:2]
    weights = w._replace(
        fc1=fc1, fc1_bias=fc1_bias, fc2=fc2, fc2_bias=fc2_bias,
        deeper=tuple(layers[2:depth]) or None,
    )  # fmt: skip
    found = router(x, state, weights, biases, **options)

    w = jax.tree.map(lambda a: np.asarray(a, np.float64), w)
    hidden = np.asarray(x, np.float64) @ w.down + w.down_bias + np.asarray(state) * w.state_scale
    hidden = hidden / np.sqrt((hidden**2).mean(-1, keepdims=True) + options["eps"]) * w.norm
    for matrix, bias in layers[:depth]:
        z = hidden @ np.asarray(matrix, np.float64) + np.asarray(bias)
        hidden = z * (1 + np.vectorize(math.erf)(z / 2**0.5)) / 2
    shares = np.exp(hidden @ w.out)
    shares /= shares.sum(-1, keepdims=True)
    np.testing.assert_allclose(found.probabilities, shares, rtol=1e-4, atol=1e-6)
    chosen = (shares + np.asarray(biases)).argmax(-1)
    np.testing.assert_array_equal(found.index[:, 0], chosen)


def test_says_what_the_kernel_lacks():
    args, options = example.draw(0, jnp.float32)
    assert triton.supports(*args, **options) is None
    linear = Weights(*(None,) * 8, out=jnp.zeros((args[0].shape[1], args[3].shape[0])))
    one = args[2]._replace(fc2=None, fc2_bias=None)
    three = args[2]._replace(deeper=((args[2].fc1, args[2].fc1_bias),))
    for changed, told in (
        ({"top_k": 2}, "top_k = 1, not 2"),
        ({"softmax_dtype": jnp.bfloat16}, "softmax and biases in float32, not bfloat16"),
        ({"weights": linear}, "not a linear one"),
        ({"weights": one}, "an MLP of 2 hidden layers, not 1"),
        ({"weights": three}, "an MLP of 2 hidden layers, not 3"),
        ({"x": args[0].astype(jnp.float16)}, "not float16"),
    ):
        names = dict(zip(("x", "state", "weights", "biases", "live"), args, strict=True))
        with pytest.raises(ValueError, match=told):
            router(**{**names, **options, **changed}, implementation="triton")


@pytest.mark.parametrize(
    ("path", "shape", "told"),
    [
        ("state", (3, 16), r"state must be \[6, 16\]; got \(3, 16\)"),
        ("live", (2,), r"live must be \[6\]; got \(2,\)"),
        ("biases", (4,), r"weights.out must be \[16, 4\]; got \(16, 5\)"),
        ("biases", (1, 5), r"want x \[T, D\], biases \[classes\]; got \(6, 24\), \(1, 5\)"),
        ("weights.down", (8, 16), r"weights.down must be \[24, 16\]; got \(8, 16\)"),
        ("weights.down_bias", (8,), r"weights.down_bias must be \[16\]; got \(8,\)"),
        ("weights.down_bias", None, r"weights.down wants weights.down_bias \[16\]; got None"),
        ("weights.state_scale", (1,), r"weights.state_scale must be \[16\]; got \(1,\)"),
        ("weights.norm", (8,), r"weights.norm must be \[16\]; got \(8,\)"),
        ("weights.norm", None, r"weights.down wants weights.norm \[16\]; got None"),
        ("weights.fc1", (16, 8), r"weights.fc1 must be \[16, 16\]; got \(16, 8\)"),
        ("weights.fc1_bias", (8,), r"bias of weights.fc1 must be \[16\]; got \(8,\)"),
        ("weights.fc2", (8, 16), r"weights.fc2 must be \[16, 16\]; got \(8, 16\)"),
        ("weights.fc2_bias", (1,), r"bias of weights.fc2 must be \[16\]; got \(1,\)"),
        ("weights.fc2_bias", None, "weights.fc2 has a bias, or both are None"),
        ("weights.out", (8, 5), r"weights.out must be \[16, 5\]; got \(8, 5\)"),
    ],
)
def test_refuses_widths_that_do_not_fit(path, shape, told):
    """The kernel would read other memory."""
    args, options = draw(0, 6, 24, 16, 5, "float32")
    call = dict(zip(("x", "state", "weights", "biases", "live"), args, strict=True))
    name, _, field = path.partition(".")
    new = None if shape is None else jnp.zeros(shape)
    call[name] = call[name]._replace(**{field: new}) if field else new
    with pytest.raises(ValueError, match=f"^router: .*{told}"):
        router(**call, **options)


def test_refuses_deeper_layers_that_do_not_fit():
    (x, state, weights, biases, live), options = draw(0, 6, 24, 16, 5, "float32")
    deeper = ((weights.fc1, weights.fc1_bias), (weights.fc1[:8], weights.fc1_bias))
    with pytest.raises(ValueError, match=r"weights.deeper\[1\] must be \[16, 16\]; got \(8, 16\)"):
        router(x, state, weights._replace(deeper=deeper), biases, live, **options)


def test_gelu_is_exact():
    """Beside torch's definition in float64, tails included; and its slope beside a difference."""
    x = np.linspace(-12, 12, 4001)
    with jax.enable_x64(True):
        exact = np.asarray(jax.nn.gelu(jnp.asarray(x, jnp.float64), approximate=False))
        slopes = np.asarray(
            jax.vmap(jax.grad(lambda v: jax.nn.gelu(v, approximate=False)))(
                jnp.asarray(x, jnp.float64)
            )
        )
    value, slope = special.gelu_and_slope(jnp.asarray(x, jnp.float32))
    np.testing.assert_allclose(value, exact, atol=1e-6, rtol=1e-6)
    np.testing.assert_allclose(slope, slopes, atol=1e-6)


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_lowers_for_a_gpu_forward_and_backward(platform, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    args, options = draw(0, 100, 64, 32, 17, "bfloat16")
    floats = [x for x in jax.tree.leaves(args) if jnp.issubdtype(x.dtype, jnp.floating)]
    assert len(floats) == len(jax.tree.leaves(args)) - 1

    def loss(x, state, weights):
        routing = router(x, state, weights, *args[3:], **options)
        return jnp.sum(routing.weight.astype(jnp.float32)) + jnp.sum(routing.probabilities)

    with dispatch.compiling_for(platform):
        step = jax.jit(lambda *a: jax.value_and_grad(loss, argnums=(0, 1, 2))(*a))
        text = step.trace(*args[:3]).lower(lowering_platforms=(platform,)).as_text()
    assert text.count("gpu$xla.gpu.triton") == 2
