"""Adapters: where they go, that they start from the base, and that both ways of use agree."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax import config, lora
from zaya_jax.model import forms, functional

ALL = config.Lora(rank=3, alpha=6.0, targets=("q", "k", "v", "o", "experts"))


def small(layers: str = "scan", **fields) -> config.Model:
    return config.Model(
        **{
            "vocab_size": 50, "hidden_size": 16, "num_layers": 3, "expert_width": 12,
            "context_length": 32, "eos_id": 1,
            "attention": config.Attention(heads=4, kv_heads=2, head_dim=8),
            "router": config.Router(experts=3, width=8), "layers": layers,
        }
        | fields
    )  # fmt: skip


@pytest.fixture(scope="module")
def drawn():
    """A scanned model's weights and adapters whose B is not zero any more."""
    model = small()
    params, biases = functional.init(model, jax.random.key(0))
    adapters = lora.init(model, ALL, jax.random.key(1))
    keys = jax.random.split(jax.random.key(2), len(adapters))
    adapters = {
        path: 0.1 * jax.random.normal(key, value.shape) if path.endswith(lora.B) else value
        for key, (path, value) in zip(keys, adapters.items(), strict=True)
    }
    return model, params, biases, adapters


@pytest.mark.parametrize(
    ("names", "ends"),
    [
        (("q",), {"attention.q"}),
        (("v",), {"attention.v_current", "attention.v_delayed"}),
        (("k", "o"), {"attention.k", "attention.output"}),
        (("experts",), {"experts.gate_up", "experts.down"}),
    ],
)
def test_targets_are_the_named_projections_of_every_layer(names, ends):
    model = small("unroll")
    found = lora.targets(model, config.Lora(rank=2, targets=names))
    assert set(found) == {f"layers.{i}.{end}" for i in range(3) for end in ends}


def test_plain_gqa_has_one_value_projection():
    model = small("unroll", attention=config.Attention("gqa", heads=4, kv_heads=2, head_dim=8))
    found = lora.targets(model, config.Lora(rank=2, targets=("v",)))
    assert set(found) == {f"layers.{i}.attention.v" for i in range(3)}


def test_the_latent_of_mla_belongs_to_keys_and_to_values():
    attention = config.Attention("mla", heads=4, head_dim=8, kv_rank=6, q_rank=5)
    model = small("unroll", attention=attention)
    for target, names in {
        "q": {"q_down", "q_up"},
        "k": {"kv_down", "k_up", "k_rope"},
        "v": {"kv_down", "v_up"},
        "o": {"output"},
    }.items():
        found = lora.targets(model, config.Lora(rank=2, targets=(target,)))
        assert set(found) == {f"layers.{i}.attention.{name}" for i in range(3) for name in names}


def test_declarations_keep_the_leading_axes():
    found = lora.declarations(small(param_dtype="bfloat16"), ALL)
    a, b = (found[f"stacks.0.experts.gate_up{end}"] for end in (lora.A, lora.B))
    assert (a.shape, a.axes) == ((2, 3, 16, 3), ("layers", "experts", "embed", "rank"))
    assert (b.shape, b.axes) == ((2, 3, 3, 24), ("layers", "experts", "rank", "expert_mlp"))
    assert {d.dtype.name for d in found.values()} == {"float32"}
    assert {d.group for d in found.values()} == {"matrix"}


def test_training_starts_from_the_base(drawn):
    model, params, _, _ = drawn
    first = lora.init(model, ALL, jax.random.key(1))
    assert {p: v.shape for p, v in first.items()} == {
        p: d.shape for p, d in lora.declarations(model, ALL).items()
    }
    merged = lora.merge(model, ALL, params, first)
    assert all((merged[path] == params[path]).all() for path in params)
    down = np.asarray(first["layers.0.experts.down.lora_a"])  # 12 inputs
    assert 0.9 * 12**-0.5 < np.abs(down).max() <= 12**-0.5


def test_both_forms_of_the_layers_draw_the_same():
    scanned, unrolled = (
        {
            d.full_name(layer): value[row] if stack else value
            for path, value in lora.init(model, ALL, jax.random.key(1)).items()
            for d in [lora.declarations(model, ALL)[path]]
            for stack in [isinstance(d.layers, tuple)]
            for row, layer in enumerate(d.layers if stack else (d.layers,))
        }
        for model in (small("scan"), small("unroll"))
    )
    assert scanned.keys() == unrolled.keys() and len(scanned) == 3 * 7 * 2
    assert all((scanned[name] == unrolled[name]).all() for name in scanned)


