"""What stages of RL start from, computed once for all tests."""

import dataclasses
import fcntl
import io
import json
import os
import random
from pathlib import Path

import pytest

from tests.train.conftest import MODEL
from zaya_jax.config import Balance, Data, Experiment, Optim, Train
from zaya_jax.config.rl import RL
from zaya_jax.train.loop import train
from zaya_jax.train.progress import Progress


def quiet() -> Progress:
    return Progress(4, io.StringIO())


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """A model of a digit's copy that is right half of the time, and tasks about it. Whichever of
    pytest's workers comes first trains it."""
    base = tmp_path_factory.getbasetemp()
    root = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "rl"
    root.mkdir(exist_ok=True)
    sft = _sft(root)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (root / "done").exists():
            _write(root)
            train(sft, root / "sft", quiet())
            (root / "done").touch()
    return _stage(sft, root)


def _write(root: Path) -> None:
    rng = random.Random(0)
    with (root / "sft.jsonl").open("w") as file:
        for i in range(400):
            answer = rng.choice([i % 10, rng.randrange(10)])
            turns = [
                {"role": "user", "content": f"copy {i % 10}"},
                {"role": "assistant", "content": f"<answer>{answer}</answer>"},
            ]
            file.write(json.dumps({"messages": turns}) + "\n")
    with (root / "tasks.jsonl").open("w") as file:
        for i in range(30):
            line = {"prompt": f"copy {i % 10}", "answer": str(i % 10), "verifier": "exact"}
            file.write(json.dumps(line) + "\n")


def _sft(root: Path) -> Experiment:
    data = Data(
        source=str(root / "sft.jsonl"),
        format="chat",
        packing="best_fit",
        heldout_fraction=0.1,
        cache_dir=str(root / "cache"),
    )
    return Experiment(
        name="sft",
        model=dataclasses.replace(MODEL, vocab_size=320, context_length=128),
        data=data,
        train=Train(steps=60, batch_size=8, sequence_length=64, eval_every=60, checkpoint_every=60),
        optim=Optim(learning_rate=1e-2, warmup_steps=5),
    )


def _stage(sft: Experiment, root: Path) -> Experiment:
    return dataclasses.replace(
        sft,
        name="rl",
        train=Train(
            init_from=str(root / "sft"),
            steps=4,
            sequence_length=64,
            log_every=1,
            eval_every=4,
            checkpoint_every=2,
        ),
        optim=Optim(learning_rate=5e-4, warmup_steps=0, schedule="constant"),
        balance=Balance(kind="none"),
        rl=RL(
            tasks=((str(root / "tasks.jsonl"), 1.0),),
            heldout=0,
            prompts=2,
            group=6,
            max_prompt=40,
            max_tokens=24,
            concurrent=24,
            microbatch_tokens=128,
            verifier_seconds=60.0,
        ),
    )
