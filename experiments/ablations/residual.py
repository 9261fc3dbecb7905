"""Does learned residual scaling keep the residual stream from growing with depth?

    python launch.py sweep --config=experiments/ablations/residual.py --workdir=runs/residual
"""

from experiments.ablations import base
from zaya_jax import config

REPORT = "ZAYA1-8B report, section II"


def get_config():
    """Eight layers of a single expert: depth is what is asked about."""
    settings = base.get_config("dense")
    settings.model.num_layers = 8
    settings.model.layers = "scan"
    settings.train.steps = 160
    settings.train.checkpoint_every = 160
    settings.train.eval_every = 160
    settings.train.batch_size = 8
    sweep = config.Sweep(
        name="residual",
        about="How does the norm of the residual stream grow with depth, with and without learned "
        "residual scaling?",
        file="experiments/ablations/base.py:dense",
        base=config.freeze(settings),
        search="arms",
        arms={
            "scaled": {},
            "unscaled": config.nested({"model.residual_scaling": False}),
        },
        seeds=(0, 1, 2),
        objective="residual_growth",
        measures=("residual_norm_last", "loss_per_target", "bits_per_byte"),
        claims=(
            ("residual_growth", "scaled", "unscaled", REPORT),
            ("residual_norm_last", "scaled", "unscaled", REPORT),
        ),
    )
    return config.sweep_to_config_dict(sweep)
