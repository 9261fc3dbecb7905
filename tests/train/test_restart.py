"""The launcher, of small programs for processes: what it starts again, and what it does not."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parallel.started import children
from zaya_jax import cli
from zaya_jax.train import restart
from zaya_jax.train.restart import Launch

ROOT = Path(__file__).parents[2]

PROGRAM = """
import os, signal, sys, time
folder, plan = sys.argv[1:3]
options = dict(word[2:].split("=") for word in sys.argv[3:])
me = options.get("process_id", "0")
starts = os.path.join(folder, me)
with open(starts, "a") as file:
    file.write("x")
attempt = os.path.getsize(starts) - 1
what = dict(part.split(":") for part in plan.split(",") if part).get(f"{me}@{attempt}", "0")
if what == "wait":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    time.sleep(60)
if what == "deaf":
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
    time.sleep(60)
if what == "hangup":  # as a terminal that is closed does to all that it has started
    os.kill(os.getppid(), signal.SIGHUP)
    os.kill(os.getpid(), signal.SIGHUP)
    what = 0
if what == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
sys.exit(int(what))
"""


@pytest.fixture
def run(tmp_path):
    """`run(plan, launch)`: what each process does at each of its starts, `1@0:kill,0@0:wait`."""
    told: list[str] = []

    def call(plan: str, count: int = 1, restarts: int = 0) -> tuple[int, list[str], dict[str, int]]:
        command = [sys.executable, "-c", PROGRAM, str(tmp_path), plan]
        status = restart.run(
            Launch(command, local=count, count=count, restarts=restarts), told.append
        )
        return status, told, {f.name: f.stat().st_size for f in sorted(tmp_path.iterdir())}

    return call


def test_a_run_that_ends_is_not_started_again(run):
    assert run("", count=3, restarts=5) == (0, [], {"0": 1, "1": 1, "2": 1})


def test_all_are_started_again_when_one_was_lost(run, monkeypatch):
    monkeypatch.setattr(restart, "_GRACE", 0.3)
    status, told, starts = run("0@0:wait,1@0:kill,2@0:wait", count=3, restarts=2)
    assert status == 0 and starts == {"0": 2, "1": 2, "2": 2}
    assert told == [
        "process 1 was ended by SIGKILL; starting again from the last checkpoint, 1 of at most 2 "
        "times"
    ]


def test_no_more_often_than_the_limit(run):
    status, told, starts = run("0@0:75,0@1:75,0@2:75,0@3:75", restarts=2)
    assert status == 75 and starts == {"0": 3}
    assert told[-1] == "process 0 ended with status 75; it is not started again (--restarts=2)"


def test_a_status_that_a_signal_left_is_told_as_shells_do(run):
    status, told, _ = run("0@0:kill")
    assert status == 128 + signal.SIGKILL
    assert told == ["process 0 was ended by SIGKILL; it is not started again"]


@pytest.mark.parametrize("status", [2, 130, 143])
def test_mistakes_and_stops_are_not_tried_again(run, status, monkeypatch):
    monkeypatch.setattr(restart, "_GRACE", 0.3)
    # Another process has ended with the status of one that lost a peer, and before.
    found, told, starts = run(f"0@0:{status},1@0:wait", count=2, restarts=5)
    assert found == status and starts == {"0": 1, "1": 1} and not told


def test_the_mistake_of_one_counts_whoever_ends_first(run):
    found, told, starts = run("0@0:75,1@0:2", count=2, restarts=5)
    assert found == 2 and starts == {"0": 1, "1": 1} and not told


def test_each_process_is_told_who_it_is():
    launch = Launch(["p"], local=2, coordinator="h:1", count=8, first=4, devices=("0,1", "2,3"))
    own = ["p", "--spawn=0", "--restarts=0", "--coordinator=h:1", "--processes=8"]
    assert launch.commands() == [
        [*own, "--process_id=4", "--local_devices=0,1"],
        [*own, "--process_id=5", "--local_devices=2,3"],
    ]
    assert Launch(["p"]).commands() == [["p", "--spawn=0", "--restarts=0"]]
    here = Launch(["p"], local=2, count=2).commands()
    assert here[0][3] == here[1][3] and here[0][3].startswith("--coordinator=localhost:")


LAUNCHER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from zaya_jax.train.restart import Launch, run
command = [sys.executable, "-c", {PROGRAM!r}, *sys.argv[1:]]
sys.exit(run(Launch(command, local=2, count=2, restarts=3), print))
"""


