"""Attention kinds by themselves, with each part of CCA on and off: oracles, packing, decoding."""

from __future__ import annotations

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from tests.oracles import tiny_model, torch
from zaya_jax.config import Ops
from zaya_jax.model.attention import Tokens, kind_of
from zaya_jax.model.decoder import positions_of
from zaya_jax.model.parameter import Declare

# The definitions compile faster than the loops of the fast implementations, which have tests of
# their own; the mix of CCA is the fast one, for the state that it takes and leaves is what counts.
OPS = Ops(attention="reference", decode_attention="reference", cca_mix="xla")
SIZES = dict(heads=(4, 2), head_dim=8, hidden=24, dtype="float64")

KINDS = {
    f"cca {convolutions} mean={mean} shift={shift}": dict(
        conv_kernels=convolutions, qk_mean=mean, value_shift=shift
    )
    for convolutions, mean, shift in itertools.product(
        [(), (3,), (3, 2)], [True, False], [True, False]
    )
} | {
    "gqa": dict(kind="gqa"),
    "mha": dict(kind="mha"),
    "mla": dict(kind="mla", kv_rank=10),
    "mla with a latent of queries": dict(kind="mla", kv_rank=10, q_rank=14),
}


def section(window=None, **fields):
    """A model section with this attention; `window` makes its layers sliding."""
    model = tiny_model(**SIZES, pattern=("full",) if window is None else ("sliding",))
    attention = dataclasses.replace(model.attention, window=window, **fields)
    return dataclasses.replace(model, attention=attention, ops=OPS)


@functools.cache
def layer(model, seed=0):
    """A layer of the model's kind with every tensor spread out: its graph and state."""
    declare = Declare(jax.random.key(seed), jnp.dtype("float64"), 0)
    span = model.attention.pattern[0]
    graph, state = nnx.split(kind_of(model)(model, declare, span))
    random = np.random.default_rng(seed)

    def spread(value):
        fan_in = value.shape[-2] if value.ndim > 1 else 1
        start = 1.0 if value.ndim == 1 and np.asarray(value).any() else 0.0
        width = fan_in**-0.5 if value.ndim > 1 else 0.3
        return jnp.asarray(start + width * random.standard_normal(value.shape))

    return graph, jax.tree.map(spread, state)


def row_of(segment_ids, lengths=None):
    """`Tokens` for rows of these segments, 0 for padding."""
    segment_ids = jnp.asarray(segment_ids)
    positions = positions_of(segment_ids, segment_ids.shape)
    return Tokens(segment_ids, positions, segment_ids > 0, lengths)


# Between them, these have every part on and off beside every number of convolutions.
FIRST = ("cca () mean=True shift=True", "cca () mean=False shift=False",
         "cca (3,) mean=True shift=False", "cca (3,) mean=False shift=True",
         "cca (3, 2) mean=True shift=False", "cca (3, 2) mean=False shift=True")  # fmt: skip


