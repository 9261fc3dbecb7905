"""The run directory: what lies where in it, whose run it is, and what it ran on.

    config.json        the experiment, fully resolved
    data.json          the corpus, its hash, and what was made of it
    base.json          under LoRA: where the weights under the adapters are, and their checksum
    environment.json   one record for each start: command, versions, commit, hardware
    metrics.jsonl      see `zaya_jax.train.metrics`
    tensorboard/       the same as events
    checkpoints/       see `zaya_jax.train.checkpoint`
    tokenizer/         tokenizer.json and its companions
    .lock              held by the process that trains here

What binds a run to its config and its data is a checkpoint. A start that ended before its first
one leaves nothing that is worth keeping: the next start, of whatever config, begins anew.
"""

from __future__ import annotations

import datetime
import fcntl
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from zaya_jax.config import Experiment, from_dict, to_dict
from zaya_jax.data.cache import atomic_path, is_scratch
from zaya_jax.errors import UserError

CONFIG, DATA, ENVIRONMENT = "config.json", "data.json", "environment.json"
BASE = "base.json"
METRICS, TENSORBOARD = "metrics.jsonl", "tensorboard"
CHECKPOINTS, TOKENIZER, LOCK = "checkpoints", "tokenizer", ".lock"

_CHECKPOINT = re.compile(r"\d+|damaged-.+")

MAY_CHANGE = (
    "name",
    "data.cache_dir",
    "train.steps",
    "train.log_every",
    "train.log_loads",
    "train.eval_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.microbatches",
    "train.peak_tflops",
    "train.wandb",
    "model.remat",
    "model.ops",
    "faults",
    "mesh",
    "parallel",
    "rl.concurrent",
    "rl.pool_gb",
    "rl.rollout",
    "rl.workers",
    "rl.microbatch_tokens",
    "rl.microbatch_rows",
    "rl.verifier_seconds",
    "rl.verifier_processes",
)
"""Fields (or sections) in which a resumed run may differ from what its directory says: how long and
how it is run, not what is trained. A cosine schedule follows a new `train.steps`. The form of the
layers may not change: it is the layout of the checkpoint."""

DISTRIBUTIONS = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy")


@contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keeps other processes from training in `folder` inside the block; makes the folder.

    Raises:
      UserError: another process trains there, or as `claim` says of the folder.
    """
    _make(folder)
    with _writing(folder):
        file = (folder / LOCK).open("a")
    with held(file, f"another process trains in --workdir={folder}"):
        yield


@contextmanager
def held(file: IO[str], busy: str) -> Iterator[None]:
    """Holds the lock of an open file inside the block, and closes the file.

    Raises:
      UserError: another process holds it; says `busy`.
    """
    with file:  # the lock goes with the file, however the process ends
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(busy) from None
        except OSError:
            pass  # a file system without locks
        yield


def claim(experiment: Experiment, folder: Path) -> bool:
    """Makes `folder` the run directory of `experiment`, or takes the run in it up again.

    Returns:
      Whether a run of this experiment was there already, with a checkpoint.

    Raises:
      UserError: the folder cannot be written, holds other things, or a run of another config; the
        message lists the fields that differ.
    """
    _make(folder)
    started = has_checkpoint(folder)
    if started:
        _check_same(experiment, read_config(folder), folder)
    with _writing(folder):
        if not started:
            for name in (DATA, BASE, METRICS):
                (folder / name).unlink(missing_ok=True)
            for name in (TENSORBOARD, TOKENIZER):
                shutil.rmtree(folder / name, ignore_errors=True)
        write_json(folder / CONFIG, to_dict(experiment))
    return started


def open_run(experiment: Experiment, folder: Path, stack: ExitStack) -> None:
    """Locks a run directory until the stack is closed, and claims it.

    Raises:
      UserError: as `lock` and `claim`.
    """
    stack.enter_context(lock(folder))
    claim(experiment, folder)


def mark(folder: Path) -> str:
    """What tells the run directory that was claimed last from all others, and from its past."""
    try:
        found = (folder / CONFIG).stat()
    except OSError as error:
        return f"{folder / CONFIG}: {error.strerror}"
    return f"{found.st_mtime_ns} {found.st_size}"


def has_checkpoint(folder: Path) -> bool:
    """Whether a run was ever saved in `folder`, be it in checkpoints found damaged since."""
    return any(_CHECKPOINT.fullmatch(path.name) for path in (folder / CHECKPOINTS).glob("*"))


def _make(folder: Path) -> None:
    """Makes a folder for a run, and refuses one that holds other things."""
    with _writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        names = {path.name for path in folder.iterdir() if not is_scratch(path)}
    if CONFIG not in names and names - {LOCK}:
        raise UserError(
            f"--workdir={folder} is neither empty nor a run directory (it has no {CONFIG}): "
            "give a new or an empty folder"
        )


@contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"--workdir={folder}: cannot write there: {error.strerror}") from error


def read_config(folder: Path) -> Experiment:
    """The experiment of a run directory.

    Raises:
      UserError: there is no `config.json`, or it cannot be read as one of this version.
    """
    file = folder / CONFIG
    try:
        return from_dict(json.loads(file.read_text()))
    except FileNotFoundError:
        raise UserError(f"{folder} is no run directory: it has no {CONFIG}") from None
    except json.JSONDecodeError as error:
        raise UserError(f"{file} is not JSON: {error}") from None
    except UserError as error:
        raise UserError(f"{file}: {error}") from None


def differences(a: Mapping[str, Any], b: Mapping[str, Any], path: str = "") -> dict[str, tuple]:
    """The leaves in which two nested dicts differ: dotted path -> (value in a, value in b)."""
    found: dict[str, tuple] = {}
    for name in dict.fromkeys([*a, *b]):
        where, left, right = f"{path}{name}", a.get(name), b.get(name)
        if isinstance(left, Mapping) and isinstance(right, Mapping):
            found |= differences(left, right, f"{where}.")
        elif left != right:
            found[where] = (left, right)
    return found


def _check_same(experiment: Experiment, there: Experiment, folder: Path) -> None:
    changed = {
        path: values
        for path, values in differences(to_dict(there), to_dict(experiment)).items()
        if not any(path == free or path.startswith(f"{free}.") for free in MAY_CHANGE)
    }
    if changed:
        lines = [f"  {path}: {old!r} there, {new!r} here" for path, (old, new) in changed.items()]
        raise UserError(
            f"--workdir={folder} holds a run of another config:\n" + "\n".join(lines) + "\n"
            "give another --workdir, or the same config to resume that run"
        )


def check_data(folder: Path, info: Mapping[str, Any]) -> None:
    """Records what the data is (`DataInfo.as_json`), or compares it with what was recorded.

    What counts are the rows that batches are made of. Where they are the same, the rest may differ:
    names of files, what was left out of them, what else is told about them.

    Raises:
      UserError: the run in `folder` began on other data.
    """
    file = folder / DATA
    info = json.loads(json.dumps(info))
    if file.exists():
        then = json.loads(file.read_text())
        if then.get("rows_sha256") != info["rows_sha256"]:
            changed = differences(then, info)
            lines = [f"  {path}: {old!r} then, {new!r} now" for path, (old, new) in changed.items()]
            raise UserError(
                f"the data changed since the run in {folder} began:\n" + "\n".join(lines) + "\n"
                "restore it, or train anew in another --workdir"
            )
    write_json(file, info)


def record_environment(folder: Path) -> None:
    """Appends the record of this start to `environment.json`."""
    file = folder / ENVIRONMENT
    starts = json.loads(file.read_text()) if file.exists() else []
    write_json(file, [*starts, environment()])


def environment() -> dict[str, Any]:
    """What a result depends on beside the config: command, versions, commit, hardware."""
    import jax

    return {
        "time": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "command": " ".join(["python", sys.argv[0], *map(shlex.quote, sys.argv[1:])]),
        "commit": _commit(),
        "python": platform.python_version(),
        "versions": {name: metadata.version(name) for name in DISTRIBUTIONS},
        "platform": platform.platform(terse=True),
        "processor": _processor(),
        "cores": _cores(),
        "backend": jax.default_backend(),
        "devices": [device.device_kind for device in jax.devices()],
        "processes": jax.process_count(),
    }


def _commit() -> str | None:
    """The commit of this code, `-dirty` if tracked files differ; None outside a git checkout.

    Pages in docs/results do not count: they are written while their studies run.
    """
    git = ["git", "-C", str(Path(__file__).parents[2])]
    try:
        found = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=True
        ).stdout.strip()
        changed = subprocess.run(
            [*git, "diff", "--quiet", "HEAD", "--", ":/", ":(exclude,top)docs/results"],
            capture_output=True,
            timeout=10,
            check=False,
        ).returncode
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{found}-dirty" if changed else found


def _cores() -> int | None:
    """Cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def write_json(file: Path, content: Any) -> None:
    """Writes a JSON file whole or not at all."""
    with atomic_path(file) as scratch:
        scratch.write_text(json.dumps(content, indent=2) + "\n")
