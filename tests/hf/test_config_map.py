"""The three schemas of config.json."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from zaya_jax.config import Attention, Model, Router
from zaya_jax.errors import UserError
from zaya_jax.hf import config_map
from zaya_jax.hf.safetensors_io import CheckpointError

ZAYA1_8B = Model(layers="unroll")

NATIVE_8B = {
    "architectures": ["ZayaForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 2,
    "cca_time0": 2,
    "cca_time1": 2,
    "dtype": "bfloat16",
    "eos_token_id": 106,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "initializer_range": 0.02,
    "layer_types": ["hybrid"] * 40,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "model_type": "zaya",
    "moe_intermediate_size": 2048,
    "num_attention_heads": 8,
    "num_experts": 16,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 40,
    "num_key_value_heads": 2,
    "output_router_logits": False,
    "pad_token_id": 0,
    "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-5,
    "rope_parameters": {
        "hybrid": {"partial_rotary_factor": 0.5, "rope_theta": 5000000, "rope_type": "default"},
        "hybrid_sliding": {
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000.0,
            "rope_type": "default",
        },
        "rope_type": "default",  # stray, as published
    },
    "router_hidden_size": 256,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_cache": True,
    "vocab_size": 262272,
}

LEGACY_8B = {
    "activation_func": "swiglu",
    "add_bias_linear": False,
    "attention_bias": False,
    "cca": True,
    "eos_token_id": 106,
    "ffn_hidden_size": 4096,
    "gated_linear_unit": True,
    "hidden_size": 2048,
    "head_dim": 128,
    "kv_channels": 128,
    "lm_head_bias": False,
    "max_position_embeddings": 131072,
    "model_type": "zaya",
    "moe_router_topk": 1,
    "norm_epsilon": 1e-5,
    "normalization": "RMSNorm",
    "num_attention_heads": 8,
    "num_experts": 16,
    "num_hidden_layers": 80,
    "num_key_value_heads": 2,
    "num_query_groups": 2,
    "partial_rotary_factor": 0.5,
    "residual_in_fp32": True,
    "rope_scaling": False,
    "rope_theta": 5e6,
    "scale_residual_merge": True,
    "sliding_window": None,
    "vocab_size": 262272,
    "zaya_mlp_expansion": 256,
    "zaya_use_eda": True,
    "zaya_use_mod": True,
}

LISTS = {
    "model_type": "zaya",
    "hidden_size": 2048,
    "vocab_size": 262272,
    "num_hidden_layers": 120,  # disagrees with the lists, which win
    "zaya_layers": ["a", 16] * 40,
    "cca_num_q_heads": [8, 0] * 40,
    "num_query_groups_list": [2, 0] * 40,
    "ffn_hidden_size_list": [0, 4096] * 40,
    "zaya_mlp_expansion": [0, 256] * 40,
    "num_attention_heads": 16,
    "kv_channels": 128,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "rope_theta": 1e6,
    "max_position_embeddings": 32768,
    "rope_scaling": False,
    "residual_in_fp32": False,
    "partial_rotary_factor": 0.5,
    "norm_epsilon": 1e-5,
}


def test_the_published_configs_are_zaya1_8b():
    assert config_map.read(NATIVE_8B) == ZAYA1_8B
    assert config_map.read(LEGACY_8B) == ZAYA1_8B


def test_the_first_upload_counts_logical_heads():
    first = LEGACY_8B | {"num_attention_heads": 16, "cca_num_q_heads": 8}
    assert config_map.read(first).attention.heads == 8


def test_lists_of_november_2025():
    model = config_map.read(LISTS)
    assert model == dataclasses.replace(
        ZAYA1_8B,
        eos_id=1,
        context_length=32768,
        residual_in_fp32=False,
        attention=dataclasses.replace(ZAYA1_8B.attention, rope_theta=1e6),
    )


def test_lists_have_defaults_of_their_own():
    given = ("eos_token_id", "rope_theta", "max_position_embeddings", "residual_in_fp32")
    bare = {key: value for key, value in LISTS.items() if key not in given}
    assert config_map.read(bare) == config_map.read(LISTS)


def test_zaya1_74b_windows_in_both_schemas():
    native = NATIVE_8B | {"layer_types": ["hybrid", "hybrid_sliding"] * 20, "sliding_window": 4097}
    legacy = LEGACY_8B | {"swa_layers": [0, 0, 4096, 0] * 20, "swa_rotary_base": 1e4}
    assert config_map.read(native) == config_map.read(legacy)
    attention = config_map.read(native).attention
    assert (attention.pattern, attention.window) == (("full", "sliding"), 4097)


def test_an_irregular_pattern_is_kept_whole():
    types = ["hybrid"] * 39 + ["hybrid_sliding"]
    model = config_map.read(NATIVE_8B | {"layer_types": types, "sliding_window": 8})
    assert model.attention.pattern == ("full",) * 39 + ("sliding",)


def test_the_first_of_several_ends_is_taken():
    assert config_map.read(NATIVE_8B | {"eos_token_id": [7, 106]}).eos_id == 7


@st.composite
def models(draw):
    layers = draw(st.sampled_from([1, 2, 4, 6]))
    period = draw(st.sampled_from([p for p in (1, 2, 3) if layers % p == 0]))
    pattern = tuple(
        draw(st.lists(st.sampled_from(["full", "sliding"]), min_size=period, max_size=period))
    )
    if len(set(pattern)) == 1:
        pattern = pattern[:1]  # the shortest period is what comes back
    return Model(
        vocab_size=draw(st.integers(3, 500)),
        hidden_size=draw(st.integers(1, 64)),
        num_layers=layers,
        expert_width=draw(st.integers(1, 64)),
        context_length=draw(st.integers(1, 4096)),
        eos_id=1,
        residual_in_fp32=draw(st.booleans()),
        attention=Attention(
            heads=6,
            kv_heads=draw(st.sampled_from([1, 2, 3])),
            head_dim=draw(st.sampled_from([4, 8])),
            conv_kernels=tuple(draw(st.lists(st.integers(1, 4), min_size=2, max_size=2))),
            rope_fraction=draw(st.sampled_from([0.5, 1.0])),
            rope_theta=draw(st.floats(10, 1e7)),
            pattern=pattern,
            window=draw(st.integers(1, 9)) if "sliding" in pattern else None,
        ),
        router=Router(experts=draw(st.integers(1, 9)), width=draw(st.integers(1, 9))),
        layers="unroll",
    )


@given(models())
def test_written_configs_read_back(model):
    for layout in ("native", "legacy"):
        assert config_map.read(config_map.write(model, layout, "float32")) == model


@given(models())
def test_transformers_reads_native_configs(model):
    transformers = pytest.importorskip("transformers")
    ours = config_map.write(model, "native", "float32")
    theirs = transformers.ZayaConfig(**ours).to_dict()
    assert config_map.read(theirs) == dataclasses.replace(
        model, residual_in_fp32=theirs.get("residual_in_fp32", True)
    )


def test_legacy_configs_have_the_published_keys():
    written = config_map.write(ZAYA1_8B, "legacy", "bfloat16")
    assert {key: written.get(key) for key in LEGACY_8B} == LEGACY_8B


@pytest.mark.parametrize(
    ("base", "change", "words"),
    [
        (NATIVE_8B, {"attention_bias": True}, "attention_bias = True"),
        (NATIVE_8B, {"lm_head_bias": True}, "lm_head_bias = True"),
        (NATIVE_8B, {"tie_word_embeddings": False}, "tie_word_embeddings = False"),
        (NATIVE_8B, {"hidden_act": "gelu"}, "hidden_act = 'gelu'"),
        (NATIVE_8B, {"num_experts_per_tok": 2}, "num_experts_per_tok = 2"),
        (NATIVE_8B, {"layer_types": ["full_attention"] * 40}, "layer_types has full_attention"),
        (NATIVE_8B, {"layer_types": ["hybrid"] * 39}, "39 entries"),
        (NATIVE_8B, {"quantization_config": {"bits": 4}}, "quantization_config"),
        (NATIVE_8B, {"rope_parameters": {"hybrid_sliding": {}}}, "no entry 'hybrid'"),
        (
            NATIVE_8B,
            {"rope_parameters": {"hybrid": {"rope_type": "yarn"}}},
            "rope_parameters.hybrid.rope_type = 'yarn'",
        ),
        (NATIVE_8B, {"hidden_size": "2048"}, "model.hidden_size = '2048'"),
        (NATIVE_8B, {"num_attention_heads": 7}, "model.attention.heads = 7"),
        (LEGACY_8B, {"clamp_temp": True}, "clamp_temp = True"),
        (LEGACY_8B, {"rope_scaling": {"type": "yarn"}}, "rope_scaling"),
        (LEGACY_8B, {"zaya_use_eda": False}, "zaya_use_eda = False"),
        (NATIVE_8B, {"num_hidden_layers": 10**10, "layer_types": None}, "= 10000000000: expected"),
        (LEGACY_8B, {"num_hidden_layers": 10**10}, "= 10000000000: expected 1 to 10000"),
        (LEGACY_8B, {"num_hidden_layers": 80.0}, "num_hidden_layers = 80.0"),
        (LEGACY_8B, {"num_hidden_layers": 81}, "num_hidden_layers = 81"),
        (LEGACY_8B, {"swa_layers": [0]}, "swa_layers has 1 entries"),
        (LISTS, {"zaya_layers": ["a", 16, "a", 8] * 20}, "zaya_layers"),
        (LISTS, {"ffn_hidden_size_list": [0, 4096, 0, 2048] * 20}, "ffn_hidden_size_list"),
        (LISTS, {"cca_num_q_heads": [8, 0]}, "cca_num_q_heads"),
    ],
)
def test_what_cannot_be_expressed_is_refused_by_name(base, change, words):
    with pytest.raises(CheckpointError) as error:
        config_map.read(base | change, "x/config.json")
    assert words in str(error.value) and "x/config.json" in str(error.value)


def test_all_fields_are_refused_at_once():
    with pytest.raises(CheckpointError) as error:
        config_map.read(NATIVE_8B | {"attention_bias": True, "hidden_act": "gelu"})
    assert "attention_bias" in str(error.value) and "hidden_act" in str(error.value)
    with pytest.raises(CheckpointError, match="expected an object"):
        config_map.read([])


@pytest.mark.parametrize("layout", ["native", "legacy"])
def test_a_config_is_not_written_for_what_it_cannot_say(layout):
    attention = Attention(conv_kernels=(), qk_mean=False)
    model = Model(attention=attention, router=Router(depth=1))
    with pytest.raises(CheckpointError) as error:
        config_map.write(model, layout, "float32")
    for field in ("conv_kernels = ()", "qk_mean = False", "router.depth = 1"):
        assert f"model.{'attention.' * ('router' not in field)}{field}" in str(error.value)


def test_a_peer_is_not_built_for_what_it_cannot_compute():
    pytest.importorskip("torch")
    peer = pytest.importorskip("zaya_jax.bench.peer")
    with pytest.raises(UserError, match=r"model.attention.conv_kernels = \(2,\)"):
        peer.torch_model(Model(attention=Attention(conv_kernels=(2,))), seed=0)
