"""Does RL on verified answers beat imitation, and which of its parts matter in small?

    python launch.py sweep --config=experiments/ablations/rl_sft.py --workdir=runs/results/rl_sft
    python launch.py sweep --config=experiments/ablations/rl.py --workdir=runs/results/rl
"""

from experiments.rl import chain_sum
from zaya_jax import config

REPORT = "ZAYA1-8B report, section IV"
OURS = "ours, as a question"


def get_config(sft: str = "runs/results/rl_sft"):
    """Every seed begins with the run of its own seed in the sweep `sft` (`rl_sft.py`); the arms
    "sft" and "longer sft" are those runs, scored."""
    settings = chain_sum.get_config("rl")
    settings.train.init_from = f"{sft}/trials/000/seed-{{seed}}"
    longer = f"{sft}/trials/001/seed-{{seed}}"
    sweep = config.Sweep(
        name="rl",
        about="Does reinforcement learning on verified answers beat imitation, and more of it? And "
        "what do MaxRL, router replay, the trust region and the length reward change in small?",
        file="experiments/rl/chain_sum.py:rl",
        base=config.freeze(settings),
        search="arms",
        arms={
            "sft": config.nested({"train.steps": 0}),
            "longer sft": config.nested({"train.steps": 0, "train.init_from": longer}),
            "maxrl": {},
            "grpo": config.nested({"rl.loss.advantage": "grpo"}),
            "no replay": config.nested({"rl.loss.replay": False}),
            "no trust region": config.nested({"rl.loss.trust_region": False}),
            "length reward": config.nested(
                {"rl.length.coefficient": 0.5, "rl.length.tolerance": 4}
            ),
        },
        seeds=(0, 1, 2),
        objective="heldout_accuracy",
        measures=("solve_rate", "heldout_length", "disagreement", "seconds"),
        claims=(
            ("heldout_accuracy", "maxrl", "sft", REPORT),
            ("heldout_accuracy", "maxrl", "longer sft", REPORT),
            ("heldout_accuracy", "maxrl", "grpo", "MaxRL, and report IV-B"),
            ("disagreement", "maxrl", "no replay", "report, figure 6"),
            ("heldout_accuracy", "maxrl", "no replay", OURS),
            ("heldout_accuracy", "maxrl", "no trust region", OURS),
            ("heldout_length", "length reward", "maxrl", "report, equations 8 to 10"),
        ),
    )
    return config.sweep_to_config_dict(sweep)
