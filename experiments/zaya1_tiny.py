"""The demo: a ZAYA that two CPU cores train on Python's own sources in minutes."""

from zaya_jax import config


def get_config():
    """Two layers: within minutes, tokens seen are worth more than depth."""
    model = config.Model(
        vocab_size=2048,
        hidden_size=128,
        num_layers=2,
        expert_width=256,
        context_length=512,
        pad_id=0,
        bos_id=2,
        eos_id=1,
        attention=config.Attention(heads=4, kv_heads=2, head_dim=32, rope_theta=1e4),
        router=config.Router(experts=8, width=64),
        layers="unroll",
    )
    return config.to_config_dict(
        config.Experiment(
            name="zaya1_tiny",
            model=model,
            data=config.Data(heldout_max_bytes=250_000),
            train=config.Train(
                steps=600,
                batch_size=8,
                sequence_length=256,
                eval_every=200,
                checkpoint_every=200,
            ),
            # A router's first gradients are tiny. A larger eps keeps Adam from blowing them up,
            # which at this rate drives routers to give all weight to the skip class, and so to die.
            # Muon takes care of the routers' matrices itself; AdamW has the rest of them.
            optim=config.Optim(
                kind="muon", learning_rate=1.2e-2, warmup_steps=40, final_fraction=0.05, eps=1e-5
            ),
            # Faster than in a long run: there are only hundreds of steps to balance in.
            balance=config.Balance(rate=5e-3),
        )
    )
