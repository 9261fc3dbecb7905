"""A GRPOTrainer of trl on a tiny model, and what goes through it."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.data.tokenizer import train_bpe


class Record(NamedTuple):
    """What trl makes of rollouts, and one update with them.

    Attributes:
        rewards: [N], NaN where there is none.
        scored: [N], their advantages.
        advantages: [N], of the rollouts as the update has them, in another order.
        logprob, old, mask, gradient: [N, T], of their tokens.
    """

    rewards: np.ndarray
    scored: np.ndarray
    advantages: np.ndarray
    logprob: np.ndarray
    old: np.ndarray
    mask: np.ndarray
    loss: float
    gradient: np.ndarray
    max_completion_length: int


def recorded_step(folder: Path, reward: Any, *, loss_type: str, group: int) -> Record:
    """Trains two steps on one batch of rollouts and returns what the second one saw."""
    import datasets
    import torch
    import transformers
    import trl

    train_bpe(["def f(x):\n    return x\n" * 30], 280).save(folder / "tokenizer")
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder / "tokenizer")
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    seen: dict[str, Any] = {}

    class Recorder(trl.GRPOTrainer):
        def _calculate_rewards(self, *args: Any) -> Any:
            seen["rewards"] = super()._calculate_rewards(*args)
            return seen["rewards"]

        def _generate_and_score_completions(self, inputs: Any) -> Any:
            found = super()._generate_and_score_completions(inputs)
            seen["scored"] = found["advantages"]  # in the order of the rewards; shuffled later
            return found

        def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(*args, **options)
            if torch.is_grad_enabled():
                seen["logprob"] = found[0]
            return found

        def _compute_loss(self, model: Any, inputs: Any) -> Any:
            loss = super()._compute_loss(model, inputs)
            (gradient,) = torch.autograd.grad(loss, seen["logprob"], retain_graph=True)
            seen.update(inputs=inputs, loss=loss.item(), gradient=gradient)
            return loss

    count = 4 * group
    trainer = Recorder(
        model=model,
        processing_class=tokenizer,
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_dict({"prompt": ["def", "x", "f(", "return"] * 2}),
        args=trl.GRPOConfig(
            output_dir=str(folder),
            per_device_train_batch_size=count,
            num_generations=group,
            num_iterations=2,
            max_steps=2,
            max_completion_length=8,
            # Else nothing would end before its time, and all completions be as long.
            generation_kwargs={"sequence_bias": [[[tokenizer.eos_token_id], 4.0]]},
            loss_type=loss_type,
            epsilon=1e9,
            epsilon_high=1e9,
            beta=0.0,
            learning_rate=3e-2,
            lr_scheduler_type="constant",
            report_to=[],
            save_strategy="no",
            disable_tqdm=True,
            use_cpu=True,
            bf16=False,
            seed=1,
        ),
    )
    trainer.train()
    inputs = seen["inputs"]
    return Record(
        rewards=seen["rewards"][:, 0].numpy(),
        scored=seen["scored"].reshape(-1).numpy(),
        advantages=inputs["advantages"].reshape(-1).numpy(),
        logprob=seen["logprob"].detach().numpy(),
        old=inputs["old_per_token_logps"].numpy(),
        mask=inputs["completion_mask"].numpy().astype(np.float32),
        loss=seen["loss"],
        gradient=seen["gradient"].numpy(),
        max_completion_length=8,
    )
