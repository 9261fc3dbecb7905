"""Trains what the config says in a run directory, and resumes the run that is there.

Ctrl-C, SIGTERM or SIGHUP saves a checkpoint first; the same command goes on from it. SLURM, MPI and
Kubernetes say how many processes a run has; elsewhere `--spawn`, or `--coordinator`, `--processes`
and `--process_id` do (docs/scale.md)."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags

from zaya_jax import cluster, options
from zaya_jax.errors import UserError
from zaya_jax.train import restart

if TYPE_CHECKING:
    from zaya_jax.parallel.processes import Alone


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.config()
    options.workdir()
    options.mesh()
    options.json()
    flags.DEFINE_integer(
        "spawn", 0, "start so many processes here, and share its GPUs among them", lower_bound=0
    )
    flags.DEFINE_integer(
        "restarts", 0, "when a process is lost, start all again, so often at most", lower_bound=0
    )
    flags.DEFINE_string("coordinator", None, "HOST:PORT at which process 0 meets the others")
    flags.DEFINE_integer("processes", None, "processes of the run", lower_bound=1)
    flags.DEFINE_integer("process_id", None, "number of this process, from 0", lower_bound=0)
    flags.DEFINE_string("local_devices", None, "GPUs that this process takes, e.g. 0,1; all")
    flags.DEFINE_float(
        "watchdog_seconds",
        None,
        "without a step for so long, write all stacks and end; 0: never (default: 1800 for several "
        "processes, else 0)",
        lower_bound=0,
    )
    flags.DEFINE_float(
        "heartbeat_seconds", 60, "a process that is silent for so long is lost", lower_bound=1
    )
    flags.DEFINE_float(
        "connect_seconds", 300, "time for all processes to meet at the start", lower_bound=1
    )


def main(argv: Sequence[str]) -> int:
    """Returns 0 when all was done, 128 + the signal's number when one stopped the run."""
    settings, folder = options.require("config"), Path(options.require("workdir"))
    given = options.FLAGS
    if given.mesh is not None:
        settings.mesh = given.mesh
    if given.spawn or given.restarts:
        return restart.run(_launch(sys.argv[1:]), lambda line: print(line, file=sys.stderr))
    from zaya_jax.parallel import processes  # not above: `--help` needs no jax

    member = cluster.find(
        os.environ, given.coordinator, given.processes, given.process_id, _devices()
    )
    with processes.session(
        member, given.connect_seconds, given.heartbeat_seconds, given.watchdog_seconds
    ) as group:
        return _train(settings, folder, group)


def _train(settings: Any, folder: Path, group: Alone) -> int:
    from zaya_jax import load
    from zaya_jax.train import loop

    result = loop.train(load.experiment(settings), folder, group=group)
    if group.leads:
        options.write_json(
            {
                "workdir": str(result.folder),
                "step": result.step,
                "seconds": result.seconds,
                "heldout_bits_per_byte": result.bits_per_byte,
            }
        )
    if result.interrupted is not None:
        return 128 + int(result.interrupted)
    if group.leads:
        print(f"done: {folder}")
        print(f"  python launch.py generate --model={folder} --prompt='def '")
        print(f"  python launch.py report --workdir={folder}")
        print(f"  python launch.py export --model={folder} --out={folder}/hf")
    return 0


def _devices() -> tuple[int, ...] | None:
    """Those of `--local_devices`.

    Raises:
      UserError: it is no list of numbers.
    """
    text = options.FLAGS.local_devices
    if text is None:
        return None
    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise UserError(f"--local_devices={text}: expected numbers, as in 0,1")
    return tuple(map(int, parts))


def _launch(arguments: Sequence[str]) -> restart.Launch:
    """What `--spawn` and `--restarts` start. Where a scheduler has started this launcher on several
    machines, each starts its share of the run's processes."""
    given = options.FLAGS
    command, restarts = restart.command_of("train", arguments), given.restarts
    if not given.spawn:
        return restart.Launch(command, restarts=restarts)
    coordinator, count, first = given.coordinator, given.processes, given.process_id or 0
    among = None
    if count is None and given.process_id is not None:
        raise UserError(f"--process_id={given.process_id}: --process_id goes with --processes")
    if count is None:
        if cluster.scheduled(os.environ):
            among = cluster.find(os.environ, coordinator)
        count = given.spawn * (among.count if among else 1)
        if among is not None:
            coordinator, first = among.coordinator, given.spawn * among.index
    if count < given.spawn + first or (count > given.spawn and coordinator is None):
        raise UserError(
            f"--spawn={given.spawn}: processes {first} to {first + given.spawn - 1} of {count}; "
            "give --processes, the first one's --process_id, and the --coordinator of them all"
        )
    own = _devices() or (among.devices if among else None)
    shares = cluster.shares(given.spawn, os.environ, own)
    devices = [",".join(map(str, share)) for share in shares]
    return restart.Launch(command, given.spawn, coordinator, count, first, devices, restarts)
