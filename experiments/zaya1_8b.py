"""ZAYA1-8B: 8.84B parameters, 0.76B active (arXiv 2605.05365; checkpoint Zyphra/ZAYA1-8B)."""

from zaya_jax import config


def get_config():
    """The published shape, in the dtypes of the published weights."""
    model = config.Model(param_dtype="bfloat16", activation_dtype="bfloat16", remat="full")
    return config.to_config_dict(config.Experiment(name="zaya1_8b", model=model))
