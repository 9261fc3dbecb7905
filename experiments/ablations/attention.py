"""CCA beside GQA, MHA and MLA, each with the same bytes of keys and values a token.

    python launch.py sweep --config=experiments/ablations/attention.py --workdir=runs/attention
"""

from experiments.ablations import base
from zaya_jax import config

PAPER = "CCA, arXiv 2510.04476"


def get_config():
    """64 numbers a token and layer; the expert's width makes parameters equal within 2%."""
    arms = {
        "cca": {},
        "gqa": {"model.attention.kind": "gqa", "model.expert_width": 210},
        "mha": {
            "model.attention.kind": "mha",
            "model.attention.heads": 2,
            "model.expert_width": 231,
        },
        "mla": {
            "model.attention.kind": "mla",
            "model.attention.kv_rank": 56,  # and 8 rotary channels that all heads share
            "model.expert_width": 182,
        },
    }
    sweep = config.Sweep(
        name="attention",
        about="Which kind of attention predicts text best at equal bytes of cache and equal "
        "parameters?",
        file="experiments/ablations/base.py:dense",
        base=config.freeze(base.get_config("dense")),
        search="arms",
        arms={name: config.nested(fields) for name, fields in arms.items()},
        seeds=(0, 1, 2),
        objective="loss_per_target",
        measures=("bits_per_byte",),
        claims=tuple(("loss_per_target", "cca", other, PAPER) for other in ("gqa", "mha", "mla")),
    )
    return config.sweep_to_config_dict(sweep)
