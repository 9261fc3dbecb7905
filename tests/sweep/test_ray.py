"""On a Ray cluster of this machine, a sweep comes to the same trials as without one."""

import os
import signal
import sys
import threading
import time

import pytest

from tests.sweep.fakes import BASE, GAINS, Run, behaves, make, same, starts
from zaya_jax.config import Pruning
from zaya_jax.errors import UserError
from zaya_jax.sweep import record
from zaya_jax.sweep.supervise import Task

pytest.importorskip("ray")

from zaya_jax.sweep.executors import Ray  # noqa: E402

ARMS = {
    "good": {},
    "failing": {"data": {"source": "fail"}},
    "killed": {"data": {"source": "killed:1"}},
}


@pytest.mark.slow
def test_ray_gives_the_same_trials(tmp_path):
    sweep = make(search="tpe", space=GAINS, trials=6, at_once=3)
    run = Run(sweep, tmp_path / "ray", executor=Ray("local", 3, 1))
    assert same(run.trials) == same(Run(sweep, tmp_path / "local").trials)
    assert (tmp_path / "ray/trials/000/seed-0/starts").read_text() == "1\n"  # one thread each


@pytest.mark.slow
def test_a_sweep_on_ray_is_stopped_and_goes_on_without_it(tmp_path):
    sweep = make(behaves("slow:0.5"), arms={"a": {}, **ARMS}, seeds=(0,))

    def stop():
        while not (tmp_path / "trials/000/seed-0/metrics.jsonl").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop).start()
    stopped = Run(sweep, tmp_path, executor=Ray("local", 1, 1))
    assert stopped.result.interrupted == signal.SIGTERM
    assert stopped.states["a"] == "waiting"
    complete = dict.fromkeys(["a", "good", "killed"], "complete")
    assert Run(sweep, tmp_path).states == {**complete, "failing": "failed"}
    assert starts(tmp_path, 0, 0) == 2


@pytest.mark.slow
def test_runs_of_a_cluster_find_modules_where_the_command_does(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["mine", str(tmp_path)]))
    program = (sys.executable, "-c", "import os, sys; sys.exit(os.environ['PYTHONPATH'])")
    record.folder_of(tmp_path, 0, 0).parent.mkdir(parents=True)
    task = Task(0, tmp_path, {0: BASE}, "bits_per_byte", Pruning(), {0: ()}, program)
    executor = Ray("local", 1, 1)
    try:
        outcome = executor.submit(task).result(timeout=60)
    finally:
        executor.close()
    assert outcome.reason.endswith(f": {os.getcwd()}/mine{os.pathsep}{tmp_path}")


@pytest.mark.slow
def test_a_worker_of_the_cluster_may_be_killed(tmp_path):
    arms = {"good": {}, "orphaned": {"data": {"source": "orphaned:1"}}}
    run = Run(make(arms=arms, seeds=(0,)), tmp_path, executor=Ray("local", 2, 1))
    assert run.states == {"good": "complete", "orphaned": "complete"}
    assert starts(tmp_path, 1, 0) == 2


@pytest.mark.slow
def test_a_cluster_that_is_not_there_is_told():
    with pytest.raises(UserError, match="--ray_address=auto: no cluster: "):
        Ray("auto", None, 1)
