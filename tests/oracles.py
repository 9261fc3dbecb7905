"""Small models for comparisons with transformers' Zaya, and hooks on its routers."""

from __future__ import annotations

import numpy as np
import pytest

from zaya_jax.config import Attention, Model, Router

torch = pytest.importorskip("torch")
pytest.importorskip("transformers.models.zaya.modeling_zaya")

from zaya_jax.bench.peer import from_torch, torch_config, torch_model, widened  # noqa: E402

__all__ = [
    "from_torch",
    "margin",
    "routes",
    "tiny_model",
    "torch",
    "torch_config",
    "torch_model",
    "widened",
]


def tiny_model(
    *,
    layers: int = 3,
    heads: tuple[int, int] = (4, 2),
    head_dim: int = 16,
    hidden: int = 48,
    experts: int = 4,
    width: int = 40,
    kernels: tuple[int, int] = (2, 2),
    pattern: tuple[str, ...] = ("full",),
    window: int | None = None,
    dtype: str = "float32",
    skip: str = "zero",
    **fields,
) -> Model:
    """A small model section in the reference numerics."""
    return Model(
        vocab_size=97,
        hidden_size=hidden,
        num_layers=layers,
        expert_width=width,
        context_length=256,
        eos_id=1,
        attention=Attention(
            heads=heads[0],
            kv_heads=heads[1],
            head_dim=head_dim,
            conv_kernels=kernels,
            pattern=pattern,
            window=window,
            rope_theta=5000.0,
            window_rope_theta=300.0,
        ),
        router=Router(experts=experts, width=24, skip=skip),
        numerics="reference",
        param_dtype=dtype,
        activation_dtype=dtype,
        layers=fields.pop("form", "unroll"),
        **fields,
    )


def routes(oracle) -> tuple[list, list]:
    """Hooks every router: a list of biased probabilities [B, S, classes], one a layer."""
    records: list = []

    def hook(module, inputs, outputs):
        shape = (*inputs[0].shape[:2], -1)
        probabilities = torch.softmax(outputs[0].detach().double(), dim=-1)
        records.append((probabilities + module.balancing_biases.double()).reshape(shape).numpy())

    handles = [layer.mlp.gate.register_forward_hook(hook) for layer in oracle.model.layers]
    return records, handles


def margin(biased: np.ndarray) -> np.ndarray:
    """Distance between the best and the second best class."""
    top = np.sort(biased, axis=-1)
    return top[..., -1] - top[..., -2]
