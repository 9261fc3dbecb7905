"""What RL starts from: supervised fine-tuning to its plateau, and half as long again.

    python launch.py sweep --config=experiments/ablations/rl_sft.py --workdir=runs/results/rl_sft
"""

from experiments.rl import chain_sum
from zaya_jax import config


def get_config():
    """`rl.py` begins where these runs end."""
    sweep = config.Sweep(
        name="rl_sft",
        about="How far does imitation of demonstrations go, and does more of it go farther?",
        file="experiments/rl/chain_sum.py:sft",
        base=config.freeze(chain_sum.get_config("sft")),
        search="arms",
        arms={
            "sft": {},
            "longer sft": config.nested({"train.steps": 1200}),
        },
        seeds=(0, 1, 2),
        objective="loss_per_target",
        measures=("bits_per_byte", "seconds"),
    )
    return config.sweep_to_config_dict(sweep)
