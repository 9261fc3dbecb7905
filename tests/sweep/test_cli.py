"""The verb: what it says before and after, mistakes, exit status; and one sweep of real runs."""

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path

import pytest

from tests.sweep.fakes import BASE, FAKE, GAINS, make
from tests.train.conftest import MODEL
from zaya_jax import cli
from zaya_jax.config import Data, Experiment, Optim, Train, to_dict
from zaya_jax.sweep import machine, record, supervise

ROOT = Path(__file__).parents[2]

FILE = """
import json
from zaya_jax import config

SWEEP = json.loads({sweep!r})


def experiment():
    return config.from_dict(SWEEP["base"])


def get_config(base=None):
    if base:
        return config.to_config_dict(experiment())
    return config.sweep_to_config_dict(config.sweep_from_dict(SWEEP))
"""


@pytest.fixture
def file(tmp_path):
    """Writes a sweep as a file that `--config` names; with `:base`, its base's experiment."""

    def write(sweep):
        path = tmp_path / "sweep.py"
        sweep = dataclasses.replace(sweep, file=f"{path}:base")
        path.write_text(FILE.format(sweep=json.dumps(to_dict(sweep))))
        return str(path)

    return write


@pytest.fixture
def sweep(monkeypatch, capsys):
    """`launch.py sweep` whose runs are fake: status, stdout, stderr."""
    monkeypatch.setattr(supervise, "launcher", lambda: FAKE)

    def run(*arguments):
        status = cli.main(["sweep", *arguments])
        printed = capsys.readouterr()
        return status, printed.out, printed.err

    return run


def test_a_dry_run_says_what_would_be_run_and_writes_nothing(file, sweep, tmp_path):
    train = dataclasses.replace(BASE.train, sequence_length=32)
    base = dataclasses.replace(BASE, model=MODEL, train=train)
    arms = {"mlp": {}, "linear": {"model": {"router": {"kind": "linear"}}}}
    path = file(make(base, name="routers", about="Which?", arms=arms))
    status, out, err = sweep(f"--config={path}", f"--workdir={tmp_path / 'w'}", "--dry_run")
    assert (status, err) == (0, "")
    for told in (
        "routers: Which?",
        "2 trials (arms) x 2 seeds (0, 1) = 4 runs of 6 steps",
        "minimize bits_per_byte (held-out bits per byte)",
        "FLOPs/token  KV bytes/token",
        "warning: arms are not matched in active parameters: linear has",
    ):
        assert told in out
    assert not (tmp_path / "w").exists()


def test_a_dry_run_names_the_space(file, sweep):
    path = file(make(search="tpe", space=GAINS, trials=5))
    flags = ["--config.space.balance.ki=(0.1,0.2)", "--config.trials=7", "--config.seeds=(3,)"]
    status, out, _ = sweep(f"--config={path}", "--dry_run", *flags)
    assert status == 0
    assert "balance.kp: 0.001 to 1, by its logarithm\n  balance.ki: 0.1, 0.2\n" in out
    assert "7 trials (tpe) x 1 seeds (3,) = 7 runs" in out


