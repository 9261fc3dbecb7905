"""Sweeps that are whole, stopped or have bad trials come to the right record."""

import dataclasses
import errno
import json
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time

import optuna
import pytest

from tests.sweep.fakes import GAINS, Run, behaves, make, same, starts
from zaya_jax.config import Pruning, to_dict
from zaya_jax.data.cache import atomic_path
from zaya_jax.errors import UserError
from zaya_jax.sweep import driver, record, supervise
from zaya_jax.sweep.study import Study
from zaya_jax.train import workdir


def source(kind):
    """The fields of an arm whose runs behave as said."""
    return {"data": {"source": kind}}


def test_every_arm_runs_under_every_seed(tmp_path):
    arms = {"none": {}, "low": {"balance": {"ki": 1e-3}}, "high": {"balance": {"ki": 1.0}}}
    sweep = make(arms=arms)
    run = Run(sweep, tmp_path)
    assert run.result.interrupted is None
    assert run.states == dict.fromkeys(["none", "low", "high"], "complete")
    assert [trial.name for trial in run.trials] == ["none", "low", "high"]
    for trial in run.trials:
        assert list(trial.values) == ["0", "1"]
        assert trial.value == pytest.approx(sum(trial.values.values()) / 2)
        assert trial.seconds == 6.0  # 3 a run, as the fake says
    assert run.trials[2].fields == {"balance.ki": 1.0}
    assert record.read_trials(tmp_path) == run.trials
    config = json.loads((tmp_path / "trials/002/seed-1/config.json").read_text())
    assert (config["balance"]["ki"], config["train"]["seed"]) == (1.0, 1)

    assert Run(sweep, tmp_path).trials == run.trials
    assert starts(tmp_path, 0, 0) == 1  # what is done is not done again


def test_a_bad_trial_is_its_own_affair(tmp_path):
    arms = {
        "good": {},
        "failing": source("fail"),
        "impossible": {"model": {"attention": {"heads": 3}}},
        "killed once": source("killed:1"),
        "killed always": source("killed:99"),
    }
    run = Run(make(arms=arms), tmp_path)
    assert run.states == {
        "good": "complete",
        "failing": "failed",
        "impossible": "invalid",
        "killed once": "complete",
        "killed always": "failed",
    }
    reasons = {trial.name: trial.reason for trial in run.trials}
    assert reasons["failing"] == (
        "seed 0, exit status 2: error: data.source = 'fail': no such file\n  give another"
    )
    assert "heads = 3: not a multiple of kv_heads = 2" in reasons["impossible"]
    assert "ended from outside 3 times, at last by SIGKILL" in reasons["killed always"]
    assert starts(tmp_path, 4, 0) == 1 + supervise.RESTARTS
    assert not record.folder_of(tmp_path, 4, 1).exists()  # a trial ends with its first bad run
    assert "trial 1 failing: failed" in run.text.getvalue()


def test_a_failed_trial_is_tried_again_unless_others_were_drawn_knowing_it(tmp_path):
    sweep = make(arms={"a": source("fail"), "b": {}}, seeds=(0,))
    for _ in range(2):
        assert Run(sweep, tmp_path / "arms").states == {"a": "failed", "b": "complete"}
    assert [starts(tmp_path / "arms", n, 0) for n in range(2)] == [2, 1]

    search = make(behaves("fail"), search="tpe", space=GAINS, trials=4, at_once=2)
    for _ in range(2):
        assert {trial.state for trial in Run(search, tmp_path / "tpe").trials} == {"failed"}
    assert [starts(tmp_path / "tpe", n, 0) for n in range(4)] == [1, 1, 2, 2]


@pytest.mark.parametrize("search", ["grid", "tpe"])
def test_workers_have_no_say_in_what_comes_out(search, tmp_path):
    space = {"balance": {"kp": (0.1, 0.5), "ki": (0.01, 0.1, 0.2)}} if search == "grid" else GAINS
    sweep = make(search=search, space=space, trials=6, at_once=3)
    one, four = Run(sweep, tmp_path / "1", 1), Run(sweep, tmp_path / "4", 4)
    assert same(one.trials) == same(four.trials)
    assert len({trial.name for trial in one.trials}) == 6
    assert len({trial.value for trial in one.trials}) == 6


