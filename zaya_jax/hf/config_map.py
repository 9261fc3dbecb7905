"""`config.json` of a Hugging Face folder <-> our model section.

Three schemas are read: `native` (transformers' ZayaConfig), `legacy` (scalars, 2L layers) and the
list-style one of November 2025 (one entry per legacy layer), which is flattened into `legacy`
first. The first two are written. Which one a config follows is told by its own keys, not by
`model_type`, which is "zaya" in all of them.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from zaya_jax import config as schema
from zaya_jax.config import Model
from zaya_jax.hf.names import LEGACY
from zaya_jax.hf.safetensors_io import CheckpointError

Config = Mapping[str, Any]
FULL, SLIDING = "hybrid", "hybrid_sliding"
MOST_LAYERS = 10_000  # lists with an entry a layer are made before the model section is checked
QUANTIZED = ("compressed-tensors", "mxfp4", "quark")  # whose experts `packed` may know
TRANSFORMERS_VERSION = "5.23.0"  # whose ZayaConfig this module follows

# Fields of the model section and the keys that mean exactly the same.
_SHARED = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "context_length": "max_position_embeddings",
    "init_std": "initializer_range",
    "attention.heads": "num_attention_heads",
    "attention.kv_heads": "num_key_value_heads",
    "attention.head_dim": "head_dim",
    "router.experts": "num_experts",
}
_NATIVE = {
    **_SHARED,
    "num_layers": "num_hidden_layers",
    "expert_width": "moe_intermediate_size",
    "norm_eps": "rms_norm_eps",
    "attention.window": "sliding_window",
    "router.width": "router_hidden_size",
}
_LEGACY = {
    **_SHARED,
    "norm_eps": "norm_epsilon",
    "attention.rope_theta": "rope_theta",
    "attention.window_rope_theta": "swa_rotary_base",
    "attention.rope_fraction": "partial_rotary_factor",
    "router.width": "zaya_mlp_expansion",
}

# Keys with a single value that the network here computes. Written as they stand; anything else is
# refused on reading.
_NATIVE_FIXED = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "lm_head_bias": False,
    "num_experts_per_tok": 1,
    "tie_word_embeddings": True,
}
_LEGACY_FIXED = {
    "activation_func": "swiglu",
    "add_bias_linear": False,
    "attention_bias": False,
    "attention_dropout": 0.0,
    "cca": True,
    "clamp_temp": False,
    "gated_linear_unit": True,
    "lm_head_bias": False,
    "moe_router_topk": 1,
    "normalization": "RMSNorm",
    "rope_scaling": False,
    "scale_residual_merge": True,
    "tie_word_embeddings": True,
    "zaya_use_eda": True,
    "zaya_use_mod": True,
}
# What the code of November 2025 took for keys that its configs leave out.
_LIST_DEFAULTS = {
    "eos_token_id": 1,
    "max_position_embeddings": 32_768,
    "residual_in_fp32": False,
    "rope_theta": 1e6,
}
# Keys that change how other software runs, not what is computed; values of the published files.
_NATIVE_EXTRA = {"output_router_logits": False, "use_cache": True}
_LEGACY_EXTRA = {
    "activation_func_fp8_input_store": False,
    "bias_activation_fusion": True,
    "mamba_cache_dtype": "float32",
    "use_cache": True,
}


def schema_of(config: Config) -> str:
    """`native`, `legacy` or `list`: whose keys the config has."""
    if "zaya_layers" in config:
        return "list"
    legacy = ("ffn_hidden_size", "norm_epsilon", "zaya_mlp_expansion", "num_query_groups")
    return LEGACY if any(key in config for key in legacy) else "native"


def read(config: Config, where: str = "config.json") -> Model:
    """The model section that a Hugging Face config describes, in unrolled form.

    Dtypes are left at their defaults: tensors know theirs.

    Args:
      config: the parsed JSON.
      where: the file, for messages.

    Raises:
      CheckpointError: fields that this network cannot express, and impossible values, all at once.
    """
    if not isinstance(config, Mapping):
        raise CheckpointError(f"{where}: expected an object with fields, found {config!r:.60}")
    problems: list[str] = []
    style = schema_of(config)
    quantization = config.get("quantization_config")
    if quantization is not None and style != "native":
        problems.append("quantization_config: quantised weights are read in the native layout only")
    elif quantization is not None:
        method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
        if method not in QUANTIZED:
            known = ", ".join(QUANTIZED)
            problems.append(f"quantization_config.quant_method = {method!r}: known: {known}")
    if style == "list":
        config = _flatten(config, problems)
    layers = config.get("num_hidden_layers", 1)
    if layers is not None and not (type(layers) is int and 1 <= layers <= MOST_LAYERS):
        problems.append(f"num_hidden_layers = {layers!r}: expected 1 to {MOST_LAYERS}")
    reader = _read_native if style == "native" else _read_legacy
    try:
        fields = {} if problems else reader(config, problems)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        problems.append(f"a value of an unexpected kind: {error!r}")
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"{where} describes what cannot be read here:\n{lines}")
    fields["layers"] = "unroll"
    try:
        model = schema.nested(fields)
        return schema.from_dict({"model": model, "train": {"sequence_length": 1}}).model
    except schema.ConfigError as error:
        text = str(error).partition("\n")[2]
        raise CheckpointError(f"{where} describes an impossible model:\n{text}") from error


def write(model: Model, layout: str, dtype: str) -> dict[str, Any]:
    """The config of a folder in `layout` (`native` or `legacy`).

    Args:
      model: must be expressible there; what its weights decide is not looked at here (see
        `zaya_jax.hf.exporter.inexpressible`).
      dtype: that of most weights.

    Raises:
      CheckpointError: the schemas have no word for some fields; names them all.
    """
    refuse(inexpressible(model))
    cca_time0, cca_time1 = model.attention.conv_kernels
    writer: Callable[[Model], dict[str, Any]] = _write_native
    if layout == LEGACY:
        writer = _write_legacy
    return {
        "architectures": ["ZayaForCausalLM"],
        "model_type": "zaya",
        "bos_token_id": model.bos_id,
        "eos_token_id": model.eos_id,
        "pad_token_id": model.pad_id,
        "dtype": dtype,
        "cca_time0": cca_time0,
        "cca_time1": cca_time1,
        **writer(model),
    }


def inexpressible(model: Model) -> list[str]:
    """Every field of the model section for which the schemas have no word; empty if none.

    Without `residual_scaling` a model could be written with scales of 1 and biases of 0, but would
    come back as another one; it is refused.
    """
    a, r = model.attention, model.router
    only: list[tuple[str, Any, Any]] = [("attention.kind", a.kind, "cca")]
    if a.kind == "cca":
        only += [
            ("attention.qk_mean", a.qk_mean, True),
            ("attention.value_shift", a.value_shift, True),
        ]
    only += [("router.kind", r.kind, "mlp_eda"), ("router.top_k", r.top_k, 1)]
    if r.kind == "mlp_eda":
        only += [("router.depth", r.depth, 2)]
    only += [("residual_scaling", model.residual_scaling, True)]
    problems = [
        f"model.{field} = {value!r}: only {accepted!r} exists there"
        for field, value, accepted in only
        if value != accepted
    ]
    if a.kind == "cca" and len(a.conv_kernels) != 2:
        problems.append(
            f"model.attention.conv_kernels = {a.conv_kernels}: there are always two convolutions"
        )
    if r.skip == "none":
        problems.append("model.router.skip = 'none': every router there has a skip class")
    return problems


def refuse(problems: Sequence[str]) -> None:
    """Raises a CheckpointError that lists them, if there are any."""
    if problems:
        lines = "\n".join(f"  - {problem}" for problem in problems)
        raise CheckpointError(f"the Hugging Face model `zaya` cannot express this one:\n{lines}")


def _get(model: Model, field: str) -> Any:
    return functools.reduce(getattr, field.split("."), model)


# --- What the schemas share -----------------------------------------------------------------------


def _read_common(config: Config, renames: Config, fixed: Config, problems: list[str]) -> dict:
    """Renamed fields, special ids and convolutions; a key that is absent keeps its default."""
    for key, value in fixed.items():
        found = config.get(key, value)
        if found != value and not (value is False and found is None):
            problems.append(f"{key} = {found!r}: only {value!r} is known here")
    fields = {
        ours: config[theirs] for ours, theirs in renames.items() if config.get(theirs) is not None
    }
    for ours in ("pad_id", "bos_id", "eos_id"):
        found = config.get(ours.replace("_id", "_token_id"))
        if isinstance(found, Sequence) and found:
            found = found[0]  # several ends of sequence: generation_config.json keeps them all
        if found is not None:
            fields[ours] = found
    fields["attention.conv_kernels"] = (config.get("cca_time0", 2), config.get("cca_time1", 2))
    if config.get("residual_in_fp32") is not None:
        fields["residual_in_fp32"] = config["residual_in_fp32"]
    return fields


def _shortest_period(pattern: Sequence[str]) -> tuple[str, ...]:
    """The shortest start of `pattern` whose repetition is all of it."""
    n = len(pattern)
    for period in range(1, n):
        if n % period == 0 and all(pattern[i] == pattern[i % period] for i in range(n)):
            return tuple(pattern[:period])
    return tuple(pattern)


def _spans(model: Model) -> list[str]:
    """`full` or `sliding` for each layer."""
    return list(itertools.islice(itertools.cycle(model.attention.pattern), model.num_layers))


# --- native ---------------------------------------------------------------------------------------


def _read_native(config: Config, problems: list[str]) -> dict[str, Any]:
    fields = _read_common(config, _NATIVE, _NATIVE_FIXED, problems)
    layers = fields.get("num_layers", Model().num_layers)
    types = config.get("layer_types") or [FULL] * layers
    unknown = sorted({str(t) for t in types} - {FULL, SLIDING})
    if unknown:
        problems.append(f"layer_types has {', '.join(unknown)}: known are {FULL}, {SLIDING}")
    if len(types) != layers:
        problems.append(f"layer_types has {len(types)} entries for num_hidden_layers = {layers}")
    if not problems:
        spans = ["sliding" if t == SLIDING else "full" for t in types]
        fields["attention.pattern"] = _shortest_period(spans)
    if config.get("rope_parameters") is not None:
        fields |= _read_rope(config["rope_parameters"], set(types), problems)
    return fields


def _read_rope(rope: Config, types: set[str], problems: list[str]) -> dict[str, Any]:
    """`rope_parameters`, one entry for each type of layer.

    The published file carries a stray `rope_type` beside them, which transformers drops as well.
    """
    fields: dict[str, Any] = {}
    for kind, theta in ((FULL, "rope_theta"), (SLIDING, "window_rope_theta")):
        if kind not in rope:
            if kind in types:
                problems.append(f"rope_parameters has no entry {kind!r}, which layer_types names")
            continue
        entry = rope[kind]
        if entry.get("rope_type", "default") != "default":
            problems.append(
                f"rope_parameters.{kind}.rope_type = {entry['rope_type']!r}: scaled RoPE is not "
                "known here"
            )
        if "rope_theta" in entry:
            fields[f"attention.{theta}"] = entry["rope_theta"]
        fraction = entry.get("partial_rotary_factor", 1.0)
        if kind in types and fields.setdefault("attention.rope_fraction", fraction) != fraction:
            problems.append(
                "rope_parameters: partial_rotary_factor differs between the types of layers"
            )
    return fields


def _write_native(model: Model) -> dict[str, Any]:
    a = model.attention
    config = {theirs: _get(model, ours) for ours, theirs in _NATIVE.items()}
    config |= _NATIVE_FIXED | _NATIVE_EXTRA | {"transformers_version": TRANSFORMERS_VERSION}
    config["layer_types"] = [SLIDING if span == "sliding" else FULL for span in _spans(model)]
    config["rope_parameters"] = {
        kind: {
            "partial_rotary_factor": a.rope_fraction,
            "rope_theta": theta,
            "rope_type": "default",
        }
        for kind, theta in ((FULL, a.rope_theta), (SLIDING, a.window_rope_theta))
    }
    if not model.residual_in_fp32:  # not a key of ZayaConfig; kept for those who honour it
        config["residual_in_fp32"] = False
    return config


# --- legacy, and the lists that came before it ----------------------------------------------------


def _read_legacy(config: Config, problems: list[str]) -> dict[str, Any]:
    fields = _read_common(config, _LEGACY, _LEGACY_FIXED, problems)
    # The first upload counted 16 logical heads of which CCA keeps 8.
    for ours, keys in {
        "attention.heads": ("cca_num_q_heads", "num_attention_heads"),
        "attention.kv_heads": ("num_query_groups", "num_key_value_heads"),
        "attention.head_dim": ("head_dim", "kv_channels"),
    }.items():
        found = [config[key] for key in keys if config.get(key) is not None]
        if found:
            fields[ours] = found[0]
    for ours, key in (("num_layers", "num_hidden_layers"), ("expert_width", "ffn_hidden_size")):
        value = config.get(key)
        if value is None or value % 2:
            problems.append(f"{key} = {value!r}: the legacy schema needs an even number here")
        else:
            fields[ours] = value // 2
    if problems:
        return fields
    layers = 2 * fields["num_layers"]
    windows = config.get("swa_layers") or [0] * layers
    if len(windows) != layers:
        problems.append(f"swa_layers has {len(windows)} entries for {layers} layers")
        return fields
    attention = windows[::2]
    if any(attention):
        # A legacy window leaves out the token itself.
        fields["attention.window"] = config.get("sliding_window") or max(attention) + 1
    fields["attention.pattern"] = _shortest_period(["sliding" if w else "full" for w in attention])
    return fields


def _flatten(config: Config, problems: list[str]) -> dict[str, Any]:
    """The scalar schema of a list-style config: attention and expert layers in turn, all alike."""
    flat = {**_LIST_DEFAULTS, **config}
    layers = flat.pop("zaya_layers")
    flat["num_hidden_layers"] = len(layers)  # published files have another scalar
    for place, old, new in (
        (0, "cca_num_q_heads", "cca_num_q_heads"),
        (0, "num_query_groups_list", "num_query_groups"),
        (1, "ffn_hidden_size_list", "ffn_hidden_size"),
        (1, "zaya_mlp_expansion", "zaya_mlp_expansion"),
    ):
        values = flat.pop(old, None)
        if not isinstance(values, list):
            if values is not None:
                flat[new] = values
            continue
        if len(values) != len(layers) or len(set(values[place::2])) != 1:
            problems.append(
                f"{old}: expected one entry for each of the {len(layers)} layers, equal in every "
                "second of them"
            )
        else:
            flat[new] = values[place]
    if len(set(layers[1::2])) != 1 or set(layers[::2]) != {"a"}:
        problems.append("zaya_layers: expected 'a' and the same number of experts in turn")
    else:
        flat["num_experts"] = layers[1]
    return flat


def _write_legacy(model: Model) -> dict[str, Any]:
    a = model.attention
    config = {theirs: _get(model, ours) for ours, theirs in _LEGACY.items()}
    config |= _LEGACY_FIXED | _LEGACY_EXTRA
    config |= {
        "ffn_hidden_size": 2 * model.expert_width,
        "kv_channels": a.head_dim,
        "num_hidden_layers": 2 * model.num_layers,
        "num_query_groups": a.kv_heads,
        "residual_in_fp32": model.residual_in_fp32,
        "sliding_window": None,
    }
    if "sliding" in a.pattern and a.window is not None:
        # Window 1 would read as 0, which is "no window": spelled out, it wins over the list.
        config["sliding_window"] = 1 if a.window == 1 else None
        value = max(a.window - 1, 1)
        config["swa_layers"] = [
            entry for span in _spans(model) for entry in (value if span == "sliding" else 0, 0)
        ]
    return config