@pytest.mark.parametrize(
    "kind",
    [
        pytest.param(kind, marks=[pytest.mark.slow] * ("cca" in kind and kind not in FIRST))
        for kind in KINDS
    ],
)
def test_a_document_is_attended_alike_alone_packed_padded_and_token_by_token(kind):
    """One of 3 tokens and one of 5: in a row of their own, in one row, behind left padding, and
    from a cache that was filled with prompts of unequal length."""
    window = 4 if kind in ("mla", "mha") else None
    segments = [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 1, 0, 0, 0],
                [1, 1, 1, 2, 2, 2, 2, 2], [0, 0, 0, 1, 1, 1, 1, 1]]  # fmt: skip
    with jax.enable_x64(True):
        model = section(window, **KINDS[kind])
        graph, state = layer(model)
        first, second = np.split(np.random.default_rng(1).standard_normal((8, 24)), [3])
        pad = np.full((5, 24), 7.0)
        rows = np.stack([
            np.concatenate(parts)
            for parts in ((first, pad), (second, pad[:3]), (first, second), (pad[:3], second))
        ])  # fmt: skip
        # Prompts of 1 and 3 tokens, then two single ones.
        prompts = row_of([[1, 0, 0], [1, 1, 1]], jnp.asarray([0, 0]))
        steps = np.stack([first[1:], second[3:]], axis=1)

        @jax.jit
        def run(state):
            block = nnx.merge(graph, state)

            def step(carry, x):
                cache, lengths = carry
                now = Tokens(None, lengths[:, None], None, lengths)
                out, cache = block(x[:, None], now, cache)
                return (cache, lengths + 1), out[:, 0]

            cache = block.empty_cache(model, 2, 6)
            prefilled, cache = block(jnp.asarray(rows[:2, :3]), prompts, cache)
            _, stepped = jax.lax.scan(step, (cache, jnp.asarray([1, 3])), jnp.asarray(steps))
            return block(jnp.asarray(rows), row_of(segments))[0], prefilled, stepped

        together, prefilled, stepped = map(np.asarray, run(state))
    alone = together[0, :3], together[1, :5]
    assert np.abs(alone[1]).max() > 0.1
    for found, expected in (
        (together[2], np.concatenate(alone)),
        (together[3, 3:], alone[1]),
        (np.concatenate([prefilled[0, :1], stepped[:, 0]]), alone[0]),
        (np.concatenate([prefilled[1], stepped[:, 1]]), alone[1]),
    ):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_cache_keeps_what_its_kind_needs_and_no_more():
    narrow = lambda **fields: dataclasses.replace(section(**fields), activation_dtype="float32")  # noqa: E731
    for convolutions, past in (((), 0), ((3,), 2), ((3, 2), 3)):
        for shift in (True, False):
            model = narrow(conv_kernels=convolutions, value_shift=shift)
            state = kind_of(model).empty_cache(model, 2, 7).state
            assert state.qk.shape == (2, past, 48)
            assert (state.v_delayed is None) is not shift
    shapes = {}
    for kind in ("gqa", "mha", "mla"):
        model = narrow(kind=kind, kv_rank=10)
        cache = kind_of(model).empty_cache(model, 2, 7)
        assert cache.state is None
        shapes[kind] = cache.k.shape, cache.v.shape
    assert shapes == {
        "gqa": ((2, 2, 7, 8), (2, 2, 7, 8)),
        "mha": ((2, 4, 7, 8), (2, 4, 7, 8)),
        "mla": ((2, 1, 7, 14), (2, 1, 7, 0)),  # a latent of 10 and a rotary key of 4
    }


def run_alone(model, x):
    graph, state = layer(model)
    tokens = Tokens(None, positions_of(None, x.shape[:2]), None)
    out = jax.jit(lambda state, x: nnx.merge(graph, state)(x, tokens)[0])(state, jnp.asarray(x))
    return nnx.merge(graph, state), np.asarray(out)


def as_torch(variable):
    """A weight [in, out] as torch has it."""
    return torch.tensor(np.asarray(variable[...]).T)


