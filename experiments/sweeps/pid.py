"""Which gains of a PID controller balance the experts, and hold them?

    python launch.py sweep --config=experiments/sweeps/pid.py --workdir=runs/pid
"""

from experiments.ablations import base
from zaya_jax import config


def get_config():
    """The default integral gain alone, then 23 trials of TPE. A gain at the low end of its range is
    as good as none."""
    settings = base.get_config()
    settings.model.num_layers = 2
    settings.model.hidden_size = 32
    settings.model.router.experts = 8
    settings.train.steps = settings.train.checkpoint_every = 100
    settings.train.batch_size = 16
    settings.train.eval_every = 100
    settings.train.log_every = 2
    settings.train.log_loads = True
    settings.data.heldout_max_bytes = 40_000
    settings.balance.kind = "pid"
    settings.balance.kp = settings.balance.kd = 1e-3
    sweep = config.Sweep(
        name="pid",
        about="Which gains of a PID controller balance the experts, and hold them?",
        file="experiments/ablations/base.py",
        base=config.freeze(settings),
        search="tpe",
        space={
            "balance": {
                "kp": {"low": 1e-3, "high": 1.0, "log": True},
                "ki": {"low": 1e-4, "high": 0.1, "log": True},
                "kd": {"low": 1e-3, "high": 1.0, "log": True},
            }
        },
        trials=24,
        objective="imbalance",
        measures=("final_load_entropy", "steps_to_balance", "dead_experts", "bits_per_byte"),
    )
    return config.sweep_to_config_dict(sweep)
