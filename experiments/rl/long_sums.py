"""Sums that do not fit a rollout's budget: what Markovian RSA is for, in small.

    python launch.py train --config=experiments/rl/long_sums.py:sft --workdir=runs/long_sums/sft
    python launch.py rl --config=experiments/rl/long_sums.py:score --workdir=runs/long_sums/rsa

The first learns to work sums out and to go on with attempts at them (`zaya_jax/rl/long_sums.py`);
the second scores it on held-out tasks by `rl.scoring`. Needs requirements-rl.txt.
"""

from experiments.rl import chain_sum

STAGES = ("sft", "score")
TASKS = 'reasoning_gym:chain_sum?{"min_terms": 5, "max_terms": 6, "min_digits": 1, "max_digits": 1}'
BUDGET, TAIL = 32, 32
"""Tokens of a rollout, less than any whole solution takes, and of what is carried on."""


def get_config(stage: str = "score"):
    """An experiment by its stage: `sft`, or `score` of its end."""
    if stage not in STAGES:
        raise ValueError(f"no stage {stage!r}; there are: {', '.join(STAGES)}")
    settings = chain_sum.get_config("sft" if stage == "sft" else "rl")
    settings.name = f"long-sums-{stage}"
    settings.data.source = "zaya_jax.rl.long_sums:demonstrations"
    if stage == "sft":
        settings.train.sequence_length = 256
        settings.train.batch_size = 24
        settings.train.steps = 800
        settings.train.checkpoint_every = 400
        settings.train.eval_every = 200
        return settings
    settings.train.init_from = "runs/long_sums/sft"
    settings.train.steps = 0
    settings.rl.tasks = ((TASKS, 1.0),)
    settings.rl.heldout = 64
    settings.rl.max_prompt = 96
    settings.rl.max_tokens = 96
    settings.rl.microbatch_tokens = 512
    scoring = settings.rl.scoring
    scoring.population, scoring.candidates, scoring.rounds = 4, 3, 3
    scoring.tail, scoring.budget = TAIL, BUDGET
    scoring.template = "zaya_jax/rl/long_sums.jinja"
    return settings
