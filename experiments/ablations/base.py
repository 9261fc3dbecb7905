"""What the ablations vary: ZAYAs so small that two CPU cores train them in about a minute.

docs/results tells what each run took, and on what machine.
"""

from zaya_jax import config

SHAPES = ("experts", "dense", "recall")


def get_config(shape: str = "experts"):
    """An experiment by its shape: `--config=experiments/ablations/base.py:dense`.

    Args:
      shape: `experts`, three layers of sixteen experts, for what is asked of routers and balance;
        `dense`, two layers with a single expert, for what is asked of attention: what an arm lacks
        in parameters its only expert can make up for; `recall`, one layer, in which attention can
        only find what it has mixed into its keys itself.
    """
    if shape not in SHAPES:
        raise ValueError(f"no shape {shape!r}; there are: {', '.join(SHAPES)}")
    experts = shape == "experts"
    model = config.Model(
        vocab_size=267 if shape == "recall" else 1024,  # every character a token, or a BPE
        hidden_size=64,
        num_layers={"experts": 3, "dense": 2, "recall": 1}[shape],
        expert_width=32 if experts else 192,
        context_length=256,
        # 0.02 at the 8B's widths: a router of width 32 starts with gains like those of one of 256.
        init_std=0.06,
        pad_id=0,
        bos_id=2,
        eos_id=1,
        attention=config.Attention(heads=4, kv_heads=2, head_dim=16, rope_theta=1e4),
        router=config.Router(experts=16, width=32)
        if experts
        else config.Router(experts=1, kind="linear", skip="none"),
        layers="unroll",
    )
    train = config.Train(
        steps=240 if experts else 300,
        # Short rows: a batch of many documents has loads that can be even.
        batch_size=32 if experts else 16,
        sequence_length=64 if experts else 128,
        log_every=4,
        eval_every=120 if experts else 100,
        checkpoint_every=240 if experts else 300,
        keep_checkpoints=1,
    )
    return config.to_config_dict(
        config.Experiment(
            name=f"ablation-{shape}",
            model=model,
            data=config.Data(
                source="recall" if shape == "recall" else "stdlib", heldout_max_bytes=100_000
            ),
            train=train,
            # As in zaya1_tiny: a high rate, and an eps that keeps small routers alive under it.
            optim=config.Optim(
                kind="muon", learning_rate=1.2e-2, warmup_steps=40, final_fraction=0.1, eps=1e-5
            ),
            balance=config.Balance(rate=5e-3 if experts else 1e-3),
        )
    )
