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
        dict(remat="dots"),
    ],
    ids=str,
)
def test_every_variation_point_trains(kind):
    """Loss and gradients are finite, and every expert and parameter of the variant is reached."""
    model = tiny_model(layers=2, form="scan", skip=kind.get("skip", "zero"))
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

    @jax.jit
    def run(params):
        def loss(params):
            decoder = merge(model, params, biases)
            out = decoder(ids)
            return -jax.nn.log_softmax(decoder.logits(out.hidden))[..., 5].mean(), out.stats

        return jax.value_and_grad(loss, has_aux=True)(params)

    (loss, stats), gradients = run(params)
    assert np.isfinite(loss)
    assert (np.asarray(stats.counts).sum(-1) == ids.size * model.router.top_k).all()
    silent = [path for path, g in gradients.items() if not np.abs(g).max() > 0]
    # A single visit of one expert may leave others without gradient, no other parameter may.
    assert not [p for p in silent if "router" not in p and "state_scale" not in p], silent
    assert all(np.isfinite(g).all() for g in gradients.values())
