"""Counts and declarations: what export, optimizers and sharding read."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections import Counter

import jax
import numpy as np
import pytest

from tests.oracles import tiny_model
from zaya_jax.config import Model, check_model
from zaya_jax.config.kinds import ATTENTION_KINDS, ROUTER_KINDS
from zaya_jax.model.forms import convert
from zaya_jax.model.functional import (
    active_parameter_count,
    bias_declarations,
    declarations,
    init,
    merge,
    parameter_count,
)
from zaya_jax.model.parameter import GROUPS


@pytest.mark.parametrize("layers", ["unroll", "scan"])
def test_the_8b_has_the_published_counts(layers):
    model = Model(layers=layers)
    assert parameter_count(model) == 8_840_488_784
    assert sum(math.prod(d.shape) for d in bias_declarations(model).values()) == 680
    # 0.76B active as published; the tied embedding (0.54B) is not counted there.
    embedding = model.vocab_size * model.hidden_size
    assert abs(active_parameter_count(model) - embedding - 0.76e9) < 0.01e9


def test_every_parameter_declares_axes_and_a_group():
    for d in declarations(Model()).values():
        assert len(d.axes) == len(d.shape) and d.group in GROUPS, d


def test_initial_weights_do_not_depend_on_the_form_of_the_layers():
    model = tiny_model(layers=4, pattern=("full", "sliding"), window=3)
    unrolled, _ = init(model, jax.random.key(1))
    scanned, _ = init(dataclasses.replace(model, layers="scan"), jax.random.key(1))
    np.testing.assert_array_equal(
        scanned["stacks.1.experts.down"][0], unrolled["layers.3.experts.down"]
    )
    np.testing.assert_array_equal(scanned["layers.0.attention.q"], unrolled["layers.0.attention.q"])
    assert (np.asarray(unrolled["layers.0.attention.temperature"]) == 1).all()


# Half the time goes into making small programs fast.
UNHURRIED = {"xla_backend_optimization_level": 0}

# Each kind, and each part on and off; several at once, for every variant compiles a network.
VARIANTS = {
    "gqa, linear, no residual scaling": (
        dict(kind="gqa"), dict(kind="linear"), dict(residual_scaling=False)),
    "mha, mlp, top 2": (dict(kind="mha"), dict(kind="mlp", top_k=2), {}),
    "mla, depth 0, no skip": (dict(kind="mla", kv_rank=20), dict(depth=0, skip="none"), {}),
    "mla with q_rank, depth 1": (dict(kind="mla", kv_rank=20, q_rank=12), dict(depth=1), {}),
    "bare cca": (dict(conv_kernels=(), qk_mean=False, value_shift=False), {}, {}),
    "one convolution, depth 3": (dict(conv_kernels=(3,)), dict(depth=3), {}),
    "no q-k mean, no value shift, mlp": (
        dict(qk_mean=False, value_shift=False), dict(kind="mlp"), {}),
    "remat full": ({}, {}, dict(remat="full")),
    "remat dots": ({}, {}, dict(remat="dots")),
}  # fmt: skip


# What is in these is in another, or has an oracle in `test_attention_kinds.py`.
DEAR = (
    "remat dots",
    "mla with q_rank, depth 1",
    "no q-k mean, no value shift, mlp",
    "mha, mlp, top 2",
    "one convolution, depth 3",
    "bare cca",
)


def variant(name, **fields):
    """The tiny model with the fields of a variant."""
    attention, router, rest = VARIANTS[name]
    model = tiny_model(**fields)
    return dataclasses.replace(
        model,
        attention=dataclasses.replace(model.attention, **attention),
        router=dataclasses.replace(model.router, **router),
        **rest,
    )


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n in DEAR)) for n in VARIANTS]
)
def test_every_variation_point_trains(name):
    """Loss and gradients are finite, and every parameter of the variant is reached; neither remat
    nor the form of the layers changes them."""
    model = variant(name, layers=3, form="scan")
    assert not list(check_model(model))
    params, biases = init(model, jax.random.key(0))
    ids = np.random.default_rng(0).integers(3, 97, (2, 12))

    def loss(params, model, biases):
        decoder = merge(model, params, biases)
        out = decoder(ids)
        return -jax.nn.log_softmax(decoder.logits(out.hidden))[..., 5].mean(), out.stats

    jit = functools.partial(jax.jit, static_argnums=1, compiler_options=UNHURRIED)
    run = jit(jax.value_and_grad(loss, has_aux=True))
    (value, stats), gradients = run(params, model, biases)
    assert np.isfinite(value)
    assert (np.asarray(stats.counts).sum(-1) == ids.size * model.router.top_k).all()
    assert not [path for path, g in gradients.items() if not np.abs(g).max() > 0]
    assert all(np.isfinite(g).all() for g in gradients.values())
    if model.remat != "none":
        (plain, _), expected = run(params, dataclasses.replace(model, remat="none"), biases)
        np.testing.assert_allclose(value, plain, rtol=1e-6)
        for path, g in expected.items():
            np.testing.assert_allclose(gradients[path], g, atol=1e-6 + 1e-4 * np.abs(g).max())
        return
    unrolled, params, biases = convert(model, params, biases, "unroll")
    plain, other = jit(loss)(params, unrolled, biases)
    np.testing.assert_allclose(value, plain, rtol=1e-6)
    np.testing.assert_array_equal(stats.index, other.index)


def test_arms_of_a_comparison_start_from_equal_values():
    """In every parameter of one path and shape, whatever kinds and switches they differ in."""
    seen, shared = {}, Counter()
    for name in [*VARIANTS, None]:
        model = tiny_model(layers=2) if name is None else variant(name, layers=2)
        params, _ = init(model, jax.random.key(7))
        for path, value in params.items():
            first = seen.setdefault((path, value.shape), np.asarray(value))
            np.testing.assert_array_equal(first, value, err_msg=f"{name}: {path}")
            shared[path] += 1
    for path, arms in {
        "embedding": 10,
        "layers.1.experts.gate_up": 10,
        "layers.1.attention.output": 10,
        "layers.1.attention.q": 9,  # all but the one that makes queries of a latent
        "layers.1.attention.v_delayed": 6,  # cca, with the value shift and without
        "layers.1.attention.conv_depthwise": 5,
        "layers.1.router.down": 9,
        "layers.1.router.fc1": 8,
    }.items():
        assert shared[path] == arms, path


def test_one_logical_axis_has_one_size():
    """Sharding maps an axis by its name: two sizes under one name would shard by accident."""
    for router in ROUTER_KINDS:
        for attention in ATTENTION_KINDS:
            model = tiny_model(layers=2, hidden=44, width=36)
            model = dataclasses.replace(
                model,
                router=dataclasses.replace(model.router, kind=router),
                attention=dataclasses.replace(model.attention, kind=attention),
            )
            sizes: dict[str, set[int]] = {}
            for d in declarations(model).values():
                for axis, size in zip(d.axes, d.shape, strict=True):
                    if axis in ("embed", "router", "experts", "vocab"):
                        sizes.setdefault(axis, set()).add(size)
            experts = {model.router.experts, model.router.experts + 1}  # with the skip class
            assert sizes.pop("experts") <= experts
            assert all(len(found) == 1 for found in sizes.values()), sizes
