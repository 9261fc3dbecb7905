"""Fine-tunes the weights of `train.init_from` on conversations, by adapters.

    python launch.py train --config=experiments/stages/sft_lora.py --workdir=RUN \\
        --config.train.init_from=FOLDER --config.data.source=chat.jsonl
    python launch.py export --model=RUN --out=OUT

`--config.lora.rank=0 --config.model.param_dtype=float32` trains all parameters instead (at a tenth
of the learning rate).
"""

from zaya_jax import config


def get_config():
    """The model is the one it starts from; --config.model.FIELD changes a field on purpose."""
    model = config.open_model(layers="scan", remat="full", numerics="training")
    train = config.Train(
        init_from="checkpoints/ZAYA1-8B",
        steps=300,
        batch_size=8,
        sequence_length=2048,
        eval_every=50,
        checkpoint_every=50,
    )
    optim = config.Optim(learning_rate=2e-4, final_fraction=0.1, warmup_steps=10, weight_decay=0.01)
    data = config.Data(source="chat.jsonl", format="chat", packing="best_fit")
    lora = config.Lora(rank=16, alpha=32.0)
    return config.to_config_dict(
        config.Experiment(
            name="sft_lora", model=model, data=data, train=train, optim=optim, lora=lora
        )
    )