def test_a_sweep_ends_in_a_table_and_a_record(file, sweep, tmp_path):
    arms = {"far": {"balance": {"ki": 1.0}}, "near": {}, "bad": {"data": {"source": "fail"}}}
    path, folder, found = file(make(arms=arms)), tmp_path / "w", tmp_path / "out.json"
    arguments = [f"--config={path}", f"--workdir={folder}", f"--json={found}"]
    status, out, err = sweep(*arguments)
    assert status == 1
    table = [line.split() for line in out.splitlines() if line.startswith("  ")]
    rows = [row for row in table if row and row[0] in "012"]
    assert [row[0] for row in rows] == ["1", "0", "2"]  # best first, failed last
    assert rows[0][1] == "complete" and rows[0][3] == "+-" and rows[0][-1] == "near"
    assert "trial 2 is failed: seed 0, exit status 2: error: data.source = 'fail'" in out
    assert (folder / "report.html").exists()
    assert "trial 1 near: complete, bits_per_byte" in err
    written = json.loads(found.read_text())
    assert [trial["name"] for trial in written["trials"]] == ["near", "far", "bad"]
    assert len(json.loads((folder / "environment.json").read_text())) == 1

    assert sweep(*arguments)[0] == 1
    assert len(json.loads((folder / "environment.json").read_text())) == 2
    status, _, err = sweep(*arguments, "--config.objective=imbalance")
    assert status == 2
    assert "objective: 'bits_per_byte' there, 'imbalance' here" in err
    assert record.read_trials(folder)[1].command.startswith(
        f"python launch.py train --config={path}:base"
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "--workdir is missing"),
        (["--workers=0"], "--workers=0: expected at least 1"),
        (["--threads=0"], "--threads=0: expected at least 1"),
        (["--config.objective=bits"], "objective: no measure 'bits'"),
        (["--config.space.balance.kp=()"], "space.balance.kp is empty: expected values to try"),
        (["--config.space.balance.kp.low=3"], "space.balance.kp is empty: low = 3.0, high = 1.0"),
        (["--config.space.balance.kq=(1,)"], "no field config.space.balance.kq"),
        (["--workdir=a,b"], "--workdir=a,b: a comma parts several runs of a page"),
        (["--executor=slurm"], "value should be one of <local|ray>"),
    ],
)
def test_mistakes_are_told(arguments, told, file, sweep):
    path = file(make(search="tpe", space=GAINS))
    status, _, err = sweep(f"--config={path}", *arguments)
    assert status == 2
    assert told in err


def test_an_experiment_is_no_sweep(sweep):
    status, _, err = sweep("--config=experiments/zaya1_tiny.py", "--workdir=x")
    assert status == 2
    assert "names an experiment, no sweep" in err


def test_ray_is_asked_for_only_where_it_is_wanted(file, sweep, tmp_path, monkeypatch):
    path, arguments = file(make(arms={"a": {}})), [f"--workdir={tmp_path / 'w'}"]
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it was not installed
    assert sweep(f"--config={path}", *arguments)[0] == 0
    status, _, err = sweep(f"--config={path}", *arguments, "--executor=ray")
    assert status == 2
    assert "the ray package is not installed; `pip install ray`" in err


def ray_of(monkeypatch, *nodes):
    """A cluster that has nodes with so many CPUs, and runs nothing; returns what became of it."""
    calls = []
    module = types.SimpleNamespace(
        init=lambda **_: calls.append("init"),
        nodes=lambda: [{"Alive": True, "Resources": {"CPU": float(n)}} for n in nodes],
        remote=lambda function: types.SimpleNamespace(options=lambda **share: calls.append(share)),
        shutdown=lambda: calls.append("shutdown"),
    )
    monkeypatch.setitem(sys.modules, "ray", module)
    return calls


def test_limits_of_this_machine_are_none_of_a_clusters(file, sweep, monkeypatch):
    """The command may be typed where there is one GPU, for a cluster of many nodes."""
    seen = {**machine.look(), "backend": "gpu", "devices": ["one"]}
    monkeypatch.setattr(machine, "look", lambda: seen)
    path = file(make(arms={str(i): {} for i in range(99)}))
    arguments = [f"--config={path}", "--dry_run", "--workers=50"]
    status, _, err = sweep(*arguments)
    assert status == 2 and "--workers=50: a run has a GPU of its own, and there are 1" in err
    ray_of(monkeypatch, 64)
    status, out, err = sweep(*arguments, "--executor=ray")
    assert (status, err) == (0, "") and "50 at a time" in out
    calls = ray_of(monkeypatch, 7, 3, 8)
    status, out, _ = sweep(*arguments[:2], "--executor=ray", "--threads=4")
    assert status == 0 and "3 at a time" in out  # of 18 CPUs, but a run has those of one node
    assert {"max_retries": 2, "num_cpus": 4} in calls


