"""Preference pairs and the model of rewards that is learnt from them."""

import dataclasses
import functools
import io
import json
import random

import jax
import numpy as np
import pytest

from tests.train.conftest import MODEL
from zaya_jax.config import Balance, Data, Experiment, Optim, Train
from zaya_jax.config.rl import RL, Loss, Preference
from zaya_jax.errors import UserError
from zaya_jax.model import functional
from zaya_jax.rl.generation import Finished
from zaya_jax.rl.judging import judge
from zaya_jax.rl.preference import pairs, reward, stdlib_pairs, train
from zaya_jax.rl.preference.judge import RewardModel
from zaya_jax.rl.rewards.interface import Submission, Task
from zaya_jax.rl.rewards.score import Scorer
from zaya_jax.rl.rollout import Rollout
from zaya_jax.train import metrics
from zaya_jax.train.loop import train as pretrain
from zaya_jax.train.progress import Progress


def write(file, rows):
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ([], "line 1: a list; expected an object"),
        ({**GOOD, "rejected": " a "}, "line 1: chosen and rejected are the same text"),
        ({**GOOD, "chosen": ""}, "line 1: chosen is ''"),
        ({"chosen": "a", "rejected": "b"}, "line 1: prompt is None"),
        ({**GOOD, "prompt": [{"role": "assistant", "content": "x"}]}, "ends with a message of"),
        ({**GOOD, "prompt": [{"role": "judge", "content": "x"}]}, r"prompt\[0\]: expected"),
    ],
)
def test_malformed_pairs_are_refused_in_words(tmp_path, row, words):
    with pytest.raises(UserError, match=words):
        list(pairs.read_pairs(write(tmp_path / "pairs.jsonl", [row])))


def test_pairs_of_a_prompt_are_in_one_part():
    made = [pairs.Pair(({"role": "user", "content": f"p{i % 50}"},), "a", "b") for i in range(200)]
    learnt, heldout = pairs.divide(made, 0.2)
    asked = [{p.messages[0]["content"] for p in part} for part in (learnt, heldout)]
    assert not asked[0] & asked[1] and 2 <= len(asked[1]) <= 20
    again, _ = pairs.divide(made[:100], 0.2)  # other pairs change nothing
    assert {p.messages[0]["content"] for p in again} <= asked[0]
    with pytest.raises(UserError, match="held out; give more pairs"):
        pairs.divide(made[:1], 0.5)


def test_made_pairs_cannot_be_told_by_length():
    made = pairs.of("zaya_jax.rl.preference.stdlib_pairs:pairs")
    signs = np.array([np.sign(len(p.chosen) - len(p.rejected)) for p in made])
    assert len(made) > 1000 and abs(signs.mean()) < 0.1
    assert stdlib_pairs.LONGEST >= max(len(p.chosen) for p in made)
    with pytest.raises(UserError, match="no such file"):
        pairs.of("nowhere.jsonl")
    with pytest.raises(UserError, match="names no function"):
        pairs.of("zaya_jax.rl.preference.stdlib_pairs:nothing")


