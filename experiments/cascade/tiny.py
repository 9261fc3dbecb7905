"""The cascade in small: supervised fine-tuning, four stages of RL, each on real environments.

    python launch.py cascade --workdir=runs/cascade

takes a model of half a million parameters through all of `STAGES` and scores it on all of `SETS`
after each. A single stage is an experiment like any other:

    python launch.py rl --config=experiments/cascade/tiny.py:curriculum --workdir=runs/one \
        --config.train.init_from=runs/cascade/warmup
"""

from experiments.rl import chain_sum, long_sums

STAGES = {
    "sft": "train",
    "warmup": "rl",
    "curriculum": "rl",
    "math_code": "rl",
    "rewards": "reward-model",
    "behaviour": "rl",
}
"""Names and verbs, in order. Each begins where the one before it ended, but `rewards`: a model of
rewards is no policy, and `behaviour` goes on behind `math_code`."""
SETS = ("sums", "long sums", "functions", "manners")
GRADED = (
    'reasoning_gym:chain_sum?{"min_terms": "2+d", "max_terms": "2+d", "min_digits": 1, '
    '"max_digits": 1}'
)
FUNCTIONS = "zaya_jax.rl.tiny.functions:tasks"
MANNERS = "zaya_jax.rl.tiny.manners:tasks"
AGGREGATION = "zaya_jax.rl.long_sums:tasks"


def get_config(stage: str = "warmup"):
    """An experiment by its stage; or by a set, a stage of no update that scores it."""
    if stage not in (*STAGES, *SETS):
        raise ValueError(f"no stage {stage!r}; there are: {', '.join((*STAGES, *SETS))}")
    if stage == "sft":
        return _sft()
    if stage == "rewards":
        return _rewards()
    settings = chain_sum.get_config("rl")
    settings.name = f"cascade-{stage.replace(' ', '-')}"
    settings.train.steps = 32
    settings.train.eval_every = settings.train.checkpoint_every = 8
    settings.data.source = "zaya_jax.rl.demonstrations:chain_sum"
    section = settings.rl
    section.heldout = 64
    if stage == "curriculum":
        # Its own held-out sums are of few terms, and most of them are demonstrated: what is learnt
        # about unseen tasks is told by SETS.
        section.tasks = ((GRADED, 1.0),)
        section.curriculum.rounds = 10
        section.max_prompt, section.max_tokens = 96, 128
    elif stage == "math_code":
        settings.train.steps = 24
        section.tasks = ((chain_sum.TASKS, 0.3), (FUNCTIONS, 0.4), (AGGREGATION, 0.3))
        section.heldout = 192  # a third of it are the sums that are scored
        section.max_prompt, section.max_tokens = 256, 128
        section.microbatch_tokens, section.microbatch_rows = 512, 8
        section.length.coefficient, section.length.tolerance = 0.2, 8
    elif stage == "behaviour":
        section.tasks = ((MANNERS, 1.0),)
        section.heldout = 32
        section.loss.advantage = "grpo"
        section.reward_model = "runs/cascade/rewards"
        settings.optim.learning_rate = 5e-4  # the least of all stages, as in the report
    elif stage in SETS:
        _score(settings, stage)
    return settings


def _sft():
    settings = chain_sum.get_config("sft")
    settings.name = "cascade-sft"
    settings.data.source = "stdlib"  # not used: a mixture stands in its place
    settings.data.mixture = (
        ("zaya_jax.rl.demonstrations:of_all_lengths", 5.0),
        ("zaya_jax.rl.long_sums:demonstrations", 3.0),
        ("zaya_jax.rl.tiny.functions:demonstrations", 1.0),
        ("zaya_jax.rl.tiny.manners:demonstrations", 1.0),
    )
    settings.train.sequence_length = 256
    settings.train.batch_size = 24
    settings.train.steps = 1000
    settings.train.checkpoint_every = 400
    settings.train.eval_every = 400
    return settings


def _rewards():
    settings = _sft()
    settings.name = "cascade-rewards"
    settings.train.init_from = "runs/cascade/sft"
    settings.train.steps = 60
    settings.train.batch_size = 16
    settings.train.sequence_length = 64
    settings.train.log_every = 5
    settings.train.eval_every = 30
    settings.train.checkpoint_every = 60
    settings.optim.learning_rate = 3e-3
    settings.optim.warmup_steps = 5
    settings.balance.kind = "none"
    settings.preference.pairs = "zaya_jax.rl.tiny.manners:pairs"
    settings.preference.heldout_fraction = 0.2
    return settings


def _score(settings, name: str) -> None:
    settings.train.steps = 0
    section = settings.rl
    if name == "long sums":
        section.tasks, section.heldout = ((long_sums.TASKS, 1.0),), 32
        scoring = section.scoring
        scoring.population, scoring.candidates, scoring.rounds = 4, 3, 3
        scoring.tail, scoring.budget = long_sums.TAIL, long_sums.BUDGET
        scoring.template = "zaya_jax/rl/long_sums.jinja"
    elif name != "sums":
        section.tasks = ((FUNCTIONS if name == "functions" else MANNERS, 1.0),)
        section.heldout = 32
    section.max_tokens = 128