def test_more_trials_go_on_as_if_they_had_been_asked_for_at_once(tmp_path):
    def sweep(trials):
        return make(search="tpe", space=GAINS, trials=trials, at_once=4, seeds=(0,))

    Run(sweep(14), tmp_path / "parts", 4)
    parts, one = Run(sweep(18), tmp_path / "parts", 4), Run(sweep(18), tmp_path / "one", 4)
    assert same(parts.trials) == same(one.trials)
    assert starts(tmp_path / "parts", 13, 0) == 1


def test_fewer_trials_leave_none_that_wait_for_ever(tmp_path):
    def sweep(trials):
        return make(search="tpe", space=GAINS, trials=trials, at_once=4, seeds=(0,))

    def stop(text):
        if text.startswith("trial 4"):
            signal.raise_signal(signal.SIGTERM)

    assert len(Run(sweep(8), tmp_path / "less", 1, at=stop).trials) == 8
    less = Run(sweep(5), tmp_path / "less")
    assert [(trial.number, trial.state) for trial in less.trials] == [
        (number, "complete") for number in range(5)
    ]
    assert record.read_trials(tmp_path / "less") == less.trials
    assert [trial.number for trial in Run(sweep(3), tmp_path / "less").trials] == [0, 1, 2, 3, 4]
    one = Run(sweep(8), tmp_path / "one")
    assert same(Run(sweep(8), tmp_path / "less").trials) == same(one.trials)


def full(*_):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_full_disk_fails_the_trial_whose_run_it_ends(tmp_path, monkeypatch):
    start = supervise._start

    def begin(task, *arguments):
        return full() if task.number == 0 else start(task, *arguments)

    monkeypatch.setattr(supervise, "_start", begin)
    run = Run(make(arms={"a": {}, "b": {}}, seeds=(0,)), tmp_path)
    assert run.states == {"a": "failed", "b": "complete"}
    assert run.trials[0].reason == "seed 0: [Errno 28] No space left on device"


def test_a_full_disk_under_the_records_ends_the_sweep_in_words(tmp_path, monkeypatch):
    sweep = make(arms={"a": {}}, seeds=(0,))
    with monkeypatch.context() as patch, pytest.raises(UserError, match="cannot write there: No s"):
        patch.setattr(record, "write_trials", full)
        Run(sweep, tmp_path)
    with monkeypatch.context() as patch, pytest.raises(UserError, match="study.db: cannot write"):
        patch.setattr(Study, "tell", lambda *_: full_database())
        Run(sweep, tmp_path)
    assert Run(sweep, tmp_path).states == {"a": "complete"}


def full_database():
    try:
        raise sqlite3.OperationalError("database or disk is full")
    except sqlite3.OperationalError as error:
        raise optuna.exceptions.StorageInternalError("An exception is raised.") from error


def test_pruning_depends_on_values_not_on_when_somebody_looked(tmp_path):
    """In the grid's order gains get worse: the median prunes all but the first batch."""
    space = {"balance": {"ki": (0.01, 0.02, 0.04, 0.1, 0.2, 0.4, 0.8, 1.0)}}
    sweep = make(search="grid", space=space, at_once=2, pruning=Pruning("median", 2, 1))
    run = Run(sweep, tmp_path, 2)
    assert [trial.state for trial in run.trials] == ["complete"] * 2 + ["pruned"] * 6
    assert all(trial.value is None and trial.values == {} for trial in run.trials[2:])
    assert "seed 0, step 1: bits_per_byte" in run.trials[2].reason
    assert not record.folder_of(tmp_path, 2, 1).exists()
    (tmp_path / "study.db").unlink()  # and so everything is judged again, after its end
    assert Run(sweep, tmp_path, 1).trials == run.trials


