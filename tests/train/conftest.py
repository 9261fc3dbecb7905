"""A run that takes a second: a layer of 32 channels on a page of text."""

import dataclasses
import io

import numpy as np
import pytest

from zaya_jax.config import Attention, Data, Experiment, Model, Optim, Router, Train
from zaya_jax.data import Batch
from zaya_jax.train.progress import Progress

MODEL = Model(
    vocab_size=300,
    hidden_size=32,
    num_layers=1,  # what a run does with its state is the same at any depth
    expert_width=32,
    context_length=64,
    pad_id=0,
    eos_id=1,
    bos_id=2,
    attention=Attention(heads=2, kv_heads=1, head_dim=16),
    router=Router(experts=4, width=16),
    layers="unroll",
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of small Python files."""
    folder = tmp_path_factory.mktemp("corpus")
    for i in range(12):
        lines = [f"def f{j}(x, y={i}):\n    return x * {j} + y\n" for j in range(40)]
        (folder / f"m{i:02}.py").write_text("\n\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def experiment(corpus, tmp_path_factory) -> Experiment:
    return Experiment(
        name="test",
        model=MODEL,
        data=Data(
            source=str(corpus),
            heldout_fraction=0.2,
            heldout_max_bytes=4000,
            cache_dir=str(tmp_path_factory.mktemp("cache")),
        ),
        train=Train(
            steps=6,
            batch_size=2,
            sequence_length=32,
            log_every=1,
            eval_every=3,
            checkpoint_every=2,
            keep_checkpoints=3,
        ),
        optim=Optim(learning_rate=1e-2, warmup_steps=2),
    )


@pytest.fixture
def batch() -> Batch:
    """Two documents a row in 2 x 32, some padding at the end of the second row."""
    rng = np.random.default_rng(0)
    segments = np.ones((2, 32), np.int32)
    segments[:, 13:] = 2
    segments[1, 27:] = 0
    positions = np.where(segments == 2, np.arange(32) - 13, np.arange(32)) * (segments > 0)
    weights = (segments > 0).astype(np.float32)
    weights[:, 12] = weights[0, 31] = weights[1, 26] = 0
    return Batch(
        tokens=np.where(segments > 0, rng.integers(3, 300, (2, 32)), 0).astype(np.int32),
        targets=rng.integers(3, 300, (2, 32)).astype(np.int32),
        segment_ids=segments,
        positions=positions.astype(np.int32),
        loss_weights=weights,
    )


@pytest.fixture(scope="session")
def changed(experiment):
    """The experiment with other values in one section: `changed("train", steps=3)`."""

    def change(section: str, base: Experiment = experiment, **fields) -> Experiment:
        part = dataclasses.replace(getattr(base, section), **fields)
        return dataclasses.replace(base, **{section: part})

    return change


class Log(Progress):
    """Keeps what is told, and does something when a line of interest comes by."""

    def __init__(self, at: str = "\0", do=None, steps: int = 6):
        self.text = io.StringIO()
        self.at, self.do = at, do
        super().__init__(steps, self.text)

    def say(self, text):
        super().say(text)
        if self.at in text:
            self.do()


@pytest.fixture(scope="session")
def listener():
    """Makes a `Log`: `listener()`, or `listener("step 3", do)` to do something at that line."""
    return Log
