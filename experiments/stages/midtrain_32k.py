"""Midtraining of ZAYA1-8B: 1.2T tokens of 32K context, RoPE base 1M (report Tables II, III)."""

from zaya_jax import config


def get_config():
    """From the end of pretraining. "Ours" marks what the report does not say."""
    model = config.Model(
        context_length=32_768,
        attention=config.Attention(rope_theta=1e6),
        activation_dtype="bfloat16",
        remat="full",
    )
    train = config.Train(
        init_from="runs/pretrain_2",
        steps=71_526,  # of 16.8M tokens: 1.2T
        batch_size=512,  # ours: as many tokens as in pretraining
        sequence_length=32_768,
        eval_every=1000,
        checkpoint_every=500,
    )
    # Ours: from where pretraining ended, to a third.
    optim = config.Optim(kind="muon", learning_rate=6e-5, final_fraction=1 / 3, warmup_steps=500)
    data = config.Data(
        mixture=(  # Table II, in per cent
            ("data/midtrain/long_cot", 86.1),
            ("data/midtrain/web_synthetic_multilingual", 5.7),
            ("data/midtrain/code", 3.0),
            ("data/midtrain/math_stem", 3.0),
            ("data/midtrain/short_instructions", 1.4),
            ("data/midtrain/long_context", 0.8),
        ),
        packing="best_fit",  # of whole examples, AP-trimmed to 32K
    )
    return config.to_config_dict(
        config.Experiment(
            name="midtrain_32k",
            model=model,
            data=data,
            train=train,
            optim=optim,
            mesh="data=512,context=2",  # 1,024 MI300X, 2 context ranks as the report
        )
    )
