"""How fast may the balancing biases move, under eq 5 of the report and under plain signs?

    python launch.py sweep --config=experiments/sweeps/balancers.py --workdir=runs/balancers
"""

from experiments.ablations import base
from zaya_jax import config


def get_config():
    """A grid of kinds and rates."""
    sweep = config.Sweep(
        name="balancer_rates",
        about="Which rate suits which balancer, and which of the two depends less on it?",
        file="experiments/ablations/base.py",
        base=config.freeze(base.get_config()),
        search="grid",
        space={"balance": {"kind": ("adamw", "sign"), "rate": (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)}},
        objective="imbalance",
        measures=("bits_per_byte", "final_load_entropy", "steps_to_balance"),
    )
    return config.sweep_to_config_dict(sweep)
