"""Names and shapes of both layouts, against the published counts and transformers itself."""

from __future__ import annotations

import dataclasses
import math

import pytest

from zaya_jax.config import Model
from zaya_jax.hf.names import JAX, LEGACY, NATIVE, detect, legacy_names, places
from zaya_jax.model.functional import parameter_count

ZAYA1_8B = Model()


def shapes(model, layout):
    return {n: p.file_shape for p in places(model, layout).values() for n in p.names}


def test_zaya1_8b_has_the_published_counts():
    native, legacy = shapes(ZAYA1_8B, NATIVE), shapes(ZAYA1_8B, LEGACY)
    assert (len(native), len(legacy)) == (1283, 2483)
    biases = sum(math.prod(s) for n, s in native.items() if n.endswith("balancing_biases"))
    assert biases == 680
    assert sum(map(math.prod, native.values())) - biases == 8_840_488_784
    assert sum(map(math.prod, legacy.values())) - biases == parameter_count(ZAYA1_8B)


def test_native_names_and_shapes_are_those_of_transformers():
    torch = pytest.importorskip("torch")
    modeling = pytest.importorskip("transformers.models.zaya.modeling_zaya")
    with torch.device("meta"):
        oracle = modeling.ZayaForCausalLM(modeling.ZayaConfig())
    theirs = {name: tuple(value.shape) for name, value in oracle.state_dict().items()}
    del theirs["lm_head.weight"]  # tied to the embedding, never stored
    assert shapes(ZAYA1_8B, NATIVE) == theirs


@pytest.mark.parametrize(
    ("native", "layer", "legacy"),
    [
        ("model.norm.weight", None, "model.final_norm.weight"),
        (
            "model.input_hidden_states_bias",
            None,
            "model.layers.0.res_scale.hidden_states_bias",
        ),
        ("input_layernorm.weight", 3, "model.layers.6.input_norm.weight"),
        ("post_attention_layernorm.weight", 3, "model.layers.7.input_norm.weight"),
        (
            "post_attention_residual_scale.residual_bias",
            3,
            "model.layers.7.res_scale.residual_bias",
        ),
        # Legacy scales where a layer begins, native where it ends.
        ("post_mlp_residual_scale.residual_scale", 3, "model.layers.8.res_scale.residual_scale"),
        ("post_mlp_residual_scale.residual_scale", 39, "model.res_scale.residual_scale"),
        ("self_attn.qk_norm.temp", 0, "model.layers.0.self_attn.qkv.temp"),
        (
            "mlp.gate.router_mlp.out_proj.weight",
            39,
            "model.layers.79.zaya_block.router.router_mlp.4.weight",
        ),
    ],
)
def test_legacy_names(native, layer, legacy):
    assert legacy_names(native, layer, layers=40, experts=16) == (legacy,)


def test_legacy_experts_have_a_tensor_each():
    names = legacy_names("mlp.experts.down_proj", 2, layers=40, experts=3)
    prefix = "model.layers.5.zaya_block.experts.local_experts"
    assert names == tuple(f"{prefix}.{e}.linear_fc2.weight" for e in range(3))


def test_the_first_layer_has_neither_residual_scale_nor_router_state():
    legacy = shapes(ZAYA1_8B, LEGACY)
    assert "model.layers.0.res_scale.residual_scale" not in legacy
    assert "model.layers.2.res_scale.residual_scale" in legacy
    assert "model.layers.1.zaya_block.router.router_states_scale" not in legacy


def test_layouts_are_told_by_names():
    assert detect(shapes(ZAYA1_8B, NATIVE)) == NATIVE
    assert detect(shapes(ZAYA1_8B, LEGACY)) == LEGACY
    # One foreign name does not change what a folder is.
    assert detect([*shapes(ZAYA1_8B, LEGACY), "model.layers.0.mlp.gate.x"]) == LEGACY
    assert detect(["model.layers.0.attn.self_attn.qkv.temp"]) == "vl"
    assert detect(["model.embed_tokens.weight", "lm_head.weight"]) is None


def test_one_expert_is_kept_apart_too(small):
    model = small()
    model = dataclasses.replace(model, router=dataclasses.replace(model.router, experts=1))
    assert shapes(model, LEGACY)[
        "model.layers.1.zaya_block.experts.local_experts.0.linear_fc2.weight"
    ] == (24, 20)
    assert places(model, JAX)["model.layers.0.mlp.experts.down_proj"].file_shape == (1, 20, 24)
