"""`sft_131k` in a minute on two CPU cores: tasks about functions, answered with their code."""

from zaya_jax import config


def get_config():
    """From the end of `midtrain_tiny`, on conversations made of Python's own sources."""
    return config.to_config_dict(
        config.Experiment(
            name="sft_tiny",
            model=config.open_model(),
            data=config.Data(source="stdlib-chat", packing="best_fit", heldout_max_bytes=250_000),
            train=config.Train(
                init_from="runs/midtrain_tiny",
                steps=100,
                batch_size=2,
                sequence_length=1024,
                eval_every=100,
                checkpoint_every=100,
            ),
            optim=config.Optim(
                kind="muon", learning_rate=2e-3, warmup_steps=10, final_fraction=0.1, eps=1e-5
            ),
            balance=config.Balance(rate=1e-3),
        )
    )