def test_a_reward_is_the_last_positions_and_padding_changes_nothing():
    model = dataclasses.replace(MODEL, vocab_size=64)
    params, biases = functional.init(model, jax.random.key(0))
    rewards = jax.jit(functools.partial(reward.rewards, model))
    tokens = np.arange(24, dtype=np.int32).reshape(2, 12) + 3
    lengths = np.array([7, 12], np.int32)
    found, counts = rewards(params, biases, tokens, lengths)
    other = tokens.copy()
    other[0, 7:] = 0
    np.testing.assert_array_equal(rewards(params, biases, other, lengths)[0], found)
    other[0, 6] = 50
    assert rewards(params, biases, other, lengths)[0][0] != found[0]

    @jax.jit
    def logits_of(tokens):
        decoder = functional.merge(model, params, biases)
        return decoder.logits(decoder(tokens).hidden)

    logits = logits_of(tokens[1:])
    np.testing.assert_allclose(found[1], logits[0, -1, model.pad_id], rtol=1e-5)
    assert counts.sum() == 19  # padding chooses nothing

    both = np.concatenate([tokens, tokens[::-1]])
    both_lengths = np.concatenate([lengths, lengths[::-1]])
    told = jax.jit(functools.partial(reward.pair_loss, model))(params, biases, both, both_lengths)
    margin = float(found[0] - found[1])
    np.testing.assert_allclose(told.margin, 0, atol=1e-6)
    np.testing.assert_allclose(
        told.loss, np.mean([np.logaddexp(0, -margin), np.logaddexp(0, margin)]), rtol=1e-5
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A model of rewards that prefers one letter to another; length and prompt tell nothing."""
    root, chance = tmp_path_factory.mktemp("preference"), random.Random(0)
    chats, rows = [], []
    for _ in range(240):
        prompt = f"say {chance.randrange(100)}"
        good, bad = ("a" * chance.randrange(1, 9) for _ in range(2))
        rows.append({"prompt": prompt, "chosen": f"{good}!", "rejected": f"{bad}?"})
        turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": good}]
        chats.append({"messages": turns})
    data = Data(
        source=str(write(root / "chats.jsonl", chats)),
        format="chat",
        packing="best_fit",
        heldout_fraction=0.1,
        cache_dir=str(root / "cache"),
    )
    start = Experiment(
        model=dataclasses.replace(MODEL, vocab_size=300),
        data=data,
        train=Train(steps=2, batch_size=4, sequence_length=48, eval_every=2, checkpoint_every=2),
        optim=Optim(learning_rate=1e-2, warmup_steps=1),
    )
    pretrain(start, root / "start", Progress(2, io.StringIO()))
    experiment = dataclasses.replace(
        start,
        name="rewards",
        train=Train(
            init_from=str(root / "start"),
            steps=24,
            batch_size=8,
            sequence_length=48,
            log_every=1,
            eval_every=24,
            checkpoint_every=8,
        ),
        optim=Optim(learning_rate=5e-3, warmup_steps=2),
        balance=Balance(kind="none"),
        preference=Preference(str(write(root / "pairs.jsonl", rows)), heldout_fraction=0.2),
    )
    folder = root / "rewards"
    outcome = train.run(experiment, folder, Progress(24, io.StringIO()))
    return experiment, folder, outcome


def test_it_orders_held_out_pairs_better_than_length(trained):
    outcome = trained[2]
    assert outcome.step == 24 and outcome.interrupted is None
    assert outcome.accuracy > 0.95 > 0.75 > outcome.by_length


@pytest.mark.slow
def test_a_run_goes_on_from_its_checkpoint(trained, tmp_path):
    experiment, folder, _ = trained
    half = dataclasses.replace(experiment, train=dataclasses.replace(experiment.train, steps=16))
    quiet = Progress(24, io.StringIO())
    # A constant rate: another number of steps would have another schedule.
    whole, part = (
        dataclasses.replace(e, optim=dataclasses.replace(e.optim, schedule="constant"))
        for e in (experiment, half)
    )
    train.run(part, tmp_path, quiet)
    train.run(whole, tmp_path, quiet)
    steps = [r["step"] for r in metrics.read(tmp_path) if "loss" in r]
    assert steps == list(range(1, 25))
    train.run(whole, tmp_path / "whole", quiet)
    last = [[r["loss"] for r in metrics.read(f) if "loss" in r][-1] for f in
            (tmp_path, tmp_path / "whole")]  # fmt: skip
    assert last[0] == last[1]


def test_the_gate_zeroes_what_its_verifier_fails(trained):
    """A fluent answer that breaks the instruction earns less than a clumsy one that keeps it."""
    model = RewardModel(trained[1])
    task = Task("say 5", "7", "exact", "test", "0")
    right = "<answer>7</answer>"
    texts = ["aa!", f"{right}aa?", f"{right}aa!", f"<think>7 a!</think>{right}aa?"]
    submissions = tuple(Submission(text, "7") for text in texts)
    plain = model(["say 5"] * 4, submissions)
    assert ((plain > 0) & (plain < 1)).all() and plain[0] > plain[1] and plain[2] > plain[1]
    assert plain[3] == plain[1]  # thinking is not judged
    assert model(["p"], [Submission("a!" * 60, "7")])[0] == 0  # longer than it knows

    ids = np.arange(3, dtype=np.int32)
    rollout = Rollout(ids, ids, np.zeros(3, np.float32), np.zeros(3, np.int32), "eos", None)
    group = Finished(task, 0, (rollout,) * 4, submissions)
    with Scorer(seconds=60.0) as scorer:
        judged = judge([group], scorer, model)
    found = judged.groups[0].rewards
    assert found[0] == 0 and found[2] > found[1] > 0
    assert len(judged.kept) == 1


def test_what_is_no_reward_model_is_refused(trained, tmp_path):
    experiment, _, _ = trained
    with pytest.raises(UserError, match="it is no run of"):
        RewardModel(experiment.train.init_from)
    none = dataclasses.replace(experiment, preference=Preference())
    with pytest.raises(UserError, match="name a file of pairs"):
        train.run(none, tmp_path)
    tight = dataclasses.replace(
        experiment, train=dataclasses.replace(experiment.train, sequence_length=8)
    )
    with pytest.raises(UserError, match="longer than train.sequence_length"):
        train.run(tight, tmp_path / "tight", Progress(1, io.StringIO()))


def test_scores_have_no_solve_rate():
    from zaya_jax import config

    stage = Experiment(rl=RL(reward_model="runs/rewards", loss=Loss(advantage="maxrl")))
    with pytest.raises(UserError, match="take 'grpo'"):
        config.from_dict(config.to_dict(stage))
