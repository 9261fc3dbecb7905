"""Runs many trials of one experiment that differ in a few fields, each under every seed.

A sweep file says which: named arms, a grid, or a random or TPE search; see docs/sweeps.md. Each run
is a `launch.py train` of its own. The same command goes on with a sweep that was stopped or killed.
"""

from __future__ import annotations

import dataclasses
import shlex
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from zaya_jax import options
from zaya_jax.errors import UserError

if TYPE_CHECKING:
    from zaya_jax.config import Sweep
    from zaya_jax.sweep.executors import Executor

FLAGS = flags.FLAGS


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.config()
    flags.DEFINE_string("workdir", None, "the sweep's directory: runs, storage, records, report")
    flags.DEFINE_enum("executor", "local", ["local", "ray"], "processes here, or a Ray cluster")
    flags.DEFINE_integer(
        "workers", None, "trials at a time; by default as many as there are GPUs, else cores"
    )
    flags.DEFINE_integer(
        "threads", 1, "of each run on the CPU; another number gives other roundings"
    )
    flags.DEFINE_string(
        "ray_address", None, "auto joins the cluster of this machine, local starts one; by default "
        "whichever there is"
    )  # fmt: skip
    flags.DEFINE_bool("dry_run", False, "say what would be run and what it costs, and stop")
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0 when every trial ended and none failed, 1 when some did or the page could not be
    written, 128 + the signal's number when one stopped the sweep."""
    del argv
    settings = options.require("config")
    for name in ("workers", "threads"):
        value = FLAGS[name].value
        if value is not None and value < 1:
            raise UserError(f"--{name}={value}: expected at least 1")
    # Not above: `--help` needs neither jax nor Optuna.
    from zaya_jax.sweep import driver, machine, measures, plan, record, supervise, table
    from zaya_jax.sweep.board import Board
    from zaya_jax.train import workdir

    sweep = _sweep(settings)
    measures.check(sweep)
    plan.check_file(sweep)
    seen = machine.look()
    executor = _executor(seen)
    try:
        print(table.intro(sweep, table.known_beforehand(sweep), executor.workers), flush=True)
        if FLAGS.dry_run:
            return 0
        folder = _workdir()
        with driver.lock(folder):
            driver.claim(sweep, folder)
            starts = folder / workdir.ENVIRONMENT
            before = record.read_json(starts) if starts.exists() else []
            with driver.writing(folder):
                workdir.write_json(starts, [*before, seen])
            board = Board(sweep, folder)
            result = driver.run(sweep, folder, executor, supervise.launcher(), board)
    finally:
        executor.close()
    print(table.results(sweep, result.trials))
    options.write_json(
        {
            "workdir": str(folder),
            "objective": sweep.objective,
            "trials": [dataclasses.asdict(trial) for trial in table.ranked(sweep, result.trials)],
        }
    )
    if result.interrupted is not None:
        print(
            f"stopped by {result.interrupted.name}; nothing is lost. To go on: the same command "
            f"again, with --workdir={folder}"
        )
        return 128 + int(result.interrupted)
    # A command, as the runs are: the pages look at sweeps, and nothing here looks at them.
    print(end="", flush=True)
    report = ["report", f"--workdir={folder}"]
    paged = subprocess.run([*supervise.launcher(), *report], check=False).returncode == 0
    if not paged:
        print(f"the page could not be written; to try again: python launch.py {shlex.join(report)}")
    failed = [str(trial.number) for trial in result.trials if trial.state == "failed"]
    if failed:
        print(f"failed: trial {', '.join(failed)}; the logs are in {folder}/trials")
    return 1 if failed or not paged else 0


def _sweep(settings: Any) -> Sweep:
    """The checked form of a config, whose base may leave its model to `train.init_from`."""
    from zaya_jax import config, load

    data = settings.to_dict()
    if "base" not in data or not {"arms", "space"} & set(data):
        raise UserError(
            "--config names an experiment, no sweep: it has no base with arms or a space; see "
            "experiments/sweeps"
        )
    model = data["base"].get("model", {})
    if any(config.left_open(model)):
        data["base"] = config.to_dict(load.experiment(settings.base))
    return config.sweep_from_dict(data)


def _workdir() -> Path:
    """The sweep's directory, by a name that `report` can be told."""
    name = options.require("workdir")
    if "," in name:
        raise UserError(
            f"--workdir={name}: a comma parts several runs of a page; give another name"
        )
    return Path(name)


def _executor(seen: Mapping[str, Any]) -> Executor:
    """What runs the trials; the limits of this machine, of which `seen` tells, are local ones."""
    from zaya_jax.sweep import executors, machine

    if FLAGS.executor == "ray":
        return executors.Ray(FLAGS.ray_address, FLAGS.workers, FLAGS.threads)
    return executors.Local(machine.places(seen, FLAGS.workers, FLAGS.threads))
