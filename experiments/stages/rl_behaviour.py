"""The cascade's last stage for ZAYA1-8B: 384 updates of behavioural RL (IV-E)."""

from experiments.stages import rl_warmup


def get_config():
    """From the end of mathematics and code: GRPO on scores of a reward model, gated by checks."""
    settings = rl_warmup.get_config()
    settings.name = "rl_behaviour"
    settings.train.init_from = "runs/rl_math_code_2"
    settings.train.steps = 384
    settings.train.eval_every = settings.train.checkpoint_every = 48
    settings.optim.learning_rate = 2e-6  # the least of the report's range, as it says of this stage
    settings.rl.tasks = (  # ours, evenly: the report takes one after the other, an epoch each
        ("data/rl/helpsteer.jsonl", 1.0),  # verifier "any"
        ("data/rl/instructions.jsonl", 1.0),  # IFEval's and IFBench's checkers
    )
    settings.rl.reward_model = "runs/reward_model"
    settings.rl.loss.advantage = "grpo"
    settings.rl.length.coefficient = 0.0
    return settings
