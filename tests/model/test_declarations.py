"""Counts and declarations: what export, optimizers and sharding read."""

from __future__ import annotations

import dataclasses
import math

import jax
import numpy as np
import pytest

from tests.oracles import tiny_model
from zaya_jax.config import Model
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


@pytest.mark.parametrize(
    "kind",
    [
        dict(attention="gqa"),
        dict(router="linear"),
        dict(router="mlp"),
        dict(top_k=2),
        dict(skip="none"),
        dict(residual_scaling=False),
        dict(remat="full"),
        pytest.param(dict(remat="dots"), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_every_variation_point_trains(kind):
    """Loss and gradients are finite, and every parameter of the variant is reached; remat changes
    neither."""
    model = tiny_model(layers=3, form="scan", skip=kind.get("skip", "zero"))
    model = dataclasses.replace(
        model,
        attention=dataclasses.replace(model.attention, kind=kind.get("attention", "cca")),
        router=dataclasses.replace(
            model.router, kind=kind.get("router", "mlp_eda"), top_k=kind.get("top_k", 1)
        ),
        residual_scaling=kind.get("residual_scaling", True),
        remat=kind.get("remat", "none"),
    )
    params, biases = init(model, jax.random.key(0))
    ids = np.random.default_rng(0).integers(3, 97, (2, 12))

    def run(model):
        def loss(params):
            decoder = merge(model, params, biases)
            out = decoder(ids)
            return -jax.nn.log_softmax(decoder.logits(out.hidden))[..., 5].mean(), out.stats

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    (loss, stats), gradients = run(model)
    assert np.isfinite(loss)
    assert (np.asarray(stats.counts).sum(-1) == ids.size * model.router.top_k).all()
    assert not [path for path, g in gradients.items() if not np.abs(g).max() > 0]
    assert all(np.isfinite(g).all() for g in gradients.values())
    if model.remat != "none":
        (plain, _), expected = run(dataclasses.replace(model, remat="none"))
        np.testing.assert_allclose(loss, plain, rtol=1e-6)
        for path, g in expected.items():
            np.testing.assert_allclose(gradients[path], g, atol=1e-6 + 1e-4 * np.abs(g).max())


def test_one_logical_axis_has_one_size():
    """Sharding maps an axis by its name: two sizes under one name would shard by accident."""
    for router in ("mlp_eda", "mlp", "linear"):
        for attention in ("cca", "gqa"):
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
