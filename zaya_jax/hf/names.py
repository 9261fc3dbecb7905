"""Where each tensor lies in a checkpoint file, under the names of each file layout.

| layout | written by | experts | layer k is called |
|---|---|---|---|
| `native` | transformers, the hub since July 2026 | one stack | `model.layers.k` |
| `legacy` | the hub before that; ZAYA1-base | one tensor each | `2k` (attention), `2k + 1` |
| `jax` | `launch.py import` | one stack | `layers.k`, our paths, weights [in, out] |

Native names come from the parameters' declarations; legacy ones from the single table below. The
two differ by names and by stacking of experts only: no number changes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import NamedTuple

from zaya_jax.config import Model
from zaya_jax.hf import layout as layouts
from zaya_jax.model.forms import Address, addresses
from zaya_jax.model.functional import bias_declarations, declarations

NATIVE, LEGACY, JAX = "native", "legacy", "jax"

_GLOBAL = {
    "model.embed_tokens.weight": "model.embed_tokens.weight",
    "model.norm.weight": "model.final_norm.weight",
    "model.input_hidden_states_scale": "model.layers.0.res_scale.hidden_states_scale",
    "model.input_hidden_states_bias": "model.layers.0.res_scale.hidden_states_bias",
}
_QKV, _ROUTER = "self_attn.qkv", "zaya_block.router"
_EXPERT = "zaya_block.experts.local_experts.{expert}"
# Layer k of native is layers 2k (attention) and 2k + 1 (experts) of legacy; the number says how
# many to add to 2k. Legacy scales the streams where a layer begins, native where it ends: hence
# the 2, and behind the last layer there is none, so that scale stands outside the layers.
_LAYER = {
    "input_layernorm.weight": (0, "input_norm.weight"),
    "self_attn.qkv_proj.q_proj.weight": (0, f"{_QKV}.linear_q.weight"),
    "self_attn.qkv_proj.k_proj.weight": (0, f"{_QKV}.linear_k.weight"),
    "self_attn.qkv_proj.v_proj_current.weight": (0, f"{_QKV}.val_proj1.weight"),
    "self_attn.qkv_proj.v_proj_delayed.weight": (0, f"{_QKV}.val_proj2.weight"),
    "self_attn.qkv_proj.conv_qk_depthwise.weight": (0, f"{_QKV}.conv_qk.0.weight"),
    "self_attn.qkv_proj.conv_qk_depthwise.bias": (0, f"{_QKV}.conv_qk.0.bias"),
    "self_attn.qkv_proj.conv_qk_grouped.weight": (0, f"{_QKV}.conv_qk.1.weight"),
    "self_attn.qkv_proj.conv_qk_grouped.bias": (0, f"{_QKV}.conv_qk.1.bias"),
    "self_attn.qk_norm.temp": (0, f"{_QKV}.temp"),
    "self_attn.o_proj.weight": (0, "self_attn.o_proj.weight"),
    "post_attention_layernorm.weight": (1, "input_norm.weight"),
    "mlp.gate.down_proj.weight": (1, f"{_ROUTER}.down_proj.weight"),
    "mlp.gate.down_proj.bias": (1, f"{_ROUTER}.down_proj.bias"),
    "mlp.gate.router_states_scale": (1, f"{_ROUTER}.router_states_scale"),
    "mlp.gate.router_mlp.norm.weight": (1, f"{_ROUTER}.rmsnorm_eda.weight"),
    "mlp.gate.router_mlp.fc1.weight": (1, f"{_ROUTER}.router_mlp.0.weight"),
    "mlp.gate.router_mlp.fc1.bias": (1, f"{_ROUTER}.router_mlp.0.bias"),
    "mlp.gate.router_mlp.fc2.weight": (1, f"{_ROUTER}.router_mlp.2.weight"),
    "mlp.gate.router_mlp.fc2.bias": (1, f"{_ROUTER}.router_mlp.2.bias"),
    "mlp.gate.router_mlp.out_proj.weight": (1, f"{_ROUTER}.router_mlp.4.weight"),
    "mlp.gate.balancing_biases": (1, f"{_ROUTER}.balancing_biases"),
    "mlp.experts.gate_up_proj": (1, f"{_EXPERT}.linear_fc1.weight"),
    "mlp.experts.down_proj": (1, f"{_EXPERT}.linear_fc2.weight"),
    **{
        f"post_{mixer}_residual_scale.{part}_{kind}": (offset, f"res_scale.{part}_{kind}")
        for mixer, offset in (("attention", 1), ("mlp", 2))
        for part in ("hidden_states", "residual")
        for kind in ("scale", "bias")
    },
}


class Place(NamedTuple):
    """One of our tensors in a checkpoint file.

    address: path, layer and declaration (see `zaya_jax.model.forms`).
    names: of the tensor in the file; one for each expert if they are kept apart.
    layout: how the file lays out its numbers (see `zaya_jax.hf.layout`).
    apart: whether each expert is a tensor of its own there.
    """

    address: Address
    names: tuple[str, ...]
    layout: str
    apart: bool = False

    @property
    def stacked(self) -> bool:
        """Whether this is a stack of experts, moved expert by expert."""
        return "expert_mlp" in self.address.declaration.axes

    @property
    def parts(self) -> int:
        """Pieces in which the tensor is moved, so that no more than one is in memory."""
        return self.address.shape[0] if self.stacked else 1

    @property
    def file_shape(self) -> tuple[int, ...]:
        """Shape of each of `names` in the file."""
        shape = self.address.shape[1:] if self.apart else self.address.shape
        return layouts.hf_shape(shape, self.layout)


def legacy_names(native: str, layer: int | None, layers: int, experts: int) -> tuple[str, ...]:
    """The legacy names of a native tensor: one, or one for each expert.

    Args:
      native: the full name, or relative to the layer if `layer` is given.
      layer: native index of the layer, None outside the layers.
      layers: how many native layers there are.

    Raises:
      KeyError: the legacy layout has no such tensor.
    """
    if layer is None:
        return (_GLOBAL[native],)
    offset, name = _LAYER[native]
    legacy_layer = 2 * layer + offset
    prefix = "model" if legacy_layer == 2 * layers else f"model.layers.{legacy_layer}"
    each = range(experts) if "{expert}" in name else range(1)
    return tuple(f"{prefix}.{name.format(expert=e)}" for e in each)


@functools.lru_cache(maxsize=16)
def places(model: Model, layout: str) -> Mapping[str, Place]:
    """Every tensor of `model` in the order of the layers, by its native name.

    Parameters and balancing biases alike: checkpoint files hold both.

    Raises:
      KeyError: the model has a tensor that the layout has no name for.
    """
    model = dataclasses.replace(model, layers="unroll")
    found = {**addresses(declarations(model)), **addresses(bias_declarations(model))}

    def depth(item: tuple[str, Address]) -> tuple[int, str]:
        layer = item[1].layer
        return -1 if layer is None else layer, item[0]

    table = {}
    for native, address in sorted(found.items(), key=depth):
        declaration = address.declaration
        if layout == JAX:
            table[native] = Place(address, (address.path,), "same")
            continue
        if layout == NATIVE:
            table[native] = Place(address, (native,), declaration.layout)
            continue
        names = legacy_names(
            declaration.name, address.layer, model.num_layers, model.router.experts
        )
        apart = "expert_mlp" in declaration.axes
        table[native] = Place(address, names, declaration.layout, apart)
    return table


# Parts of names that only one of the layouts has; a folder is what most of its tensors say.
_MARKS = {
    NATIVE: ("model.input_hidden_states_", ".qkv_proj.", ".mlp.gate.", ".mlp.experts."),
    LEGACY: ("model.res_scale.", ".self_attn.qkv.", ".zaya_block.", "model.final_norm."),
    "vl": ("vision_tower.", "model.visual.", ".attn.self_attn.", ".mlp.zaya_block."),
}


def detect(names) -> str | None:
    """`native`, `legacy`, `vl` (ZAYA1-VL), or None: which layout the tensor names speak of."""
    names = list(names)
    votes = {
        layout: sum(any(mark in name for mark in marks) for name in names)
        for layout, marks in _MARKS.items()
    }
    if votes["vl"]:
        return "vl"
    best = max((NATIVE, LEGACY), key=lambda layout: votes[layout])
    return best if votes[best] else None
