"""Balancers beside each other when the data shifts from code to prose.

    python launch.py sweep --config=experiments/ablations/balancers.py --workdir=runs/balancers
"""

from experiments.ablations import base
from zaya_jax import config

SHIFT = 150


def get_config():
    """Python's sources until step 150, then the prose of its documentation."""
    settings = base.get_config()
    settings.model.num_layers = 2
    settings.train.steps = settings.train.checkpoint_every = 250
    settings.data.mixture = (("stdlib", 0.95), ("stdlib-docs", 0.05))
    settings.data.mixture_schedule = ((SHIFT, (0.05, 0.95)),)
    arms = {
        "adamw": {"balance.kind": "adamw", "balance.rate": 5e-3},
        "sign": {"balance.kind": "sign", "balance.rate": 5e-3},
        "pid": {"balance.kind": "pid", "balance.kp": 0.0, "balance.ki": 0.02},
        "auxiliary loss": {"balance.kind": "none", "balance.aux_loss": 0.01},
        "none": {"balance.kind": "none"},
    }
    sweep = config.Sweep(
        name="balancers",
        about="Which balancer keeps the experts' loads even, and how does each take a shift of the "
        "data from code to prose?",
        file="experiments/ablations/base.py",
        base=config.freeze(settings),
        search="arms",
        arms={name: config.nested(fields) for name, fields in arms.items()},
        seeds=(0, 1, 2),
        objective="imbalance",
        measures=("final_load_entropy", "dip", "overshoot", "recovery_steps", "bits_per_byte"),
        claims=(
            ("imbalance", "adamw", "none", "ZAYA1-8B report, eq 5"),
            ("imbalance", "adamw", "sign", "ours, as a question"),
            ("imbalance", "adamw", "auxiliary loss", "ours, as a question"),
            ("overshoot", "pid", "adamw", "ours, as a question"),
        ),
    )
    return config.sweep_to_config_dict(sweep)
