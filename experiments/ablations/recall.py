"""What each part of CCA adds to recall, where a single layer has to find a value by its key.

    python launch.py sweep --config=experiments/ablations/recall.py --workdir=runs/recall
"""

from experiments.ablations import base, cca
from zaya_jax import config


def get_config():
    """The arms of `cca.py`. Keys have two letters, so one token of look-back is not enough."""
    sweep = config.Sweep(
        name="recall",
        about="Can one layer recall a value by a key of two letters? Keys that see one token back "
        "(one convolution) know half of a key; those that see two (two convolutions) know it all. "
        "Chance is 3.26 nats an answer, knowing the letters but not which is whose 2.41, half a "
        "key 1.31, recall 0.",
        file="experiments/ablations/base.py:recall",
        base=config.freeze(base.get_config("recall")),
        search="arms",
        arms=cca.ARMS,
        seeds=(0, 1, 2),
        objective="loss_per_target",
        claims=cca.claims("loss_per_target"),
    )
    return config.sweep_to_config_dict(sweep)
