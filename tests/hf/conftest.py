"""Small models with every tensor spread out, so that a tensor out of place shows."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.config import Attention, Model, Router
from zaya_jax.hf import write_folder
from zaya_jax.model.functional import bias_declarations, declarations


def small_model(**fields) -> Model:
    """Four layers of two spans; `fields` replace any of the model section's."""
    defaults = {
        "vocab_size": 96,
        "hidden_size": 24,
        "num_layers": 4,
        "expert_width": 20,
        "context_length": 128,
        "eos_id": 1,
        "attention": Attention(
            heads=4,
            kv_heads=2,
            head_dim=8,
            pattern=("full", "sliding"),
            window=5,
            rope_theta=1e6,
        ),
        "router": Router(experts=3, width=12),
        "layers": "unroll",
    }
    return Model(**(defaults | fields))


def spread_values(model: Model, seed: int = 0, skip_bias: float = -1.0):
    """Parameters and biases that use every expert; with a higher `skip_bias` the skip class too."""
    random = np.random.default_rng(seed)

    def draw(declaration):
        name, shape = declaration.name, declaration.shape
        normal = random.standard_normal(shape)
        if name.endswith(("norm.weight", "_scale", "temp")):
            value = 1 + 0.25 * normal
        elif name.endswith("out_proj.weight"):
            value = 3 * normal * shape[-2] ** -0.5
        elif name.endswith("balancing_biases"):
            value = 0.05 * normal
            value[..., -1] = skip_bias
        elif declaration.group == "embedding":
            value = normal
        elif declaration.group == "vector":
            value = 0.2 * normal
        else:
            value = normal * shape[-2] ** -0.5
        return jnp.asarray(value, declaration.dtype)

    return (
        {path: draw(d) for path, d in declarations(model).items()},
        {path: draw(d) for path, d in bias_declarations(model).items()},
    )


@pytest.fixture(scope="session")
def spread():
    return spread_values


@pytest.fixture(scope="session")
def small():
    return small_model


@pytest.fixture
def native(tmp_path):
    """A small native folder in one file, bfloat16 with float32 biases."""
    model = small_model(param_dtype="bfloat16")
    return write_folder(model, *spread_values(model), tmp_path / "native")


@pytest.fixture
def legacy(tmp_path):
    """The same network in the legacy layout, in several files."""
    model = small_model(param_dtype="bfloat16")
    out = tmp_path / "legacy"
    return write_folder(model, *spread_values(model), out, layout="legacy", max_shard_gb=3e-5)
