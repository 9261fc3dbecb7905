"""What each part of CCA adds to the loss on text (arXiv 2510.04476, ablation table).

    python launch.py sweep --config=experiments/ablations/cca.py --workdir=runs/cca
"""

import itertools

from experiments.ablations import base
from zaya_jax import config

PAPER = "CCA, arXiv 2510.04476"


def parts(convolutions: int, value_shift: bool, qk_mean: bool):
    """An arm: how many convolutions, and which of the other parts."""
    return config.nested(
        {
            "model.attention.conv_kernels": (2, 2)[:convolutions],
            "model.attention.value_shift": value_shift,
            "model.attention.qk_mean": qk_mean,
        }
    )


ARMS = {
    "0 convolutions": parts(0, False, False),
    "1 convolution": parts(1, False, False),
    "2 convolutions": parts(2, False, False),
    "2 and value shift": parts(2, True, False),
    "2, value shift, q-k mean": parts(2, True, True),
}


def claims(measure: str):
    """That each arm is better than the one before it."""
    names = list(ARMS)
    return tuple((measure, after, before, PAPER) for before, after in itertools.pairwise(names))


def get_config():
    """The paper's steps of 0.004 to 0.016 nats at 1.5B parameters may be below the seeds' noise."""
    sweep = config.Sweep(
        name="cca",
        about="What do CCA's convolutions, value shift and q-k mean each add on text?",
        file="experiments/ablations/base.py:dense",
        base=config.freeze(base.get_config("dense")),
        search="arms",
        arms=ARMS,
        seeds=(0, 1, 2, 3),
        objective="loss_per_target",
        measures=("bits_per_byte",),
        claims=claims("loss_per_target"),
    )
    return config.sweep_to_config_dict(sweep)
