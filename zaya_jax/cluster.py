"""Who else takes part: what the command line, SLURM, MPI or Kubernetes say of the processes of a run.

Pure functions of flags, of an environment and of a list of devices; none of them imports jax. The
first of these that says how many processes there are is believed:

| by | coordinator | processes | this one |
|---|---|---|---|
| flags | `--coordinator` | `--processes` | `--process_id` |
| jax's variables, Kubernetes | `JAX_COORDINATOR_ADDRESS` | `JAX_NUM_PROCESSES` | `JAX_PROCESS_ID`, else `JOB_COMPLETION_INDEX` |
| SLURM, under `srun` | first of `SLURM_STEP_NODELIST` | `SLURM_STEP_NUM_TASKS` | `SLURM_PROCID` |
| Open MPI | host of `mpirun` | `OMPI_COMM_WORLD_SIZE` | `OMPI_COMM_WORLD_RANK` |
| MPICH and others with PMI | | `PMI_SIZE` | `PMI_RANK` |

A coordinator that is named, by the flag or by `JAX_COORDINATOR_ADDRESS`, goes before the one found.
"""  # noqa: E501

from __future__ import annotations

import dataclasses
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

from zaya_jax.errors import UserError

VISIBLE = ("HIP_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""By these, schedulers say which GPUs a process sees."""
PORT = 14579
"""Where processes of one machine, or pods of one job, meet if nothing else is said."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One process among those of a run.

    Attributes:
      coordinator: HOST:PORT at which process 0 listens.
      count: of processes.
      index: this one's number, from 0.
      devices: the GPUs, of those that it sees, that it takes; None for all of them.
      found: what said so, for messages.
    """

    coordinator: str
    count: int
    index: int
    devices: tuple[int, ...] | None
    found: str


def find(
    environment: Mapping[str, str],
    coordinator: str | None = None,
    processes: int | None = None,
    process_id: int | None = None,
    devices: tuple[int, ...] | None = None,
    gpus: Callable[[Mapping[str, str]], int] | None = None,
) -> Member | None:
    """This process's place among those of a run; None if it is the only one.

    Args:
      environment: of the process.
      coordinator, processes, process_id, devices: of the command line.
      gpus: counts those that the process sees.

    Raises:
      UserError: what is said is not enough, or contradicts itself; says what is missing.
    """
    said = coordinator or environment.get("JAX_COORDINATOR_ADDRESS")
    if processes is not None or process_id is not None:
        found = _Found("the flags", said, processes, process_id)
    else:
        first = _said(environment)
        if first is None:
            if coordinator is None:
                return None
            first = _Found("the flags", None, None, None)
        found = dataclasses.replace(first, coordinator=said or first.coordinator)
    return _checked(found, devices, environment, gpus or visible_gpus)


def scheduled(environment: Mapping[str, str]) -> bool:
    """Whether the environment says how many processes there are."""
    return _said(environment) is not None


@dataclasses.dataclass(frozen=True)
class _Found:
    """What one source says: the fields of a `Member`, some of them missing.

    Attributes:
      local: number of this process among those on its machine, and their count.
    """

    by: str
    coordinator: str | None
    count: int | None
    index: int | None
    local: tuple[int, int] = (0, 1)


def _checked(
    found: _Found,
    devices: tuple[int, ...] | None,
    environment: Mapping[str, str],
    gpus: Callable[[Mapping[str, str]], int],
) -> Member | None:
    count, index = found.count, found.index
    names = ("--coordinator=HOST:PORT", "--processes=N", "--process_id=I")
    said = (found.coordinator, count, index)
    if count == 1 and index in (0, None):
        return None
    if missing := [name for name, value in zip(names, said, strict=True) if value is None]:
        raise UserError(
            f"of several processes ({found.by}): {', '.join(missing)} missing; every process is "
            "started with the same coordinator, an address of process 0 that all can reach"
        )
    assert found.coordinator is not None and count is not None and index is not None
    if count < 1 or not 0 <= index < count:
        raise UserError(
            f"of several processes ({found.by}): process {index} of {count}; they are numbered "
            f"from 0 to {max(count - 1, 0)}"
        )
    if not re.fullmatch(r"(\[[0-9A-Fa-f:.]+\]|[^:\s/\[\]]+):[0-9]{1,5}", found.coordinator):
        raise UserError(
            f"coordinator {found.coordinator!r} ({found.by}): expected HOST:PORT, as in "
            f"node001:{PORT}"
        )
    return Member(
        found.coordinator,
        count,
        index,
        devices if devices is not None else share(*found.local, gpus(environment)),
        found.by,
    )


def share(index: int, count: int, gpus: int) -> tuple[int, ...] | None:
    """The GPUs of a process among those of its machine.

    None where it has all that it sees: it is the only one, there are none, or the scheduler shows
    every process its own one.

    Raises:
      UserError: there are several processes, and their number does not divide the GPUs.
    """
    if count == 1 or gpus <= 1:
        return None
    if gpus % count:
        raise UserError(
            f"{count} processes share a machine on which they see {gpus} GPUs: start as many as "
            f"divide {gpus}, or give each its own by --local_devices=0,1,..."
        )
    return _parts(tuple(range(gpus)), count)[index]


def shares(
    count: int, environment: Mapping[str, str], own: tuple[int, ...] | None = None
) -> list[tuple[int, ...]]:
    """The GPUs of each of the processes that one launcher starts; [] where each has all it sees.

    Args:
      count: of the processes.
      environment: of the launcher.
      own: the launcher's GPUs, where several launchers share a machine; None for all it sees.

    Raises:
      UserError: the processes cannot share the GPUs.
    """
    gpus = tuple(range(visible_gpus(environment))) if own is None else own
    if not gpus or count == 1:
        return [] if own is None else [own]
    if len(gpus) % count:
        raise UserError(
            f"--spawn={count}: the processes see {len(gpus)} GPUs; start as many as divide that "
            "(JAX_PLATFORMS=cpu leaves GPUs alone)"
        )
    return _parts(gpus, count)


def _parts(gpus: tuple[int, ...], count: int) -> list[tuple[int, ...]]:
    """Equal parts, in order."""
    each = len(gpus) // count
    return [gpus[i * each : (i + 1) * each] for i in range(count)]


def visible_gpus(environment: Mapping[str, str], root: Path = Path("/")) -> int:
    """How many GPUs a process sees, by the scheduler's word or by the drivers'; 0 on a CPU."""
    if environment.get("JAX_PLATFORMS", "") == "cpu":
        return 0
    for name in VISIBLE:
        if name in environment:
            return len([part for part in environment[name].split(",") if part.strip()])
    nodes = (root / "sys/class/kfd/kfd/topology/nodes").glob("*/properties")
    amd = sum(bool(re.search(r"^simd_count [1-9]", _read(node), re.M)) for node in nodes)
    return amd or len(list((root / "proc/driver/nvidia/gpus").glob("*")))


def _read(file: Path) -> str:
    try:
        return file.read_text()
    except OSError:
        return ""


def _said(environment: Mapping[str, str]) -> _Found | None:
    ways = (_jax(environment), _slurm(environment), _open_mpi(environment), _pmi(environment))
    return next((way for way in ways if way is not None), None)


def _jax(environment: Mapping[str, str]) -> _Found | None:
    count = _number(environment, "JAX_NUM_PROCESSES")
    if count is None:
        return None
    index = _number(environment, "JAX_PROCESS_ID")
    if index is None:  # an indexed job of Kubernetes numbers its pods so
        index = _number(environment, "JOB_COMPLETION_INDEX")
    return _Found("JAX_NUM_PROCESSES", None, count, index)


def _slurm(environment: Mapping[str, str]) -> _Found | None:
    nodes = environment.get("SLURM_STEP_NODELIST")
    if nodes is None:  # in a batch script, not under srun
        return None
    count = _number(environment, "SLURM_STEP_NUM_TASKS")
    # Two jobs may share a node: the port follows the job's number.
    job = _number(environment, "SLURM_JOB_ID") or 0
    here = _number(environment, "SLURM_LOCALID") or 0
    tasks = _tasks_here(environment)
    return _Found(
        "SLURM",
        f"{first_node(nodes)}:{_port(job)}",
        count,
        _number(environment, "SLURM_PROCID"),
        (0, 1) if _has_its_own(environment) else (here, tasks),
    )


def _has_its_own(environment: Mapping[str, str]) -> bool:
    """Whether SLURM shows each task GPUs of its own, by --gpus-per-task or --tres-per-task."""
    each = environment.get("SLURM_TRES_PER_TASK", "")
    return "SLURM_GPUS_PER_TASK" in environment or "gpu" in each


def _tasks_here(environment: Mapping[str, str]) -> int:
    """Of `SLURM_STEP_TASKS_PER_NODE`, as `8(x2),4`, the entry of this node."""
    tasks: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        if match := re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part.strip()):
            tasks += [int(match[1])] * int(match[2] or 1)
    node = _number(environment, "SLURM_NODEID") or 0
    return tasks[node] if node < len(tasks) else 1


