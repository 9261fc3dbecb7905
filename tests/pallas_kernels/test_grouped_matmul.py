"""Every implementation of the experts agrees with the definition, and that with transformers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from pallas_kernels import dispatch, interpret
from pallas_kernels.grouped_matmul import (
    IMPLEMENTATIONS,
    example,
    experts,
    layout,
    streaming,
    triton,
    xla,
)
from tests.pallas_kernels.agreement import widened

FAST = [name for name in IMPLEMENTATIONS if name != "reference"]
# Relative to the largest entry, or to 1, of the reference in float32 or better. float32: sums of up
# to 402 terms of order one (a weight's gradient over all assignments), in another order: 402
# roundings of 2^-24 are 2.4e-5 if all go one way, which they do not. bfloat16: most is rounded on
# the way to a gradient of `gate_up`: gate and up, the gradient of h, its product with the
# probability, that of z, and the result, 2^-9 each, where silu passes on 1.1 times what gate has:
# 6.1 of them (1.2e-2) bound what is wrong with one term. Errors of many terms average out, but the
# largest entry may be what remains of larger terms: 2.5 times as much.
TOLERANCE = {jnp.float64: 1e-10, jnp.float32: 2e-5, jnp.bfloat16: 3e-2}
# T and k that are drawn for: a pair a dtype, as each compiles. Tiles of 128 rows in bfloat16 (none
# of them full for some experts), of 64 in float32.
SIZES = {jnp.float64: (40, 2), jnp.float32: (201, 2), jnp.bfloat16: (301, 1)}


def most_exact(implementation):
    """The widest dtype of an implementation."""
    return jnp.float32 if implementation == "triton" else jnp.float64


def make_call(seed, index, dtype, hidden=48, width=80, num_experts=3):
    """Arguments of `experts` with the given choices; everything else random."""
    keys = jax.random.split(jax.random.key(seed), 4)
    tokens, choices = np.shape(index)
    return (
        jax.random.normal(keys[0], (tokens, hidden), dtype),
        jnp.asarray(index, jnp.int32),
        jax.random.uniform(keys[1], (tokens, choices), dtype),
        jax.random.normal(keys[2], (num_experts, hidden, 2 * width), dtype) * hidden**-0.5,
        jax.random.normal(keys[3], (num_experts, width, hidden), dtype) * width**-0.5,
    )


def cotangent_of(args):
    """A fixed random cotangent of the result."""
    return jax.random.normal(jax.random.key(7), args[0].shape, args[0].dtype)


@functools.partial(jax.jit, static_argnames="implementation")
def outputs(implementation, args, cotangent):
    """The result and the gradients of x, weight, gate_up, down."""
    x, index, weight, gate_up, down = args

    def call(x, weight, gate_up, down):
        return experts(x, index, weight, gate_up, down, implementation=implementation)

    y, pull = jax.vjp(call, x, weight, gate_up, down)
    return y, *pull(cotangent)


def assert_agrees(implementation, args):
    """With the reference evaluated in float32 at least."""
    dtype, call = args[0].dtype.type, (args, cotangent_of(args))
    names = ("y", "dx", "dweight", "dgate_up", "ddown")
    expected, got = outputs("reference", *widened(call)), outputs(implementation, *call)
    for name, a, b in zip(names, expected, got, strict=True):
        assert b.dtype == dtype and a.shape == b.shape, name
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        error = np.abs(a - b).max() / max(1.0, np.abs(a).max())
        assert error < TOLERANCE[dtype], f"{name}: relative error {error}"


@pytest.mark.parametrize(
    "implementation, dtype",
    [(i, d) for i in FAST for d in TOLERANCE if d != jnp.float64 or most_exact(i) == d],
)
@settings(max_examples=3, deadline=None, phases=(Phase.explicit, Phase.generate))
@given(data=st.data())
def test_agrees_with_the_reference_on_drawn_routings(implementation, dtype, data):
    tokens, choices = SIZES[dtype]
    low = data.draw(st.integers(-1, 2), "low")
    high = data.draw(st.integers(low, 3), "high")  # 3 is the skip class, -1 padding
    seed = data.draw(st.integers(0, 99), "seed")
    index = np.random.RandomState(seed).randint(low, high + 1, (tokens, choices))
    with jax.enable_x64(dtype == jnp.float64):
        assert_agrees(implementation, make_call(seed, index, dtype))


CROWDS = {
    "all to the first": np.full((200, 1), 0),
    "all to the last": np.full((200, 1), 2),
    "all skipped": np.full((200, 1), 3),
    "less than a tile": np.array([[0, 2], [3, 0], [0, -1]]),
    "few for each": np.arange(200)[:, None] % 41 - 19,
    "none for one, in order": np.repeat([0, 0, 0, 2, 2], 40)[:, None],
}


@pytest.mark.parametrize("implementation", FAST)
@pytest.mark.parametrize("index", CROWDS.values(), ids=CROWDS)
def test_is_exact_for_any_group_sizes(implementation, index):
    dtype = most_exact(implementation)
    with jax.enable_x64(dtype == jnp.float64):
        assert_agrees(implementation, make_call(0, index, dtype))


@pytest.mark.parametrize("tokens", [1, 6, 64])
def test_decode_shapes_read_weights_in_pieces(tokens, monkeypatch):
    monkeypatch.setattr(streaming, "PIECE_BYTES", 512)
    index = np.random.RandomState(tokens).randint(0, 4, (tokens, 1))
    with jax.enable_x64(True):  # no other test has 20 channels: this one compiles anew
        assert_agrees("xla", make_call(tokens, index, jnp.float64, hidden=20))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_skipped_token_contributes_nothing_whatever_it_holds(implementation):
    args = make_call(0, np.arange(200)[:, None] % 4, jnp.float32)
    skipped = args[1] == 3
    call = jax.jit(experts, static_argnames="implementation")
    clean = call(*args, implementation=implementation)
    assert (clean[skipped[:, 0]] == 0).all()
    if implementation == "reference":
        return  # the definition computes every token, so it would turn NaN * 0 into NaN
    poisoned = (jnp.where(skipped, jnp.nan, args[0]), *args[1:])
    np.testing.assert_array_equal(clean, call(*poisoned, implementation=implementation))
    gradients = outputs(implementation, poisoned, cotangent_of(poisoned))[3:]
    assert all(np.isfinite(g).all() for g in gradients)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_agrees_with_transformers(implementation):
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.zaya.modeling_zaya")
    configuration = pytest.importorskip("transformers.models.zaya.configuration_zaya")
    config = configuration.ZayaConfig(hidden_size=16, moe_intermediate_size=32, num_experts=3)
    theirs = modeling.ZayaExperts(config)
    x, index, weight, gate_up, down = make_call(
        3, np.random.RandomState(3).randint(0, 4, (200, 1)), jnp.float32, hidden=16, width=32
    )
    as_torch = lambda array: torch.from_numpy(np.array(array))  # noqa: E731
    theirs.gate_up_proj.data = as_torch(gate_up.swapaxes(1, 2)).contiguous()
    theirs.down_proj.data = as_torch(down.swapaxes(1, 2)).contiguous()
    torch_x, torch_weight = as_torch(x).requires_grad_(), as_torch(weight).requires_grad_()
    y = theirs(torch_x, as_torch(index).long(), torch_weight)
    cotangent = cotangent_of((x,))
    y.backward(as_torch(cotangent))
    expected = (
        y.detach(),
        torch_x.grad,
        torch_weight.grad,
        theirs.gate_up_proj.grad.swapaxes(1, 2),
        theirs.down_proj.grad.swapaxes(1, 2),
    )
    got = outputs(implementation, (x, index, weight, gate_up, down), cotangent)
    for a, b in zip(expected, got, strict=True):
        np.testing.assert_allclose(a.numpy(), b, rtol=1e-4, atol=2e-5)


def test_no_expert_table_is_copied_or_scattered_into():
    """In the compiled training step, only gathers move tokens and only dots write gradients."""
    index = np.random.RandomState(0).randint(0, 5, (300, 1))
    args = make_call(0, index, jnp.float32, hidden=32, width=24, num_experts=5)

    def loss(x, weight, gate_up, down):
        return experts(x, args[1], weight, gate_up, down, implementation="xla").sum()

    floats = (args[0], *args[2:])
    text = jax.jit(jax.grad(loss, (0, 1, 2, 3))).lower(*floats).compile().as_text()
    lines = text.splitlines()
    assert not [line for line in lines if " scatter(" in line]
    tables = ("f32[5,32,48]", "f32[5,24,32]")
    assert not [line for line in lines if " copy(" in line and any(t in line for t in tables)]


@pytest.mark.parametrize("tokens", [1, 16, 64, 65, 257, 600])
def test_the_portable_form_has_a_tile_for_every_row(tokens):
    """However tokens crowd; and uneven loads cost little padding, for a tile has a size of its own.
    Few tokens have one size of tile, so that no token's tile depends on where others go."""
    sizes = xla.tile_sizes(tokens)
    assert list(sizes) == sorted(set(sizes)) and (tokens > xla.FEW or len(sizes) == 1)
    for index in (np.full(tokens, 2), np.arange(tokens) % 2 * 4, np.arange(tokens) % 6):
        tiles = jax.jit(xla.cut, static_argnums=1)(jnp.asarray(index)[:, None], 5)
        loads = np.bincount(index, minlength=6)[:5]
        assert int(tiles.count) == (-(-loads // sizes[-1])).sum()
        _, first, stop = np.asarray(tiles.layout.tiles)[: int(tiles.count)].T
        computed = np.array(sizes)[np.searchsorted(sizes, np.minimum(stop - first, sizes[-1]))]
        assert (first + computed <= len(tiles.token)).all()
        if tokens > xla.FEW:
            assert computed.sum() - loads.sum() < 5 * 64
        asked = np.asarray(tiles.position)[index < 5]
        assert sorted(asked[:, 0]) == list(range(loads.sum()))
        assert (np.asarray(tiles.position)[index == 5] >= tokens).all()


@pytest.mark.parametrize("tokens, choices", [(1, 1), (5, 2), (65, 1), (300, 1), (200, 2)])
@pytest.mark.parametrize("rows", [1, 16, 64])
def test_every_assignment_is_in_one_tile_of_its_expert(tokens, choices, rows):
    """By counting and by sorting, and however tokens crowd."""
    lay_out = jax.jit(layout.lay_out, static_argnums=(1, 2))
    for index in (
        np.random.RandomState(tokens).randint(-1, 6, (tokens, choices)),
        np.full((tokens, choices), 4),
        np.full((tokens, choices), -1),
    ):
        order, tiles, runs = map(np.asarray, lay_out(jnp.asarray(index), 5, rows))
        assert tiles.shape[0] == layout.most_tiles(index.size, 5, rows)
        key = np.where((index >= 0) & (index < 5), index, 5).ravel()
        np.testing.assert_array_equal(order, np.argsort(key, kind="stable"))
        seen = []
        for number, (run, first, stop) in enumerate(tiles):
            if run == 6:
                continue
            own = range(first, min(first + rows, stop))
            assert len(own) and (key[order[own]] == run).all()
            seen += own
            if run < 5:
                start, end, padded = runs[run]
                assert stop == end and number * rows - padded == first - start
        assert seen == list(range(index.size))


@pytest.mark.kernel
@pytest.mark.parametrize(
    "dtype, tokens, choices",
    [(jnp.bfloat16, 1, 1), (jnp.bfloat16, 100, 1), (jnp.float32, 17, 3)],
)
def test_decoding_reads_the_chosen_experts_only(tokens, choices, dtype):
    index = np.random.RandomState(1).choice([-1, 0, 2, 4], (tokens, choices))
    x, index, weight, gate_up, down = args = make_call(1, index, dtype, num_experts=4)
    call = jax.jit(experts, static_argnames="implementation")
    expected = call(*widened(args), implementation="reference")
    asked = np.isin(np.arange(4), index)[:, None, None]
    gate_up, down = (jnp.where(asked, table, jnp.nan) for table in (gate_up, down))
    y = call(x, index, weight, gate_up, down, implementation="triton")
    error = np.abs(np.asarray(y, np.float64) - np.asarray(expected, np.float64)).max()
    assert y.dtype == dtype and error < TOLERANCE[dtype] * max(1, np.abs(expected).max())


def test_says_what_the_kernels_lack():
    args = make_call(0, np.zeros((4, 1)), jnp.float32)
    assert triton.supports(*args) is None
    halves = [a.astype(jnp.float16) if a.dtype == jnp.float32 else a for a in args]
    with pytest.raises(ValueError, match="bfloat16 or float32, not x float16"):
        experts(*halves, implementation="triton")
    with pytest.raises(ValueError, match="multiples of 16, not 48 and 20"):
        experts(*make_call(0, np.zeros((4, 1)), jnp.float32, width=20), implementation="triton")
    with pytest.raises(ValueError, match="at least one token"):
        experts(*make_call(0, np.zeros((0, 1)), jnp.float32), implementation="triton")


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
@pytest.mark.parametrize("dtype, tokens", [("bfloat16", 300), ("float32", 8)])
def test_lowers_for_a_gpu_forward_and_backward(platform, dtype, tokens, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    x, index, *floats = make_call(0, np.zeros((tokens, 1)), jnp.dtype(dtype))

    def loss(x, *floats):
        return experts(x, index, *floats).astype(jnp.float32).sum()

    with dispatch.compiling_for(platform):
        step = jax.jit(lambda *args: jax.value_and_grad(loss, (0, 1, 2, 3))(*args))
        text = step.trace(x, *floats).lower(lowering_platforms=(platform,)).as_text()
    # Both weight gradients are launches of one kernel.
    assert text.count("gpu$xla.gpu.triton") == 6
    assert "scatter" not in text


@pytest.mark.parametrize("platform", ["rocm", "cuda"])
def test_decoding_is_two_launches_and_nothing_else(platform, monkeypatch):
    monkeypatch.delenv(interpret.VARIABLE, raising=False)
    args = make_call(0, np.zeros((8, 1)), jnp.bfloat16)
    with dispatch.compiling_for(platform):
        text = jax.jit(lambda *args: experts(*args)).trace(*args)
        text = text.lower(lowering_platforms=(platform,)).as_text()
    operations = {
        line.split("stablehlo.")[1].split(" ")[0]
        for line in text.splitlines()
        if "stablehlo." in line
    }
    assert text.count("gpu$xla.gpu.triton") == 2
    assert operations <= {"custom_call", "reshape"}, operations


def test_example_runs():
    args, kwargs = example.draw(jax.random.key(0), jnp.bfloat16)
    assert jax.jit(experts)(*args, **kwargs).dtype == jnp.bfloat16


def test_unknown_implementation_is_named():
    args, _ = example.draw(jax.random.key(0))
    with pytest.raises(ValueError, match="'cuda'.*auto, triton, xla, reference"):
        experts(*args, implementation="cuda")


@pytest.mark.parametrize(
    "change, message",
    [
        ({1: jnp.zeros((95, 1), jnp.int32)}, r"index \(95, 1\)"),
        ({0: jnp.zeros((96, 31))}, r"x \(96, 31\)"),
        ({4: jnp.zeros((5, 24, 32))}, r"down \(5, 24, 32\)"),
        ({0: jnp.zeros((2, 48, 32))}, r"x \(2, 48, 32\)"),
        ({1: jnp.zeros((96, 1))}, "integer, got float32"),
        ({0: jnp.zeros((96, 32), jnp.bfloat16)}, "share a dtype"),
    ],
)
def test_calls_that_do_not_fit_are_refused(change, message):
    args, _ = example.draw(jax.random.key(0))
    args = [change.get(i, value) for i, value in enumerate(args)]
    with pytest.raises(ValueError, match=message):
        experts(*args)
