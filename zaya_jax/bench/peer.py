"""The peer: transformers' Zaya (torch, CPU) with the same weights, spread out.

A random Zaya as transformers initialises it shows little: key temperatures are 0 (uniform
attention), scales 1, biases 0, and one expert wins everywhere. `spread` fills every tensor with
values that make each of them count, so that a comparison compares everything.

Needs torch and transformers (requirements-dev.txt).
"""

from __future__ import annotations

import contextlib
import types
from typing import Any

import jax.numpy as jnp
import numpy as np
import torch
from transformers.models.zaya import modeling_zaya as modeling

from zaya_jax.config import Model
from zaya_jax.hf import config_map
from zaya_jax.hf.layout import from_hf
from zaya_jax.model.forms import addresses
from zaya_jax.model.functional import bias_declarations, declarations


def torch_config(model: Model, attention: str = "eager", experts: str = "eager"):
    """The ZayaConfig of a model section, written without our own exporter.

    Args:
      attention: transformers' attention implementation, eager or sdpa.
      experts: transformers' experts implementation, eager, grouped_mm or batched_mm.

    Raises:
      UserError: transformers' Zaya has no such model; names the fields.
    """
    config_map.refuse(config_map.inexpressible(model))
    a, r = model.attention, model.router
    cca_time0, cca_time1 = a.conv_kernels
    names = {"full": "hybrid", "sliding": "hybrid_sliding"}
    rope = {"rope_type": "default", "partial_rotary_factor": a.rope_fraction}
    build: Any = modeling.ZayaConfig  # takes more keywords than it declares
    return build(
        vocab_size=model.vocab_size,
        hidden_size=model.hidden_size,
        num_hidden_layers=model.num_layers,
        num_attention_heads=a.heads,
        num_key_value_heads=a.kv_heads,
        head_dim=a.head_dim,
        max_position_embeddings=model.context_length,
        rms_norm_eps=model.norm_eps,
        moe_intermediate_size=model.expert_width,
        num_experts=r.experts,
        router_hidden_size=r.width,
        layer_types=[names[a.pattern[i % len(a.pattern)]] for i in range(model.num_layers)],
        sliding_window=a.window,
        cca_time0=cca_time0,
        cca_time1=cca_time1,
        pad_token_id=model.pad_id,
        bos_token_id=model.bos_id,
        eos_token_id=model.eos_id,
        rope_parameters={
            "hybrid": {**rope, "rope_theta": a.rope_theta},
            "hybrid_sliding": {**rope, "rope_theta": a.window_rope_theta},
        },
        attn_implementation=attention,
        experts_implementation=experts,
    )


def torch_model(model: Model, seed: int, attention: str = "eager", experts: str = "eager"):
    """A ZayaForCausalLM of this shape with every tensor spread out; float32."""
    oracle = modeling.ZayaForCausalLM(torch_config(model, attention, experts)).eval()
    spread(oracle, seed)
    return oracle


def spread(oracle, seed: int) -> None:
    """Fills parameters and biases with values that use every expert and the skip class."""
    generator = torch.Generator().manual_seed(seed)

    def normal(tensor, std, mean=0.0):
        tensor.data.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    for name, p in oracle.named_parameters():
        if name.endswith(("norm.weight", "layernorm.weight", "_scale", "temp")):
            normal(p, 0.25, 1.0)
        elif "embed_tokens" in name:
            normal(p, 1.0)
        elif name.endswith("out_proj.weight"):
            normal(p, 3.0 * p.shape[-1] ** -0.5)
        elif p.ndim == 1:
            normal(p, 0.2)
        elif "conv_qk_depthwise" in name:
            normal(p, 0.6)
        else:
            fan_in = p.shape[-1] * p.shape[-2] if "conv" in name else p.shape[-1]
            normal(p, fan_in**-0.5)
    for name, buffer in oracle.named_buffers():
        if name.endswith("balancing_biases"):
            normal(buffer, 0.1)


def from_torch(model: Model, oracle, *, grads: bool = False):
    """The oracle's tensors (or their gradients) as our flat dicts: params, biases."""
    tensors = dict(oracle.named_parameters())
    buffers = dict(oracle.named_buffers())

    def read(source, found, take):
        values = {}
        for name, place in addresses(found).items():
            value = from_hf(take(source[name]), place.declaration.layout)
            if place.row is None:
                values[place.path] = jnp.asarray(value, place.declaration.dtype)
            else:
                values.setdefault(place.path, []).append(value)
        return {
            path: jnp.asarray(np.stack(v), found[path].dtype) if isinstance(v, list) else v
            for path, v in values.items()
        }

    take = (lambda t: t.grad.numpy()) if grads else (lambda t: t.detach().to(torch.float64).numpy())
    params = read(tensors, declarations(model), take)
    return params, (None if grads else read(buffers, bias_declarations(model), take))


@contextlib.contextmanager
def widened():
    """Runs transformers' Zaya in true float64: its float32 islands become float64.

    The module names `torch.float32` for the stream, the norms' statistics and the softmax, and its
    rotary table is float32; a comparison to 1e-9 needs all of them wide.
    """
    proxy = types.SimpleNamespace()
    proxy.__dict__.update({k: getattr(torch, k) for k in dir(torch) if not k.startswith("__")})
    proxy.float32 = torch.float64
    rotary = modeling.ZayaRotaryEmbedding
    old_torch, old_rotary = modeling.torch, rotary.forward

    def wide_rotary(self, x, position_ids, layer_type):
        p = self.config.rope_parameters[layer_type]
        dim = int(self.config.head_dim * p["partial_rotary_factor"])
        steps = torch.arange(0, dim, 2, dtype=torch.float64) / dim
        angles = position_ids[..., None].double() * (1.0 / p["rope_theta"] ** steps)
        both = torch.cat((angles, angles), dim=-1)
        return both.cos().to(x.dtype), both.sin().to(x.dtype)

    mended: Any = modeling  # the module and its class are patched on purpose
    mended.torch, mended.ZayaRotaryEmbedding.forward = proxy, wide_rotary
    try:
        yield
    finally:
        mended.torch, mended.ZayaRotaryEmbedding.forward = old_torch, old_rotary