@pytest.mark.parametrize("q_rank", [0, 14])
def test_mla_is_that_of_deepseek_in_transformers(q_rank):
    deepseek = pytest.importorskip("transformers.models.deepseek_v3.modeling_deepseek_v3")
    model = section(kind="mla", kv_rank=10, q_rank=q_rank)
    a = model.attention
    theirs = deepseek.DeepseekV3Attention(
        deepseek.DeepseekV3Config(
            hidden_size=24,
            num_attention_heads=4,
            num_key_value_heads=4,
            q_lora_rank=q_rank or None,
            kv_lora_rank=10,
            qk_rope_head_dim=4,
            qk_nope_head_dim=4,
            v_head_dim=8,
            rope_interleave=False,
            rms_norm_eps=model.norm_eps,
            attn_implementation="eager",
        ),
        layer_idx=0,
    ).double()
    for norm in (theirs.q_a_layernorm, theirs.kv_a_layernorm):
        if norm is not None:  # its epsilon does not come from the config
            norm.variance_epsilon = model.norm_eps
    x = np.random.default_rng(2).standard_normal((2, 9, 24))
    with jax.enable_x64(True):
        ours, found = run_alone(model, x)
        up = torch.cat(
            [as_torch(w).reshape(4, -1, 10) for w in (ours.k_up, ours.v_up)], dim=1
        ).reshape(-1, 10)
        down = torch.cat([as_torch(ours.kv_down), as_torch(ours.k_rope)])
        weights = {
            "kv_a_proj_with_mqa": down,
            "kv_a_layernorm": as_torch(ours.kv_norm),
            "kv_b_proj": up,
            "o_proj": as_torch(ours.output),
        }
        if q_rank:
            weights |= {
                "q_a_proj": as_torch(ours.q_down),
                "q_a_layernorm": as_torch(ours.q_norm),
                "q_b_proj": as_torch(ours.q_up),
            }
        else:
            weights["q_proj"] = as_torch(ours.q)
    theirs.load_state_dict({f"{name}.weight": w for name, w in weights.items()}, strict=True)
    angles = torch.arange(9).double()[:, None] * a.rope_theta ** -(torch.arange(0, 4, 2) / 4.0)
    angles = torch.cat([angles, angles], -1)[None]
    mask = torch.full((9, 9), -torch.inf, dtype=torch.float64).triu(1)[None, None]
    with torch.no_grad(), widened(deepseek):
        expected = theirs(torch.tensor(x), (angles.cos(), angles.sin()), mask)[0].numpy()
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()


class widened:  # noqa: N801
    """Within it, the module's float32 islands (norms, softmax) are float64."""

    def __init__(self, module):
        self.patch = pytest.MonkeyPatch()
        self.module = module

    def __enter__(self):
        proxy = type("torch64", (), {**vars(torch), "float32": torch.float64})
        self.patch.setattr(self.module, "torch", proxy)
        softmax = torch.nn.functional.softmax
        wide = lambda x, dim=-1, dtype=None: softmax(x, dim=dim)  # noqa: E731
        self.patch.setattr(self.module.nn.functional, "softmax", wide)

    def __exit__(self, *_):
        self.patch.undo()


@pytest.mark.parametrize("kind", ["gqa", "mha"])
def test_grouped_and_full_heads_are_torchs_attention(kind):
    """Projections, QK norm and RoPE by hand; scores, softmax and values by torch."""
    model = section(kind=kind)
    x = np.random.default_rng(3).standard_normal((2, 7, 24))
    with jax.enable_x64(True):
        ours, found = run_alone(model, x)
        q, k, v = (torch.tensor(x) @ as_torch(w).T for w in (ours.q, ours.k, ours.v))
        out = as_torch(ours.output)
    assert k.shape[-1] == {"gqa": 2, "mha": 4}[kind] * 8
    angles = torch.arange(7).double()[:, None] * 5000.0 ** -(torch.arange(0, 4, 2) / 4.0)

    def prepare(y):
        y = y.reshape(2, 7, -1, 8).transpose(1, 2)
        y = y / y.square().mean(-1, keepdim=True).sqrt()
        turned = torch.view_as_complex(torch.stack([y[..., :2], y[..., 2:4]], -1).contiguous())
        turned = turned * torch.polar(torch.ones_like(angles), angles)
        return torch.cat([turned.real, turned.imag, y[..., 4:]], -1)

    attended = torch.nn.functional.scaled_dot_product_attention(
        prepare(q), prepare(k), v.reshape(2, 7, -1, 8).transpose(1, 2),
        is_causal=True, enable_gqa=True,
    )  # fmt: skip
    expected = (attended.transpose(1, 2).reshape(2, 7, -1) @ out.T).numpy()
    assert np.abs(found - expected).max() < 1e-9 * np.abs(expected).max()
