"""Networks whose parameters are spread out, so that every part of them decides something."""

from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from zaya_jax.config import Attention, Model, Router
from zaya_jax.data.tokenizer import Tokenizer, train_bpe
from zaya_jax.load import Loaded, Source
from zaya_jax.model import functional


def build(dtype: str = "float32", tokenizer: Tokenizer | None = None, **fields) -> Loaded:
    """Two layers, the second with a sliding window of 5, vocabulary 300."""
    attention = Attention(heads=4, kv_heads=2, head_dim=8, pattern=("full", "sliding"), window=5)
    section = dict(
        vocab_size=300,
        hidden_size=32,
        num_layers=2,
        expert_width=24,
        context_length=64,
        eos_id=299,
        attention=attention,
        router=Router(experts=4, width=16),
        param_dtype=dtype,
        activation_dtype=dtype,
        layers="unroll",
    )
    model = Model(**(section | fields))
    rng = np.random.default_rng(0)

    def spread(name, leaf):
        noise = rng.normal(size=leaf.shape)
        if name == "embedding":
            value = noise
        elif "bias" in name:
            value = 0.3 * noise
        elif len(leaf.shape) == 1:
            value = 1 + 0.3 * noise
            if name.endswith("mixer_scale") or name.endswith("temperature"):
                value = 4 * value  # else a token mostly repeats itself, through the tied head
        else:
            value = 1.5 * noise * leaf.shape[-2] ** -0.5
        return jnp.asarray(value, leaf.dtype)

    params, biases = jax.eval_shape(lambda: functional.init(model, jax.random.key(0)))
    params = {name: spread(name, leaf) for name, leaf in params.items()}
    biases = {
        name: jnp.asarray(0.1 * rng.normal(size=leaf.shape), leaf.dtype).at[-1].set(-1)
        for name, leaf in biases.items()
    }
    return Loaded(model, params, biases, tokenizer, Source("folder", Path("model")))


@pytest.fixture(scope="session")
def network() -> Callable[..., Loaded]:
    """`build`."""
    return build


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return train_bpe(["def f(x):\n    return x\n" * 30], 299)
