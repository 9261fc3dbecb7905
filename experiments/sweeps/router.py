"""How wide and how deep has the router's MLP to be?

    python launch.py sweep --config=experiments/sweeps/router.py --workdir=runs/router
"""

from experiments.ablations import base
from zaya_jax import config


def get_config():
    """A grid of widths and hidden layers; the report has 256 of 2048 channels, and two layers."""
    sweep = config.Sweep(
        name="router_shape",
        about="How wide and how deep has the router's MLP to be?",
        file="experiments/ablations/base.py",
        base=config.freeze(base.get_config()),
        search="grid",
        space={"model": {"router": {"width": (8, 16, 32, 64), "depth": (0, 1, 2, 3)}}},
        objective="loss_per_target",
        measures=("bits_per_byte", "imbalance", "steps_to_balance", "routing_entropy"),
    )
    return config.sweep_to_config_dict(sweep)
