"""A tiny model of rewards: which of two pieces of code is the function that was asked for?

    make demo
    python launch.py reward-model --config=experiments/rl/preferences.py --workdir=runs/rewards

The pairs are made of Python's standard library (`zaya_jax/rl/preference/stdlib_pairs.py`).
"""

from zaya_jax import config
from zaya_jax.config import rl


def get_config():
    """From the end of the demo's supervised fine-tuning."""
    return config.to_config_dict(
        config.Experiment(
            name="preferences",
            model=config.open_model(),
            train=config.Train(
                init_from="demo/sft",
                steps=200,
                batch_size=8,
                sequence_length=512,
                log_every=5,
                eval_every=50,
                checkpoint_every=100,
                keep_checkpoints=1,
            ),
            optim=config.Optim(
                kind="muon", learning_rate=2e-3, warmup_steps=10, final_fraction=0.1, eps=1e-5
            ),
            balance=config.Balance(kind="none"),
            preference=rl.Preference(
                pairs="zaya_jax.rl.preference.stdlib_pairs:pairs", heldout_fraction=0.1
            ),
        )
    )
