"""Models that work long sums out and go on with attempts at them; `rsa.py` scores them.

    python launch.py sweep --config=experiments/ablations/rsa_sft.py --workdir=runs/results/rsa_sft
"""

from experiments.rl import long_sums
from zaya_jax import config


def get_config():
    """One arm, three seeds."""
    sweep = config.Sweep(
        name="rsa_sft",
        about="Training for the study of Markovian RSA: sums of five or six terms, worked out "
        "from the beginning, and gone on with from attempts that have mistakes.",
        file="experiments/rl/long_sums.py:sft",
        base=config.freeze(long_sums.get_config("sft")),
        search="arms",
        arms={"sft": {}},
        seeds=(0, 1, 2),
        objective="loss_per_target",
        measures=("bits_per_byte", "seconds"),
    )
    return config.sweep_to_config_dict(sweep)
