"""ZAYA1-74B-preview: 24 experts, 60 layers, every other one with a sliding window."""

from zaya_jax import config


def get_config():
    """The published shape. Which of the two spans comes first is read from the checkpoint's own
    config at import; from scratch the full span comes first."""
    attention = config.Attention(heads=16, pattern=("full", "sliding"), window=4097)
    model = config.Model(
        hidden_size=4096,
        num_layers=60,
        expert_width=4096,
        attention=attention,
        router=config.Router(experts=24),
        param_dtype="bfloat16",
        activation_dtype="bfloat16",
        remat="full",
    )
    return config.to_config_dict(config.Experiment(name="zaya1_74b", model=model))
