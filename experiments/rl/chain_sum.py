"""Sums in a minute: supervised fine-tuning on demonstrations, then RL on right answers.

    python launch.py train --config=experiments/rl/chain_sum.py:sft --workdir=runs/sums/sft
    python launch.py rl --config=experiments/rl/chain_sum.py:rl --workdir=runs/sums/rl

Most of the demonstrations (`zaya_jax/rl/demonstrations.py`) are hasty and wrong, some worked out
and right. Needs requirements-rl.txt.
"""

from zaya_jax import config
from zaya_jax.config import rl

STAGES = ("sft", "rl")
TASKS = 'reasoning_gym:chain_sum?{"min_terms": 4, "max_terms": 4, "min_digits": 1, "max_digits": 1}'


def get_config(stage: str = "rl"):
    """An experiment by its stage: `sft`, or `rl` from the end of the other."""
    if stage not in STAGES:
        raise ValueError(f"no stage {stage!r}; there are: {', '.join(STAGES)}")
    model = config.Model(
        vocab_size=512,
        hidden_size=64,
        num_layers=3,
        expert_width=64,
        context_length=1024,  # prompts of Markovian RSA are longer
        init_std=0.06,
        pad_id=0,
        bos_id=2,
        eos_id=1,
        attention=config.Attention(heads=4, kv_heads=2, head_dim=16, rope_theta=1e4),
        router=config.Router(experts=4, width=32),
        layers="unroll",
    )
    data = config.Data(
        source="zaya_jax.rl.demonstrations:chain_sum",
        format="chat",
        packing="best_fit",
        heldout_max_bytes=100_000,
    )
    sft = config.Experiment(
        name="sums-sft",
        model=model,
        data=data,
        train=config.Train(
            steps=800,
            batch_size=32,
            sequence_length=128,
            log_every=10,
            eval_every=200,
            checkpoint_every=400,
            keep_checkpoints=1,
        ),
        optim=config.Optim(
            kind="muon", learning_rate=1.2e-2, warmup_steps=40, final_fraction=0.05, eps=1e-5
        ),
        balance=config.Balance(rate=2e-3),
    )
    if stage == "sft":
        return config.to_config_dict(sft)
    return config.to_config_dict(
        config.Experiment(
            name="sums-rl",
            model=model,
            data=data,
            train=config.Train(
                init_from="runs/sums/sft",
                steps=16,
                sequence_length=128,
                log_every=4,
                eval_every=8,
                checkpoint_every=8,
                keep_checkpoints=1,
            ),
            # As in the report: momentum-free Muon, one rate, biases of balance held.
            optim=config.Optim(
                kind="muon",
                learning_rate=1e-3,
                schedule="constant",
                warmup_steps=0,
                weight_decay=0.0,
                muon=config.Muon(momentum=0.0),
            ),
            balance=config.Balance(kind="none"),
            rl=rl.RL(
                tasks=((TASKS, 1.0),),
                heldout=256,
                prompts=16,
                group=8,
                max_prompt=64,
                max_tokens=80,
                concurrent=128,
                microbatch_tokens=256,
                microbatch_rows=16,
                verifier_seconds=30.0,
            ),
        )
    )
