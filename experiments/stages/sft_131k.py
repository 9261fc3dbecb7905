"""SFT of ZAYA1-8B: 660B tokens of 131K context, RoPE base 5M (report IV-A, Tables II and III)."""

from zaya_jax import config


def get_config():
    """From the end of midtraining. "Ours" marks what the report does not say."""
    model = config.Model(
        context_length=131_072,
        attention=config.Attention(rope_theta=5e6),
        activation_dtype="bfloat16",
        remat="full",
    )
    train = config.Train(
        init_from="runs/midtrain_32k",
        steps=39_339,  # of 16.8M tokens: 660B
        batch_size=128,  # ours: as many tokens as in pretraining
        sequence_length=131_072,
        eval_every=1000,
        checkpoint_every=500,
    )
    # Ours: from where midtraining ended, to a tenth.
    optim = config.Optim(kind="muon", learning_rate=2e-5, final_fraction=0.1, warmup_steps=500)
    data = config.Data(
        mixture=(  # Table II, in per cent
            ("data/sft/long_cot", 75.0),
            ("data/sft/web_synthetic_multilingual", 9.8),
            ("data/sft/long_context", 6.4),
            ("data/sft/code", 5.0),
            ("data/sft/math_stem", 2.6),
            ("data/sft/short_instructions", 1.2),
        ),
        packing="best_fit",  # of whole examples
    )
    return config.to_config_dict(
        config.Experiment(
            name="sft_131k",
            model=model,
            data=data,
            train=train,
            optim=optim,
            mesh="data=128,context=8",  # 1,024 MI300X, 8 context ranks as the report
        )
    )
