"""`midtrain_32k` in a minute on two CPU cores: four times the context, a larger RoPE base."""

from zaya_jax import config


def get_config():
    """From the end of `pretrain_tiny`, on the same sources in longer rows."""
    model = config.open_model(context_length=1024, attention={"rope_theta": 1e5})
    return config.to_config_dict(
        config.Experiment(
            name="midtrain_tiny",
            model=model,
            data=config.Data(heldout_max_bytes=250_000),
            train=config.Train(
                init_from="runs/pretrain_tiny",
                steps=100,
                batch_size=2,
                sequence_length=1024,
                eval_every=100,
                checkpoint_every=100,
            ),
            optim=config.Optim(
                kind="muon", learning_rate=3e-3, warmup_steps=10, final_fraction=0.1, eps=1e-5
            ),
            balance=config.Balance(rate=1e-3),
        )
    )
