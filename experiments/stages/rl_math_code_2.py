"""The third stage goes on for ZAYA1-8B: 464 updates on a harder mixture (IV-B)."""

from experiments.stages import rl_math_code


def get_config():
    """From the end of `rl_math_code.py`, as it is but for more aggregation."""
    settings = rl_math_code.get_config()
    settings.name = "rl_math_code_2"
    settings.train.init_from = "runs/rl_math_code"
    settings.train.steps = 464
    settings.train.eval_every = settings.train.checkpoint_every = 58
    settings.rl.tasks = (  # the report's shares, in per cent
        ("data/rl/code_standard_2.jsonl", 31.4),
        ("data/rl/code_auxiliary_2.jsonl", 26.8),
        ("data/rl/math_standard_2.jsonl", 22.5),
        ("data/rl/math_aggregation_2.jsonl", 19.4),
    )
    return settings
