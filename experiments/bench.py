"""The shape of `launch.py bench`: small enough for two cores, wide enough to be matmul bound."""

from zaya_jax import config


def get_config():
    """Hidden 512, 8 layers, 8 query and 2 kv heads of 64, 16 experts of width 512."""
    model = config.Model(
        vocab_size=8192,
        hidden_size=512,
        num_layers=8,
        expert_width=512,
        context_length=4096,
        attention=config.Attention(head_dim=64),
        router=config.Router(width=128),
        layers="unroll",
    )
    train = config.Train(batch_size=4, sequence_length=512)
    return config.to_config_dict(config.Experiment(name="bench", model=model, train=train))
