"""The cascade's second stage for ZAYA1-8B: 400 updates on rlve-gym's 400 environments (IV-B)."""

from experiments.stages import rl_warmup


def get_config():
    """From the end of the warm-up. Difficulties begin where half is solved (equations
    12 to 14, 30 rounds: ours), and equation 11 moves them."""
    settings = rl_warmup.get_config()
    settings.name = "rl_rlve"
    settings.train.init_from = "runs/rl_warmup"
    settings.train.steps = 400
    settings.train.eval_every = settings.train.checkpoint_every = 40
    settings.rl.tasks = (("rlve:*", 1.0),)
    settings.rl.curriculum.rounds = 30
    settings.rl.heldout = 400
    return settings