@pytest.fixture
def launcher(tmp_path):
    """A launcher of two that wait, as a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path), "0@0:wait,1@0:wait"],
        stdout=subprocess.PIPE,
        text=True,
    )
    until(lambda: len(list(tmp_path.iterdir())) == 2 and len(children(process)) == 2)
    time.sleep(0.2)  # they are about to set their handlers
    yield process
    process.kill()
    process.wait()


def until(there) -> None:
    end = time.monotonic() + 20
    while not there():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
def test_a_signal_is_passed_on_and_is_the_end(launcher, tmp_path):
    launcher.send_signal(signal.SIGTERM)
    told, _ = launcher.communicate(timeout=20)
    assert launcher.returncode == 128 + signal.SIGTERM and not told
    assert [file.stat().st_size for file in tmp_path.iterdir()] == [1, 1]


def test_what_nohup_ignores_stays_ignored(run):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        assert run("0@0:hangup")[0] == 0
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks into /proc")
def test_when_the_launcher_is_killed_its_processes_are_asked_to_stop(launcher):
    found = list(children(launcher).values())
    launcher.kill()
    launcher.wait()
    until(lambda: not any(lives(process) for process in found))


def lives(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except OSError:
        return False


# --- The command line ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--spawn=2", "--processes=1"], "processes 0 to 1 of 1"),
        (["--spawn=2", "--processes=8"], "--coordinator of them all"),
        (["--spawn=-1"], "spawn"),
        (["--processes=2", "--process_id=0"], "--coordinator=HOST:PORT missing"),
        (["--coordinator=localhost:1"], "--processes=N, --process_id=I missing"),
        (["--processes=2", "--process_id=2", "--coordinator=h:1"], "process 2 of 2"),
        (["--local_devices=a,b"], "--local_devices=a,b: expected numbers"),
        (["--spawn=2", "--process_id=4"], "--process_id goes with --processes"),
    ],
)
def test_options_that_do_not_fit_are_told(options, message, tmp_path, capsys):
    command = ["train", "--config=experiments/zaya1_tiny.py", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*command, *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


@pytest.fixture
def under_slurm(monkeypatch, tmp_path):
    """`under_slurm(variables, *options)`: what `launch.py train` would start there."""

    def started(variables: dict[str, str], *options: str) -> Launch:
        launches: list[Launch] = []
        monkeypatch.setattr(restart, "run", lambda launch, tell: launches.append(launch) or 0)
        for name, value in {"SLURM_JOB_ID": "1", **variables}.items():
            monkeypatch.setenv(name, value)
        monkeypatch.delenv("JAX_PLATFORMS", raising=False)
        command = ["train", "--config=experiments/zaya1_tiny.py", f"--workdir={tmp_path / 'run'}"]
        assert cli.main([*command, *options]) == 0
        (launch,) = launches
        return launch

    return started


def test_a_launcher_under_a_scheduler_starts_its_share(under_slurm):
    slurm = {
        "SLURM_STEP_NODELIST": "n[1-4]",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "1(x4)",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "0",
        "SLURM_NODEID": "3",
        "HIP_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }
    launch = under_slurm(slurm, "--spawn=4", "--restarts=2")
    assert (launch.count, launch.first, launch.restarts) == (16, 12, 2)
    assert launch.coordinator == "n1:14580"
    assert launch.devices == ["0,1", "2,3", "4,5", "6,7"]
    assert launch.command[1:3] == [str(ROOT / "launch.py"), "train"]
    assert os.path.isabs(launch.command[0])


@pytest.mark.parametrize(
    ("options", "coordinator"), [([], "n1:14580"), (["--coordinator=other:1"], "other:1")]
)
def test_launchers_that_share_a_machine_share_its_gpus(options, coordinator, under_slurm):
    slurm = {
        "SLURM_STEP_NODELIST": "n[1-2]",
        "SLURM_STEP_NUM_TASKS": "4",
        "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
        "SLURM_PROCID": "3",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "1",
        "HIP_VISIBLE_DEVICES": "0,1,2,3,4,5,6,7",
    }
    two, one = (under_slurm(slurm, f"--spawn={n}", *options) for n in (2, 1))
    assert (two.count, two.first, two.devices) == (8, 6, ["4,5", "6,7"])
    assert (one.count, one.first, one.devices) == (4, 3, ["4,5,6,7"])
    assert two.coordinator == one.coordinator == coordinator


def test_tasks_that_see_gpus_of_their_own_take_them_all(under_slurm):
    """`srun --gpus-per-task=4`: what a task sees is not shared with the other one."""
    slurm = {
        "SLURM_STEP_NODELIST": "n1",
        "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_STEP_TASKS_PER_NODE": "2",
        "SLURM_GPUS_PER_TASK": "4",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "HIP_VISIBLE_DEVICES": "4,5,6,7",
    }
    assert under_slurm(slurm, "--spawn=4").devices == ["0", "1", "2", "3"]
    assert under_slurm(slurm, "--spawn=2", "--local_devices=1,3").devices == ["1", "3"]


def test_gpus_that_processes_cannot_share_are_told(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    command = ["train", "--config=experiments/zaya1_tiny.py", f"--workdir={tmp_path / 'run'}"]
    assert cli.main([*command, "--spawn=2"]) == 2
    assert "--spawn=2: the processes see 1 GPUs; start as many as divide that" in (
        capsys.readouterr().err
    )


def test_processes_that_hear_nothing_are_ended_by_the_second_request(tmp_path):
    """Two signals together are one request; what hears it may be saving."""
    program = LAUNCHER.replace(
        "command =",
        "from zaya_jax.train import interrupt, restart\n"
        "interrupt.APART, restart._GRACE = 1.0, 0.5\ncommand =",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program, str(tmp_path), "0@0:deaf,1@0:deaf"], stdout=subprocess.PIPE
    )
    until(lambda: len(list(tmp_path.iterdir())) == 2 and len(children(process)) == 2)
    time.sleep(0.5)
    for _ in range(2):
        process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert process.poll() is None and len(children(process)) == 2
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGKILL


STUCK = f"""
import hashlib, sys
sys.path.insert(0, {str(ROOT)!r})
from zaya_jax.train import interrupt
interrupt.APART, interrupt.GRACE = 0.5, 0.5
with interrupt.requests():
    print("ready", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"a", b"b", 2_000_000_000)  # in C, for an hour, without the GIL
"""


def test_a_process_that_is_stuck_in_c_is_ended_by_the_second_signal():
    """As in a compilation, or in a collective that hangs: no Python handler runs there."""
    process = subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None and process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) == 128 + signal.SIGTERM
