"""The cascade's first stage for ZAYA1-8B: 232 updates on puzzles, mathematics and logic (IV-B)."""

from zaya_jax import config
from zaya_jax.config import rl


def get_config():
    """From the end of SFT. "Ours" marks what the report does not say."""
    train = config.Train(
        init_from="runs/sft_131k",
        steps=232,
        log_every=1,
        eval_every=29,
        checkpoint_every=29,
    )
    # Momentum-free Muon for matrices, as in all of the report's RL; ours: one rate of its 2e-6
    # to 1e-5, held.
    optim = config.Optim(
        kind="muon",
        learning_rate=1e-5,
        schedule="constant",
        warmup_steps=10,
        weight_decay=0.0,
        muon=config.Muon(momentum=0.0),
    )
    stage = rl.RL(
        tasks=(  # the report's shares, in per cent; files of {prompt, answer, verifier}
            ("data/rl/reasoning_core.jsonl", 54.4),
            ("data/rl/competition_math.jsonl", 31.2),
            ("data/rl/enigmata.jsonl", 14.4),
        ),
        concurrent=1024,  # ours, as is the pool: 15 rollouts of full length, or many short ones
        pool_gb=64.0,
        length=rl.Length(coefficient=0.1),  # ours: "small" in the report
    )
    return config.to_config_dict(
        config.Experiment(
            name="rl_warmup",
            model=config.open_model(),
            train=train,
            optim=optim,
            balance=config.Balance(kind="none"),
            rl=stage,
        )
    )
