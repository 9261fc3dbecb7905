"""A stage of RL, whole: a tiny model that half knows how to copy a digit learns to do it."""

import dataclasses
import json
import os
import signal
import time

import jax
import numpy as np
import pytest

from tests.rl.conftest import quiet
from zaya_jax.config import Lora
from zaya_jax.config.rl import Curriculum, Loss
from zaya_jax.errors import UserError
from zaya_jax.report import cli as report_cli
from zaya_jax.rl import calibration, collect, graded, loop, saved
from zaya_jax.rl.record import ROLLOUTS
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.sweep import measures, supervise
from zaya_jax.train import metrics
from zaya_jax.train.weights import restore_weights


class Killed(Exception):
    pass


def die_at(monkeypatch, update, stage, folder, wait=0.0):
    """Runs a stage that dies behind an update.

    wait: seconds before each update is made: generation ahead comes first then.
    """
    learn = loop._Stage._learn

    def die(self, batch):
        time.sleep(wait)
        learn(self, batch)
        if self.learner.updates == update:
            raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(loop._Stage, "_learn", die)
        with pytest.raises(Killed):
            loop.run(stage, folder, quiet())


@pytest.fixture(scope="module")
def done(start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "rl"
    return loop.run(start, folder, quiet()), folder


def test_a_stage_runs_and_tells_what_happened(done):
    outcome, folder = done
    assert outcome.step == 4 and outcome.interrupted is None
    updates = [record for record in metrics.read(folder) if "loss" in record]
    assert [record["step"] for record in updates] == [1, 2, 3, 4]
    for record in updates:
        assert 0 < record["solve_rate"] < 1 and record["staleness"] <= 2
        assert record["accepted"] and record["verifier_failures"] == 0
        assert 0 < record["passed"] == record["reward"] < 1
        ratio = record["generated_per_second"] / record["learnt_per_second"]
        assert record["generated_to_learnt"] == pytest.approx(ratio, rel=1e-6)
    groups = [json.loads(line) for line in (folder / ROLLOUTS).read_text().splitlines()]
    assert len(groups) == 4 and "copy" in groups[0]["prompt"]
    rewards = {response["reward"] for response in groups[0]["responses"]}
    assert rewards == {0.0, 1.0}


def test_trainer_and_engine_agree_on_what_was_sampled(done):
    """The first update learns from its own rollouts, whose routes it replays."""
    first = next(record for record in metrics.read(done[1]) if "loss" in record)
    assert first["staleness"] == 0 and first["masked"] == 0
    assert first["kl"] < 1e-8 and first["pearson"] > 1 - 1e-6


def test_a_stage_that_died_comes_to_the_same_batches(start, done, tmp_path, monkeypatch):
    die_at(monkeypatch, 3, start, tmp_path)
    assert saved.read(tmp_path, 2).numbers[0] > 0
    assert loop.run(start, tmp_path, quiet()).step == 4
    for one, other in zip(restore_weights(tmp_path)[1:], restore_weights(done[1])[1:], strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
    numbers = [[r["loss"] for r in metrics.read(f) if "loss" in r] for f in (tmp_path, done[1])]
    assert numbers[0] == numbers[1]


def test_adapters_learn_by_rl_too(start, tmp_path):
    """The engine samples from base and adapters merged; only the adapters change."""
    stage = dataclasses.replace(
        start, lora=Lora(rank=2), train=dataclasses.replace(start.train, steps=2)
    )
    assert loop.run(stage, tmp_path, quiet()).step == 2
    updates = [record for record in metrics.read(tmp_path) if "loss" in record]
    assert updates[0]["kl"] < 1e-8 and all(r["grad_norm"] > 0 for r in updates)


def test_a_stage_of_no_update_only_scores(start, tmp_path):
    experiment = dataclasses.replace(
        start,
        train=dataclasses.replace(start.train, steps=0),
        rl=dataclasses.replace(start.rl, heldout=3, loss=Loss(replay=False)),
    )
    outcome = loop.run(experiment, tmp_path, quiet())
    assert outcome.step == 0 and set(outcome.accuracy) == {0}
    assert supervise.finished(tmp_path, experiment)
    lines = measures.read(tmp_path, experiment)
    assert measures.heldout_accuracy(lines) == pytest.approx(outcome.accuracy[0])
    assert measures.solve_rate(lines) is None and measures.bits_per_byte(lines) is None
    page = report_cli.of([tmp_path])
    assert "of the held-out tasks are right after 0 updates" in page.opening[0].text


def test_the_page_of_a_stage_shows_rewards_and_rollouts_to_read(done):
    page = report_cli.of([done[1]])
    titles = [section.title for section in page.sections if section.parts]
    assert {"Generation and trainer", "Time", "Rollouts to read"} <= set(titles)
    assert "Curriculum" not in titles  # no task of it is graded
    rollouts = next(s for s in page.sections if s.title == "Rollouts to read")
    said = " ".join(part.text for part in rollouts.parts)
    assert "copy" in said and "reward 1" in said and "reward 0" in said
    assert page.results["most updates behind"] <= 2


def test_generation_ahead_is_deterministic_bounded_and_resumes(start, tmp_path, monkeypatch):
    """With overlap the next batch is sampled while one is learnt from, by weights one update older;
    what comes of it depends on no clock."""

    stage = dataclasses.replace(start, rl=dataclasses.replace(start.rl, overlap=True))
    whole = tmp_path / "whole"
    assert loop.run(stage, whole, quiet()).step == 4
    updates = [record for record in metrics.read(whole) if "loss" in record]
    assert [record["staleness"] for record in updates[:2]] == [0, 1]
    assert max(record["staleness"] for record in updates) <= stage.rl.staleness
    die_at(monkeypatch, 3, stage, tmp_path / "killed", wait=0.3)
    assert loop.run(stage, tmp_path / "killed", quiet()).step == 4
    again = [record for record in metrics.read(tmp_path / "killed") if "loss" in record]
    assert [r["loss"] for r in again] == [r["loss"] for r in updates]


def test_a_graded_stage_goes_on_with_its_curriculum(start, tmp_path, monkeypatch):
    """Overlap and all: the same difficulties, the same losses."""

    def copies(source):  # prompts of reasoning-gym are too long for this model
        def make(difficulty, seed):
            digit = str((difficulty + seed) % 10)
            return Task(f"copy {digit}", digit, "exact", "copies", str(seed))

        return make

    monkeypatch.setattr(graded, "_gym", copies)
    sums = 'reasoning_gym:copies?{"terms": "2+d"}'
    section = dataclasses.replace(
        start.rl,
        tasks=((sums, 1.0),),
        heldout=2,
        overlap=True,
        dynamic_sampling=False,
        curriculum=Curriculum(rounds=2),
    )
    stage = dataclasses.replace(start, rl=section)
    die_at(monkeypatch, 3, stage, tmp_path / "killed")
    assert saved.read(tmp_path / "killed", 2).curriculum["draws"] > 0
    for name in ("killed", "whole"):
        assert loop.run(stage, tmp_path / name, quiet()).step == 4
    told = [
        [(r["loss"], r["reward"], r["difficulty_mean"]) for r in metrics.read(tmp_path / name)
         if "loss" in r] for name in ("killed", "whole")
    ]  # fmt: skip
    assert told[0] == told[1]
    begun = [calibration.read(tmp_path / n)["environments"] for n in ("killed", "whole")]
    assert begun[0] == begun[1] and len(begun[0][sums]["seen"]) == 2
    first = saved.read(tmp_path / "whole", 4).curriculum["moves"][0]
    assert first == [0, sums, begun[0][sums]["start"]]
    lines = (tmp_path / "killed" / ROLLOUTS).read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4]
    changed = dataclasses.replace(stage, rl=dataclasses.replace(section, heldout=2))
    (tmp_path / "killed" / "tasks.json").write_text('{"sha256": "other"}')
    with pytest.raises(UserError, match="are not what they were"):
        loop.run(changed, tmp_path / "killed", quiet())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["process", "ray"])
