"""Which gains of a PID controller balance the experts, and hold them?

    python launch.py sweep --config=experiments/sweeps/pid.py --workdir=runs/pid
"""

from experiments import zaya1_tiny
from zaya_jax import config


def get_config():
    """24 trials of TPE. A derivative or proportional gain of nearly 0 is as good as none."""
    base = config.freeze(zaya1_tiny.get_config())
    sweep = config.Sweep(
        name="pid",
        about="Which gains of a PID controller balance the experts, and hold them?",
        file="experiments/zaya1_tiny.py",
        base=base,
        search="tpe",
        space={
            "balance": {
                "kind": ("pid",),
                "kp": {"low": 1e-3, "high": 1.0, "log": True},
                "ki": {"low": 1e-4, "high": 0.1, "log": True},
                "kd": {"low": 1e-3, "high": 1.0, "log": True},
            }
        },
        trials=24,
        objective="imbalance",
        measures=("bits_per_byte", "final_load_entropy", "steps_to_balance"),
    )
    return config.sweep_to_config_dict(sweep)