def test_merge_adds_the_scaled_product_to_the_targets_only(drawn):
    model, params, _, adapters = drawn
    merged = lora.merge(model, ALL, params, adapters)
    moved = {path for path in params if (merged[path] != params[path]).any()}
    assert moved == set(lora.targets(model, ALL))
    a, b = (np.asarray(adapters[f"stacks.0.experts.down.lora_{x}"], np.float64) for x in "ab")
    expected = np.asarray(params["stacks.0.experts.down"]) + 2.0 * np.einsum(
        "leir,lero->leio", a, b
    )
    np.testing.assert_allclose(merged["stacks.0.experts.down"], expected, rtol=1e-5, atol=1e-7)


def test_a_small_change_survives_a_bfloat16_base_as_far_as_it_can():
    model = small(param_dtype="bfloat16")
    params, _ = functional.init(model, jax.random.key(0))
    adapters = lora.init(model, ALL, jax.random.key(1))
    path = "layers.0.attention.q"
    adapters[path + lora.B] = jnp.full_like(adapters[path + lora.B], 1e-3)
    merged = lora.merge(model, ALL, params, adapters)[path]
    exact = params[path].astype(jnp.float32) + 2 * adapters[path + lora.A] @ adapters[path + lora.B]
    assert merged.dtype == jnp.bfloat16 and (merged == exact.astype(jnp.bfloat16)).all()


@pytest.mark.parametrize(
    ("layers", "remat"),
    [("scan", "full"), pytest.param("unroll", "none", marks=pytest.mark.slow)],
)
def test_attached_and_merged_adapters_compute_the_same(drawn, layers, remat):
    model, params, biases, adapters = drawn
    if layers == "unroll":
        merged = lora.merge(model, ALL, params, adapters)
        model, merged, biases = forms.convert(model, merged, biases, "unroll")
        params, _ = functional.init(model, jax.random.key(0))
        adapters = lora.init(model, ALL, jax.random.key(1))
        adapters = {p: v + 0.05 if p.endswith(lora.B) else v for p, v in adapters.items()}
    model = dataclasses.replace(model, remat=remat)
    tokens = jax.random.randint(jax.random.key(3), (2, 16), 0, 50)

    def loss(adapters, use):
        network = functional.merge(model, use(model, ALL, params, adapters), biases)
        return jnp.sum(jnp.sin(network(tokens).hidden))

    (a, grads_a), (m, grads_m) = (
        jax.jit(jax.value_and_grad(lambda x, use=use: loss(x, use)))(adapters)
        for use in (lora.attach, lora.merge)
    )
    np.testing.assert_allclose(a, m, rtol=1e-6)
    for path in adapters:
        scale = np.abs(grads_m[path]).max()
        assert scale > 0, path
        np.testing.assert_allclose(grads_a[path], grads_m[path], atol=1e-5 * scale, err_msg=path)


def test_a_missing_adapter_is_named(drawn):
    model, params, _, adapters = drawn
    path = "layers.0.attention.q.lora_a"
    with pytest.raises(KeyError, match=path):
        lora.merge(model, ALL, params, {k: v for k, v in adapters.items() if k != path})


def test_what_is_trained():
    full = config.Experiment(model=small())
    assert lora.trained(full) == functional.declarations(full.model)
    adapted = dataclasses.replace(full, lora=config.Lora(rank=2))
    assert lora.trained(adapted) == lora.declarations(full.model, adapted.lora)
    assert len(lora.trained(adapted)) == 2 * 5 * 2  # A and B, five projections, a layer and a stack


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "remat", "most", "least"),
    [
        (ALL.targets[:4], "full", 2, 2.5),
        (ALL.targets, "full", 4, 60),
        (ALL.targets, "none", 45, 60),
    ],
)
def test_an_attached_adapter_costs_no_second_set_of_weights(names, remat, most, least, capsys):
    """Compiled, not run: the gradient of the 8B's adapters for 1024 tokens, in float32; gigabytes
    of temporaries, `most` where adapters are attached and at `least` where they are merged first.
    """
    model, section = config.Model(remat=remat), config.Lora(rank=16, targets=names)
    params, biases, adapters = (
        {path: jax.ShapeDtypeStruct(d.shape, d.dtype) for path, d in found.items()}
        for found in (
            functional.declarations(model),
            functional.bias_declarations(model),
            lora.declarations(model, section),
        )
    )
    tokens = jax.ShapeDtypeStruct((1, 1024), jnp.int32)

    def temporaries(use) -> float:
        def loss(adapters, params, biases, tokens):
            adapted = use(model, section, params, adapters)
            return jnp.sum(functional.merge(model, adapted, biases)(tokens).hidden)

        program = jax.jit(jax.grad(loss)).lower(adapters, params, biases, tokens).compile()
        return program.memory_analysis().temp_size_in_bytes / 1e9

    attached, merged = temporaries(lora.attach), temporaries(lora.merge)
    with capsys.disabled():
        told = f"{', '.join(names)}, remat {remat}"
        print(f"\nLoRA of the 8B on {told}: {attached:.1f} GB attached, {merged:.1f} merged first")
    assert attached < most < least < merged