def test_a_run_that_falls_behind_is_ended(tmp_path):
    space = {"balance": {"ki": (0.01, 1.0)}}
    sweep = make(
        behaves("slow:0.01", steps=150),
        search="grid",
        space=space,
        at_once=1,
        pruning=Pruning("median", 1),
        seeds=(0,),
    )
    run = Run(sweep, tmp_path, 1)
    assert [trial.state for trial in run.trials] == ["complete", "pruned"]
    assert "step 0" in run.trials[1].reason
    lines = (tmp_path / "trials/001/seed-0/metrics.jsonl").read_text().splitlines()
    assert len(lines) < 151
    (tmp_path / "study.db").unlink()
    assert Run(sweep, tmp_path, 1).trials[1].state == "pruned"
    assert starts(tmp_path, 1, 0) == 1  # it is known without a start


def test_a_stopped_sweep_goes_on(tmp_path):
    def stop(text):
        if text.startswith("trial 2"):
            signal.raise_signal(signal.SIGTERM)

    sweep = make(search="tpe", space=GAINS, trials=6, at_once=2)
    stopped = Run(sweep, tmp_path / "a", at=stop)
    assert stopped.result.interrupted == signal.SIGTERM
    assert len(stopped.trials) == 4
    assert same(Run(sweep, tmp_path / "a").trials) == same(Run(sweep, tmp_path / "b").trials)


