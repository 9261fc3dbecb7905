"""`skip: passthrough` against mlx-vlm's implementation, which gives a skipped token its own normed
input times its probability."""

from __future__ import annotations

import importlib
import importlib.machinery
import pathlib
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import oracles
from zaya_jax.hf.layout import to_hf
from zaya_jax.model.forms import addresses
from zaya_jax.model.functional import bias_declarations, declarations, merge

mx = pytest.importorskip("mlx.core")


def language_module():
    """mlx-vlm's ZAYA file without the package's imports, which want a whole application."""
    found = importlib.machinery.PathFinder.find_spec("mlx_vlm")
    if found is None:
        pytest.skip("mlx-vlm is not installed (requirements-oracles.txt)")
    root = pathlib.Path(found.submodule_search_locations[0])
    for name in ("mlx_vlm", "mlx_vlm.models", "mlx_vlm.models.zaya1_vl"):
        package = types.ModuleType(name)
        package.__path__ = [str(root.joinpath(*name.split(".")[1:]))]
        sys.modules.setdefault(name, package)
    return importlib.import_module("mlx_vlm.models.zaya1_vl.language")


RENAMES = (
    ("self_attn.qkv_proj.q_proj", "attn.self_attn.qkv.linear_q"),
    ("self_attn.qkv_proj.k_proj", "attn.self_attn.qkv.linear_k"),
    ("self_attn.qkv_proj.v_proj_current", "attn.self_attn.qkv.val_proj1"),
    ("self_attn.qkv_proj.v_proj_delayed", "attn.self_attn.qkv.val_proj2"),
    ("self_attn.qkv_proj.conv_qk_depthwise", "attn.self_attn.qkv.conv_qk.0"),
    ("self_attn.qkv_proj.conv_qk_grouped", "attn.self_attn.qkv.conv_qk.1"),
    ("self_attn.qk_norm.temp", "attn.self_attn.qkv.temp"),
    ("self_attn.o_proj", "attn.self_attn.o_proj"),
    ("input_layernorm", "attn.input_norm"),
    ("post_attention_layernorm", "mlp.input_norm"),
    ("mlp.gate.down_proj", "mlp.zaya_block.router.down_proj"),
    ("mlp.gate.router_mlp.norm", "mlp.zaya_block.router.rmsnorm_eda"),
    ("mlp.gate.router_mlp.fc1", "mlp.zaya_block.router.router_mlp.0"),
    ("mlp.gate.router_mlp.fc2", "mlp.zaya_block.router.router_mlp.2"),
    ("mlp.gate.router_mlp.out_proj", "mlp.zaya_block.router.router_mlp.4"),
    ("mlp.gate.router_states_scale", "mlp.zaya_block.router.router_states_scale"),
    ("mlp.gate.balancing_biases", "mlp.zaya_block.router.balancing_biases"),
    ("mlp.experts.gate_up_proj", "mlp.zaya_block.experts.linear_fc1.weight"),
    ("mlp.experts.down_proj", "mlp.zaya_block.experts.linear_fc2.weight"),
    ("post_attention_residual_scale", "mlp.res_scale"),
)


def mlx_name(name: str, layers: int) -> str:
    """mlx-vlm scales the residuals at the start of the next sub-layer, so their names shift."""
    if name.startswith("model.input_hidden_states"):
        return name.replace("model.input_", "model.layers.0.attn.res_scale.")
    if name == "model.norm.weight":
        return "model.final_norm.weight"
    parts = name.split(".")
    if parts[1] != "layers":
        return name
    index, rest = int(parts[2]), ".".join(parts[3:])
    if rest.startswith("post_mlp_residual_scale"):
        rest = rest.removeprefix("post_mlp_residual_scale")
        if index == layers - 1:
            return f"model.res_scale{rest}"
        return f"model.layers.{index + 1}.attn.res_scale{rest}"
    for ours, theirs in RENAMES:
        if rest == ours or rest.startswith(ours + "."):
            return f"model.layers.{index}.{theirs}{rest.removeprefix(ours)}"
    raise KeyError(name)


def test_passthrough_agrees_with_mlx_vlm():
    language = language_module()
    model = oracles.tiny_model(layers=3, skip="passthrough")
    params, biases = oracles.from_torch(model, oracles.torch_model(model, 2))
    a = model.attention
    config = language.TextConfig(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        ffn_hidden_size=2 * model.expert_width,
        num_hidden_layers=model.num_layers,
        num_experts=model.router.experts,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        num_query_groups=a.kv_heads,
        head_dim=a.head_dim,
        rope_theta=a.rope_theta,
        zaya_mlp_expansion=model.router.width,
        vision_lora=False,
    )
    peer = language.LanguageModel(config)
    weights = []
    for found, values in ((declarations(model), params), (bias_declarations(model), biases)):
        for name, place in addresses(found).items():
            value = to_hf(np.asarray(values[place.path]), place.declaration.layout)
            if "conv_qk" in name and value.ndim == 3:
                value = value.transpose(0, 2, 1)
            value = mx.array(np.ascontiguousarray(value))
            weights.append((mlx_name(name, model.num_layers), value))
    peer.load_weights(weights, strict=True)

    ids = np.random.default_rng(4).integers(3, 97, (2, 29))
    expected = np.asarray(peer(mx.array(ids)).logits)

    @jax.jit
    def forward(ids):
        decoder = merge(model, params, biases)
        out = decoder(ids)
        return decoder.logits(out.hidden), out.stats.index

    logits, index = forward(jnp.asarray(ids))
    skipped = np.asarray(index) == model.router.experts
    assert 0.05 < skipped.mean() < 0.95, "the draw must skip some tokens and route others"
    assert np.abs(logits - expected).max() < 1e-5 * np.abs(expected).max()
