"""What do compressed queries, and compressed keys and values, cost?

    python launch.py sweep --config=experiments/sweeps/cca_compression.py --workdir=runs/compression
"""

from experiments.ablations import base
from zaya_jax import config


def get_config():
    """Heads of 16 channels of a stream of 64: queries compressed 4, 2 and 1 times, and so keys and
    values. What has more kv heads than query heads is no attention; those trials are invalid."""
    sweep = config.Sweep(
        name="cca_compression",
        about="What do compressed queries, and compressed keys and values, cost?",
        file="experiments/ablations/base.py:dense",
        base=config.freeze(base.get_config("dense")),
        search="grid",
        space={"model": {"attention": {"heads": (1, 2, 4), "kv_heads": (1, 2, 4)}}},
        objective="loss_per_target",
        measures=("bits_per_byte", "tokens_per_second"),
    )
    return config.sweep_to_config_dict(sweep)
