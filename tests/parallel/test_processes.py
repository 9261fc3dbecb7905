"""Runs of several real processes: the same as one, and one run, whatever becomes of a process."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.parallel.started import (
    children,
    config_file,
    finish,
    records,
    start,
    tiny,
    until,
)
from zaya_jax.config import to_dict
from zaya_jax.parallel.watch import LOST
from zaya_jax.train.checkpoint import Checkpoints, steps_in
from zaya_jax.train.restart import free_port
from zaya_jax.train.workdir import read_config, write_json

pytestmark = [
    pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc"),
]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return tiny(tmp_path_factory.mktemp("texts"))


@pytest.fixture
def file(experiment, tmp_path):
    return config_file(experiment, tmp_path / "config.py")


def final(run: Path):
    """The state that a run came to, on this process's one device."""
    checkpoints = Checkpoints(run, dataclasses.replace(read_config(run), mesh=""))
    try:
        return checkpoints.restore()
    finally:
        checkpoints.close()


def field(run: Path, name: str) -> np.ndarray:
    """What the steps of a run say of themselves."""
    return np.array([record[name] for record in records(run) if name in record])


def starts(run: Path) -> list[int]:
    """How many processes each start of a run had."""
    return [one["processes"] for one in json.loads((run / "environment.json").read_text())]


def together(file: Path, run: Path, processes: int, *more: str, devices: int = 1):
    """A launcher of so many processes."""
    spawn = [f"--spawn={processes}"] if processes > 1 else []
    return start([f"--config={file}", f"--workdir={run}", *spawn, *more], devices=devices)


def test_two_processes_are_one_run(file, tmp_path):
    """The cheap one: two steps, a checkpoint, and one of them that writes and tells."""
    run = tmp_path / "run"
    short = ("--mesh=data=2", "--config.train.steps=2", "--config.optim.warmup_steps=1")
    status, told = finish(together(file, run, 2, *short))
    assert status == 0, told
    assert "mesh: data 2: 2 devices (cpu) of 2 processes" in told
    assert told.count("done:") == told.count("compiled in") == 1
    assert [record["step"] for record in records(run) if "loss" in record] == [1, 2]
    assert starts(run) == [2]
    state = final(run)
    assert int(state.step) == int(state.cursor) == 2
    # Nothing is left to do, and both know.
    status, told = finish(together(file, run, 2, *short))
    assert status == 0 and "resuming" in told, told