def test_runs_save_when_the_sweep_is_stopped(tmp_path):
    sweep = make(behaves("slow:0.5"), arms={"a": {}, "b": {}, "c": {}}, seeds=(0,))

    def stop():
        while not (tmp_path / "trials/001/seed-0/metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    run = Run(sweep, tmp_path)
    assert run.result.interrupted == signal.SIGTERM
    assert run.states == {"a": "waiting", "b": "waiting", "c": "waiting"}
    assert Run(sweep, tmp_path, 3).states == dict.fromkeys("abc", "complete")
    assert [starts(tmp_path, n, 0) for n in range(3)] == [2, 2, 1]


def test_a_run_directory_that_is_still_held_is_waited_for(tmp_path):
    """As where children outlive their parent: a process of an earlier start has the lock."""
    sweep = make(arms={"a": {}}, seeds=(0,))
    workdir.write_json(tmp_path / record.SWEEP, to_dict(sweep))
    folder = record.folder_of(tmp_path, 0, 0)
    folder.mkdir(parents=True)
    program = (
        "import fcntl, sys, time; file = open(sys.argv[1], 'a')\n"
        "fcntl.flock(file, fcntl.LOCK_EX); print('held', flush=True); time.sleep(1)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program, str(folder / ".lock")], stdout=subprocess.PIPE
    ) as holder:
        holder.stdout.readline()
        assert Run(sweep, tmp_path).states == {"a": "complete"}


def test_another_sweep_is_refused_field_by_field(tmp_path):
    space = {"balance": {"kp": GAINS["balance"]["kp"]}}
    Run(make(search="random", space=space, trials=1), tmp_path)
    renamed = make(search="random", space=space, trials=2, name="other", about="why?")
    assert len(Run(renamed, tmp_path).trials) == 2
    with pytest.raises(UserError) as raised:
        Run(make(search="tpe", space=GAINS, trials=1, seeds=(3,)), tmp_path)
    for line in (
        "search: 'random' there, 'tpe' here",
        "seeds: [0, 1] there, [3] here",
        "space.balance.ki: None there",
    ):
        assert line in str(raised.value)


def test_a_storage_of_another_sweep_is_refused(tmp_path):
    Run(make(search="random", space=GAINS, trials=1), tmp_path / "a")
    other = make(search="random", space=GAINS, trials=1, objective="imbalance")
    with driver.lock(tmp_path / "b"):
        driver.claim(other, tmp_path / "b")
    (tmp_path / "a/study.db").rename(tmp_path / "b/study.db")
    with pytest.raises(UserError, match="objective: 'bits_per_byte' there, 'imbalance' here"):
        Run(other, tmp_path / "b")
    (tmp_path / "b/study.db").write_text("no database at all, but of some length")
    with pytest.raises(UserError, match="study.db: no storage of a sweep: "):
        Run(other, tmp_path / "b")


def test_a_lost_storage_is_made_again_from_the_runs(tmp_path):
    sweep = make(search="tpe", space=GAINS, trials=4, at_once=2, seeds=(0,))
    before = Run(sweep, tmp_path).trials
    (tmp_path / "study.db").unlink()
    assert Run(sweep, tmp_path).trials == before
    assert starts(tmp_path, 0, 0) == 1


def test_a_sweep_begun_before_a_field_was_added_goes_on(tmp_path):
    sweep = make(arms={"a": {}})
    older = to_dict(sweep)
    del older["base"]["train"]["log_loads"], older["pruning"]
    workdir.write_json(tmp_path / record.SWEEP, older)
    driver.claim(sweep, tmp_path)
    assert json.loads((tmp_path / record.SWEEP).read_text()) == record.plain(to_dict(sweep))
    older["objective"] = "a measure of another version"
    workdir.write_json(tmp_path / record.SWEEP, older)
    with pytest.raises(UserError, match="objective: 'a measure of another version' there"):
        driver.claim(sweep, tmp_path)


def test_another_order_of_arms_or_of_a_grids_fields_is_another_sweep(tmp_path):
    """It numbers the trials: the runs of one would be told as those of another."""
    arms = make(arms={"a": {}, "b": {"balance": {"ki": 1.0}}}, seeds=(0,))
    turned = dataclasses.replace(arms, arms=dict(reversed(arms.arms.items())))
    Run(arms, tmp_path / "arms")
    with pytest.raises(UserError, match=r"arms: \['a', 'b'\] there, \['b', 'a'\] here"):
        driver.claim(turned, tmp_path / "arms")
    grid = [{"kp": (0.1, 0.2), "ki": (0.1, 0.2)}, {"ki": (0.1, 0.2), "kp": (0.1, 0.2)}]
    one, two = (make(search="grid", space={"balance": fields}) for fields in grid)
    driver.claim(one, tmp_path / "grid")
    with pytest.raises(UserError, match=r"space: \['balance.kp', 'balance.ki'\] there"):
        driver.claim(two, tmp_path / "grid")


def test_trials_that_were_drawn_in_another_order_are_refused(tmp_path):
    """As a storage that an earlier version let through."""
    arms = make(arms={"a": {}, "b": {"balance": {"ki": 1.0}}}, seeds=(0,))
    Run(arms, tmp_path)
    turned = dataclasses.replace(arms, arms=dict(reversed(arms.arms.items())))
    url = f"sqlite:///{tmp_path / record.STUDY}"
    optuna.load_study(study_name="sweep", storage=url).set_user_attr(record.SWEEP, to_dict(turned))
    with pytest.raises(UserError, match="trial 0 is a there, b here: the order of arms"):
        Study(turned, tmp_path)


def test_a_study_that_no_sweep_made_is_refused(tmp_path):
    url = f"sqlite:///{tmp_path / record.STUDY}"
    optuna.create_study(storage=url, study_name="sweep").optimize(lambda trial: 1.0, n_trials=1)
    with pytest.raises(UserError, match="study.db: holds a study of Optuna's that no sweep made"):
        Study(make(arms={"a": {}}), tmp_path)


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "which? {these} 100%"
    sweep = make(arms={"a": {}}, seeds=(0,))
    for _ in range(2):
        assert Run(sweep, folder).states == {"a": "complete"}
    assert (folder / record.STUDY).stat().st_size and not (tmp_path / "which").exists()
    assert starts(folder, 0, 0) == 1


def test_a_folder_with_other_things_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    with pytest.raises(UserError, match="neither empty nor the directory of a sweep"):
        driver.claim(make(arms={"a": {}}), tmp_path)


def test_a_sweep_killed_while_it_claimed_its_folder_can_be_started(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / record.SWEEP) as scratch:
        scratch.unlink()
    scratch.touch()  # as kill -9 leaves it
    assert Run(make(arms={"a": {}}), tmp_path).states == {"a": "complete"}


def test_two_drivers_do_not_share_a_sweep(tmp_path):
    with driver.lock(tmp_path), pytest.raises(UserError, match="another process sweeps in"):
        with driver.lock(tmp_path):
            pass


def test_values_that_were_not_reached_are_counted(tmp_path):
    trial = Run(make(arms={"a": {}}, objective="steps_to_balance"), tmp_path).trials[0]
    assert (trial.state, trial.value) == ("complete", None)
    assert trial.values == {"0": None, "1": None}
    assert trial.reason == "steps to balance: not reached by seed 0, 1"
