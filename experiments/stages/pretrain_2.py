"""Phase 2 of ZAYA1-8B: 4T tokens with more code, mathematics and instructions (Tables II, III)."""

from zaya_jax import config


def get_config():
    """From the end of phase 1. "Ours" marks what the report does not say."""
    model = config.Model(
        context_length=4096,
        attention=config.Attention(rope_theta=1e4),
        activation_dtype="bfloat16",
        remat="full",
    )
    train = config.Train(
        init_from="runs/pretrain_1",
        steps=238_419,  # of 16.8M tokens: 4.0T
        batch_size=4096,
        sequence_length=4096,
        eval_every=2000,
        checkpoint_every=500,
    )
    # Ours: from where phase 1 ended to a tenth of its peak.
    optim = config.Optim(kind="muon", learning_rate=2e-4, final_fraction=0.3, warmup_steps=500)
    # Every phase holds long reasoning, AP-trimmed to the context; the shares are not published.
    data = config.Data(
        mixture=(("data/pretrain_2/text", 80.0), ("data/pretrain_2/long_cot", 20.0)),  # ours
        packing="best_fit",
    )
    return config.to_config_dict(
        config.Experiment(
            name="pretrain_2",
            model=model,
            data=data,
            train=train,
            optim=optim,
            mesh="data=1024",  # 1,024 MI300X, ZeRO-1 alone as the report
        )
    )