def test_a_run_that_fits_no_node_is_not_waited_for(file, sweep, tmp_path, monkeypatch):
    calls, folder = ray_of(monkeypatch, 4, 2), tmp_path / "w"
    arguments = [f"--config={file(make(arms={'a': {}}))}", f"--workdir={folder}"]
    status, _, err = sweep(*arguments, "--executor=ray", "--threads=5")
    assert status == 2
    assert "--threads=5: no node of the cluster has so many CPUs" in err
    assert "the largest has 4" in err and calls == ["init", "shutdown"]
    assert not folder.exists()


def test_a_page_that_could_not_be_written_is_told(file, sweep, tmp_path, monkeypatch):
    monkeypatch.setenv("FAKE_REPORT_STATUS", "1")
    arguments = [f"--config={file(make(arms={'a': {}}))}", f"--workdir={tmp_path / 'a b'}"]
    status, out, _ = sweep(*arguments)
    assert status == 1
    assert f"try again: python launch.py report '--workdir={tmp_path / 'a b'}'" in out


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("def get_config(shape):\n    raise KeyError(shape)", "KeyError: 'wide'"),
        ("def get_config(shape):\n    raise ValueError('no ' + shape)", "ValueError: no wide"),
        ("import nothing_of_that_name", "ModuleNotFoundError: No module named 'nothing_of"),
        ("x = 1", "AttributeError: it has no get_config"),
    ],
)
def test_a_file_that_fails_is_told_before_anything_is_written(
    text, told, file, sweep, tmp_path, monkeypatch
):
    path, broken = file(make(arms={"a": {}})), tmp_path / "broken.py"
    broken.write_text(text)
    arguments = [f"--config={path}", f"--workdir={tmp_path / 'w'}"]
    status, _, err = sweep(*arguments, f"--config.file={broken}:wide")
    assert status == 2
    assert f"file = '{broken}:wide': {told}" in err
    assert not (tmp_path / "w").exists()


@pytest.mark.slow
def test_a_real_sweep_is_what_its_commands_train(file, tmp_path):
    """Arms of real runs, one of which fails and one is impossible; then an arm by hand."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    for i in range(12):
        lines = [f"def f{j}(x, y={i}):\n    return x * {j} + y\n" for j in range(40)]
        (corpus / f"m{i:02}.py").write_text("\n\n".join(lines))
    base = Experiment(
        model=MODEL,
        data=Data(
            source=str(corpus),
            heldout_fraction=0.2,
            heldout_max_bytes=4000,
            cache_dir=str(tmp_path / "cache"),
        ),
        train=Train(
            steps=6, batch_size=2, sequence_length=32, log_every=1, eval_every=3, checkpoint_every=3
        ),
        optim=Optim(learning_rate=1e-2, warmup_steps=2),
    )
    arms = {
        "eda": {},
        "linear": {"model": {"router": {"kind": "linear"}}},
        "no text": {"data": {"source": "nowhere"}},
        "impossible": {"model": {"attention": {"heads": 3, "kv_heads": 2}}},
    }
    path, folder = file(make(base, arms=arms, seeds=(1,))), tmp_path / "sweep"

    def launch(*arguments, **environment):
        command = [sys.executable, "launch.py", *arguments]
        return subprocess.run(
            command, cwd=ROOT, capture_output=True, text=True, env={**os.environ, **environment}
        )

    done = launch("sweep", f"--config={path}", f"--workdir={folder}")
    assert done.returncode == 1, done.stderr
    trials = record.read_trials(folder)
    assert [trial.state for trial in trials] == ["complete", "complete", "failed", "invalid"]
    assert "data.source = 'nowhere'" in trials[2].reason
    assert 1 < trials[0].value < 10

    _, _, *arguments = shlex.split(trials[1].command)
    by_hand = tmp_path / "by hand"
    done = launch(*arguments, f"--workdir={by_hand}", NPROC="1")
    assert done.returncode == 0, done.stderr
    last = [json.loads(line) for line in (by_hand / "metrics.jsonl").read_text().splitlines()][-1]
    assert last["heldout_bits_per_byte"] == trials[1].value  # to the last bit
    config = json.loads((by_hand / "config.json").read_text())
    assert config == json.loads((folder / "trials/001/seed-1/config.json").read_text())
