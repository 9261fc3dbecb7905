"""Figure 4 of the report in small: how soon do the experts' loads become even?

    python launch.py sweep --config=experiments/ablations/router.py --workdir=runs/router
"""

from experiments.ablations import base
from zaya_jax import config

REPORT = "ZAYA1-8B report, figure 4"


def get_config():
    """Three routers under one balancer at one rate."""
    settings = base.get_config()
    settings.train.log_loads = True
    settings.train.steps = settings.train.checkpoint_every = 280
    settings.train.eval_every = 140
    settings.balance.rate = 1e-2  # twice the base's: for the slower arms to come there, too
    sweep = config.Sweep(
        name="router",
        about="Does the MLP router with depth averaging balance sooner than a linear one, and is "
        "each of its decisions surer? The balancer and its rate are the same for all.",
        file="experiments/ablations/base.py",
        base=config.freeze(settings),
        search="arms",
        arms={
            kind: config.nested({"model.router.kind": kind})
            for kind in ("linear", "mlp", "mlp_eda")
        },
        seeds=(0, 1, 2),
        objective="steps_to_balance",
        measures=("imbalance", "final_load_entropy", "routing_entropy", "bits_per_byte"),
        claims=(
            ("steps_to_balance", "mlp_eda", "linear", REPORT),
            ("imbalance", "mlp_eda", "linear", REPORT),
            ("bits_per_byte", "mlp_eda", "linear", "ZAYA1-8B report, section II"),
            ("routing_entropy", "mlp", "linear", "ZAYA1-8B report, section II"),
            ("routing_entropy", "mlp_eda", "linear", "ZAYA1-8B report, section II"),
        ),
    )
    return config.sweep_to_config_dict(sweep)
