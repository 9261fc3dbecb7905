"""Does Markovian RSA beat single rollouts, and a vote of as many tokens?

    python launch.py sweep --config=experiments/ablations/rsa_sft.py --workdir=runs/results/rsa_sft
    python launch.py sweep --config=experiments/ablations/rsa.py --workdir=runs/results/rsa
"""

from experiments.rl import long_sums
from zaya_jax import config

REPORT = "ZAYA1-8B report, section V"
WHOLE = 96
"""Tokens that any whole solution fits into."""


def get_config(sft: str = "runs/results/rsa_sft"):
    """Every seed scores the run of its own seed in the sweep `sft` (`rsa_sft.py`). Rollouts are
    short (32 tokens, about half of a solution) or whole."""
    settings = long_sums.get_config("score")
    settings.train.init_from = f"{sft}/trials/000/seed-{{seed}}"
    alone = {"rl.scoring.candidates": 1, "rl.scoring.rounds": 0}
    sweep = config.Sweep(
        name="rsa",
        about="With rollouts too short for a whole solution, how far does Markovian RSA get, "
        "beside votes of as many tokens, of short and of whole rollouts?",
        file="experiments/rl/long_sums.py:score",
        base=config.freeze(settings),
        search="arms",
        arms={
            "RSA": {},
            "RSA, C = 1": config.nested({"rl.scoring.candidates": 1}),
            "one short": config.nested({**alone, "rl.scoring.population": 1}),
            "vote of short": config.nested({**alone, "rl.scoring.population": 16}),
            "one whole": config.nested(
                {**alone, "rl.scoring.population": 1, "rl.scoring.budget": WHOLE}
            ),
            "vote of whole": config.nested(
                {**alone, "rl.scoring.population": 8, "rl.scoring.budget": WHOLE}
            ),
        },
        seeds=(0, 1, 2),
        objective="heldout_accuracy",
        measures=("heldout_decoded", "heldout_length", "heldout_prompt"),
        claims=(
            ("heldout_accuracy", "RSA", "one short", REPORT),
            ("heldout_accuracy", "RSA", "vote of short", REPORT),
            ("heldout_accuracy", "RSA", "RSA, C = 1", REPORT),
            ("heldout_accuracy", "RSA", "one whole", REPORT),
            ("heldout_accuracy", "RSA", "vote of whole", REPORT),
        ),
    )
    return config.sweep_to_config_dict(sweep)