@pytest.mark.slow
@pytest.mark.parametrize("mesh", ["data=4", "data=2,context=2", "fsdp=2,expert=2"])
def test_1_2_and_4_processes_train_alike(file, tmp_path, mesh):
    runs = {count: tmp_path / str(count) for count in (1, 2, 4)}
    for count, run in runs.items():
        status, told = finish(together(file, run, count, f"--mesh={mesh}", devices=4 // count))
        assert status == 0, told
        assert starts(run) == [count]
    wanted = final(runs[1])
    for count in (2, 4):
        run = runs[count]
        np.testing.assert_array_equal(field(run, "tokens"), field(runs[1], "tokens"))
        np.testing.assert_array_equal(field(run, "load"), field(runs[1], "load"))
        np.testing.assert_allclose(field(run, "loss"), field(runs[1], "loss"), rtol=1e-5)
        np.testing.assert_allclose(
            field(run, "heldout_loss"), field(runs[1], "heldout_loss"), rtol=1e-5
        )
        found = final(run)
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, wanted
        )


@pytest.mark.slow
def test_a_run_of_4_then_2_then_3_then_1_processes_goes_on_where_it_was(file, tmp_path):
    one, many = tmp_path / "one", tmp_path / "many"
    long = "--config.train.steps=60"  # enough that a signal comes before the end
    status, told = finish(together(file, one, 1, long))
    assert status == 0, told
    for count in (4, 2, 3, 1):
        mesh = f"--mesh=data={count}" if count > 1 else "--mesh="
        before = newest(many)
        process = together(file, many, count, mesh, long)
        if count > 1:
            until(lambda: newest(many) > before, process)  # noqa: B023
            process.send_signal(signal.SIGTERM)
            status, told = finish(process)
            if status == 0:
                pytest.fail("the run was over before it was stopped")
            assert status == 128 + signal.SIGTERM, told
        else:
            status, told = finish(process)
            assert status == 0, told
    assert starts(many) == [4, 2, 3, 1]
    for name in ("tokens", "load"):
        np.testing.assert_array_equal(field(many, name), field(one, name))
    np.testing.assert_allclose(field(many, "loss"), field(one, "loss"), rtol=1e-4)
    assert int(final(many).cursor) == 60


def newest(run: Path) -> int:
    """The last step of a run that has a checkpoint; 0 if none has."""
    return max(steps_in(run / "checkpoints"), default=0)


@pytest.fixture(scope="module")
def whole(experiment, tmp_path_factory):
    """Four processes that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    run = folder / "run"
    file = config_file(experiment, folder / "config.py")
    status, told = finish(together(file, run, 4, "--mesh=data=4"))
    assert status == 0, told
    return run


def assert_same_run(run: Path, whole: Path) -> None:
    """Bit for bit, in every step that was told and in the end."""
    for name in ("loss", "load", "grad_norm"):
        np.testing.assert_array_equal(field(run, name), field(whole, name))
    jax.tree.map(np.testing.assert_array_equal, final(run), final(whole))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize("moment", ["mid-step", "mid-save"])
def test_one_of_4_is_killed_and_the_launcher_starts_all_again(
    file, whole, tmp_path, moment, victim
):
    run = tmp_path / "run"
    process = together(file, run, 4, "--mesh=data=4", "--restarts=2")
    if moment == "mid-step":
        until(lambda: len(records(run)) >= 4, process)
    else:
        until(lambda: list((run / "checkpoints").glob(".scratch-4*")), process)
    os.kill(children(process)[victim], signal.SIGKILL)
    status, told = finish(process)
    assert status == 0, told
    assert f"process {victim} was ended by SIGKILL; starting again" in told
    assert len(starts(run)) == 2
    assert_same_run(run, whole)


@pytest.mark.slow
def test_without_a_launcher_the_others_end_by_themselves(file, tmp_path):
    run, port = tmp_path / "run", free_port()
    common = [
        f"--config={file}",
        f"--workdir={run}",
        "--mesh=data=2",
        "--config.train.steps=100000",
    ]
    common += [f"--coordinator=localhost:{port}", "--processes=2", "--heartbeat_seconds=30"]
    processes = [start([*common, f"--process_id={i}"]) for i in range(2)]
    until(lambda: len(records(run)) > 2, *processes)
    processes[1].kill()
    began = time.monotonic()
    status, told = finish(processes[0])
    assert time.monotonic() - began < 40
    assert status == LOST, told
    assert "process 1 of 2 was lost" in told
    assert "The same command goes on from the last checkpoint" in told
    finish(processes[1])


@pytest.mark.slow
def test_one_that_is_asked_to_stop_stops_all_after_the_same_step(file, tmp_path):
    run = tmp_path / "run"
    process = together(file, run, 3, "--mesh=data=3", "--config.train.steps=100000")
    until(lambda: len(records(run)) > 2, process)
    os.kill(children(process)[1], signal.SIGTERM)
    status, told = finish(process)
    assert status == 128 + signal.SIGTERM, told
    assert "stopped by SIGTERM after step" in told and "starting again" not in told
    assert int(final(run).step) == records(run)[-1]["step"]


HANGS = """
import sys, time
from zaya_jax import cli
from zaya_jax.data import Batches
make = Batches.batch
def batch(self, step, places=None):
    if step == 3 and "--process_id=1" in sys.argv:
        time.sleep(1000)
    return make(self, step, places)
Batches.batch = batch
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow
def test_a_hang_is_found_and_every_process_writes_its_stacks(file, tmp_path):
    run, port = tmp_path / "run", free_port()
    common = [f"--config={file}", f"--workdir={run}", "--mesh=data=2", "--watchdog_seconds=8"]
    common += [f"--coordinator=localhost:{port}", "--processes=2"]
    processes = [start([*common, f"--process_id={i}"], program=HANGS) for i in range(2)]
    ends = [finish(process) for process in processes]
    for status, told in ends:
        assert status == LOST, told
        assert "has not finished a step for 8 s" in told and "The stacks of all threads" in told
    assert "in batch" in ends[1][1] and "in batch" not in ends[0][1]  # whose fault it was


def test_processes_of_different_configs_are_refused(file, tmp_path):
    run, port = tmp_path / "run", free_port()
    common = [f"--config={file}", f"--workdir={run}", "--mesh=data=2", "--processes=2"]
    common += [f"--coordinator=localhost:{port}"]
    processes = [
        start([*common, "--process_id=0"]),
        start([*common, "--process_id=1", "--config.train.seed=1"]),
    ]
    (status, told), (other, _) = map(finish, processes)
    assert status == other == 2
    assert "error: process 1 differs from process 0" in told
    assert "config.train.seed: 0 in process 0, 1 here" in told
    assert not run.exists()


OTHER_CODE = """
import sys
from zaya_jax import cli
from zaya_jax.train import agree
code = agree.code
agree.code = lambda: code() | {"zaya_jax/muon.py": "00000000"}
sys.exit(cli.main(sys.argv[1:]))
"""


@pytest.mark.slow  # test_process_group.py compares code, this starts two processes for it
def test_processes_of_different_code_are_refused(file, tmp_path):
    run, port = tmp_path / "run", free_port()
    common = [f"--config={file}", f"--workdir={run}", "--mesh=data=2", "--processes=2"]
    common += [f"--coordinator=localhost:{port}"]
    processes = [
        start([*common, "--process_id=0"]),
        start([*common, "--process_id=1"], program=OTHER_CODE),
    ]
    (status, told), (other, _) = map(finish, processes)
    assert status == other == 2
    assert "process 1 differs from process 0:\n  code: zaya_jax/muon.py" in told
    assert not run.exists()


@pytest.mark.slow  # another two processes
def test_a_run_of_another_model_is_refused_by_all(file, experiment, tmp_path):
    run = tmp_path / "run"
    (run / "checkpoints" / "4").mkdir(parents=True)
    other = dataclasses.replace(experiment.model, num_layers=3)
    write_json(run / "config.json", to_dict(dataclasses.replace(experiment, model=other)))
    status, told = finish(together(file, run, 2, "--mesh=data=2", "--restarts=3"))
    assert status == 2
    assert told.count("model.num_layers: 3 there, 1 here") == 1
    assert "ends: process 0" in told  # is what process 1 says
    assert "starting again" not in told


@pytest.mark.slow  # as the next two; test_process_meeting.py has this and more in threads
def test_a_coordinator_that_is_not_there(file, tmp_path):
    address = f"localhost:{free_port()}"
    status, told = finish(
        start(
            [f"--config={file}", f"--workdir={tmp_path / 'run'}", "--mesh=data=2"]
            + [f"--coordinator={address}", "--processes=2", "--process_id=1"]
            + ["--connect_seconds=2"]
        )
    )
    assert status == 2
    assert f"the coordinator {address} was not reached in 2 s" in told
    assert "Check that process 0 runs on localhost" in told


@pytest.mark.slow
def test_a_process_that_never_comes(file, tmp_path):
    address = f"localhost:{free_port()}"
    began = time.monotonic()
    status, told = finish(
        start(
            [f"--config={file}", f"--workdir={tmp_path / 'run'}", "--mesh=data=2"]
            + [f"--coordinator={address}", "--processes=2", "--process_id=0"]
            + ["--connect_seconds=3"]
        )
    )
    assert status == 2 and time.monotonic() - began < 60
    assert f"process 1 of 2 did not come to {address} within 3 s" in told


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spawn=2"], "1 of the 2 devices that the 2 processes have together"),
        (["--spawn=2", "--mesh=data=4"], "takes 4 devices, and jax has 2"),
    ],
)
def test_a_mesh_takes_the_devices_of_all_processes(file, tmp_path, options, message):
    run = tmp_path / "run"
    status, told = finish(start([f"--config={file}", f"--workdir={run}", *options]))
    assert status == 2 and message in told
    assert not run.exists()
