"""The cascade's third stage for ZAYA1-8B: 384 updates on mathematics and code (IV-B)."""

from experiments.stages import rl_warmup


def get_config():
    """From the end of the curriculum; files of {prompt, answer, verifier}, docs/curriculum.md."""
    settings = rl_warmup.get_config()
    settings.name = "rl_math_code"
    settings.train.init_from = "runs/rl_rlve"
    settings.train.steps = 384
    settings.train.eval_every = settings.train.checkpoint_every = 48
    settings.rl.tasks = (  # the report's shares, in per cent
        ("data/rl/code_standard.jsonl", 20.3),
        ("data/rl/code_auxiliary.jsonl", 33.4),
        ("data/rl/math_standard.jsonl", 33.8),
        ("data/rl/math_aggregation.jsonl", 12.5),
    )
    settings.rl.verifier_seconds = 30.0  # ours: programs run in a sandbox
    settings.rl.length.coefficient = 1.0  # ours: the end of the report's ramp
    return settings