def first_node(nodes: str) -> str:
    """The first name of a SLURM list: `node[001-004,9],x` -> `node001`."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\]([^,\[]*))?", nodes)
    return "" if match is None else "".join(part or "" for part in match.groups())


def _open_mpi(environment: Mapping[str, str]) -> _Found | None:
    count = _number(environment, "OMPI_COMM_WORLD_SIZE")
    if count is None:
        return None
    local = (
        _number(environment, "OMPI_COMM_WORLD_LOCAL_RANK") or 0,
        _number(environment, "OMPI_COMM_WORLD_LOCAL_SIZE") or 1,
    )
    # Version 4 names its own addresses; that of `mpirun` is that of rank 0, which it starts first.
    uri = environment.get("OMPI_MCA_orte_hnp_uri", "")
    host = re.search(r"tcp://([^,:]+)|tcp6://\[([^,\]]+)", uri)
    job = zlib.crc32(environment.get("PMIX_NAMESPACE", uri).encode())
    address = None
    if local[1] == count:
        address = f"localhost:{_port(job)}"
    elif host is not None:
        address = f"{host[1] or f'[{host[2]}]'}:{_port(job)}"
    rank = _number(environment, "OMPI_COMM_WORLD_RANK")
    return _Found("Open MPI", address, count, rank, local)


def _pmi(environment: Mapping[str, str]) -> _Found | None:
    count = _number(environment, "PMI_SIZE")
    if count is None:
        return None
    local = (
        _number(environment, "MPI_LOCALRANKID") or 0,
        _number(environment, "MPI_LOCALNRANKS") or 1,
    )
    address = f"localhost:{PORT}" if local[1] == count else None
    return _Found("PMI", address, count, _number(environment, "PMI_RANK"), local)


def _port(job: int) -> int:
    """A port that follows a job's number, below those that systems hand out by themselves."""
    return PORT + job % 4096


def _number(environment: Mapping[str, str], name: str) -> int | None:
    text = environment.get(name, "").strip()
    if not text:
        return None
    if not (text.isascii() and text.isdecimal()):
        raise UserError(f"{name} = {text!r} in the environment: expected a number")
    return int(text)