def test_workers_give_the_same_stage_every_time_and_one_may_die(start, tmp_path, kind, monkeypatch):
    if kind == "ray":
        pytest.importorskip("ray")
    section = dataclasses.replace(start.rl, rollout=kind, workers=2, overlap=True, heldout=4)
    stage = dataclasses.replace(start, rl=section)
    losses = []
    for name in ("one", "other"):
        assert loop.run(stage, tmp_path / name, quiet()).step == 4
        losses.append([r["loss"] for r in metrics.read(tmp_path / name) if "loss" in r])
    assert losses[0] == losses[1]

    learn = loop._Stage._learn

    def kill(self, batch):
        learn(self, batch)
        if self.learner.updates == 1:  # missed at the next swap, told of at update 3
            os.kill(self.rollouts._remotes[1]("pid")[0], signal.SIGKILL)

    monkeypatch.setattr(loop._Stage, "_learn", kill)
    assert loop.run(stage, tmp_path / "killed", quiet()).step == 4
    last = [record for record in metrics.read(tmp_path / "killed") if "loss" in record][-1]
    assert 0 < last["lost_rollouts"] <= section.concurrent
    assert last["accepted"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda e: {"train": dataclasses.replace(e.train, init_from=None)}, "train.init_from"),
        (lambda e: {"rl": dataclasses.replace(e.rl, tasks=())}, "rl.tasks is empty"),
        (lambda e: {"rl": dataclasses.replace(e.rl, tasks=(("no.jsonl", 1.0),))}, "is no file"),
        (lambda e: {"rl": dataclasses.replace(e.rl, heldout=1000)}, "lower rl.heldout"),
    ],
)
def test_what_cannot_be_run_is_said(start, tmp_path, change, words):
    with pytest.raises(UserError, match=words):
        loop.run(dataclasses.replace(start, **change(start)), tmp_path, quiet())


def test_nothing_to_learn_from_ends_a_stage_with_advice(start, tmp_path, monkeypatch):
    """Tasks that are always answered wrong have no contrast."""
    monkeypatch.setattr(collect, "PATIENCE", 2)
    file = tmp_path / "impossible.jsonl"
    line = {"prompt": "copy 3", "answer": "no digit", "verifier": "exact"}
    file.write_text(json.dumps(line) + "\n")
    hopeless = dataclasses.replace(start.rl, tasks=((str(file), 1.0),))
    with pytest.raises(UserError, match="all right or all wrong"):
        loop.run(dataclasses.replace(start, rl=hopeless), tmp_path / "run", quiet())
