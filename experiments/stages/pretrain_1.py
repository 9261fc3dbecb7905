"""Phase 1 of ZAYA1-8B: 8T tokens of 4K context, RoPE base 10K (report Tables II and III)."""

from zaya_jax import config


def get_config():
    """From nothing. "Ours" marks what the report does not say."""
    model = config.Model(
        context_length=4096,
        attention=config.Attention(rope_theta=1e4),
        activation_dtype="bfloat16",  # over float32 parameters
        remat="full",
    )
    train = config.Train(
        steps=476_837,  # of 16.8M tokens: 8.0T
        batch_size=4096,  # App. B
        sequence_length=4096,
        log_every=10,
        eval_every=2000,  # ours, as the next
        checkpoint_every=500,
    )
    optim = config.Optim(
        kind="muon",  # Newton-Schulz in 5 iterations, AdamW's RMS; AdamW beside it
        learning_rate=6e-4,  # cosine to 2e-4
        final_fraction=1 / 3,
        warmup_steps=2000,  # ours, as momentum, betas, decay and clipping, by their defaults
    )
    # Web, code, mathematics and many languages; the shares are not published. Text is cut to rows:
    # ours. The tokenizer is that of the released weights.
    data = config.Data(source="data/pretrain_1", tokenizer="data/tokenizer/tokenizer.json")
    return config.to_config_dict(
        config.Experiment(
            name="pretrain_1",
            model=model,
            data=data,
            train=train,
            optim=optim,
            mesh="data=1024",  # 1,024 MI300X, ZeRO-1 alone as the report
        )
    )
