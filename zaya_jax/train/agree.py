"""That all processes of a run were started alike: the same config, the same code, the same data.

Processes that differ would not fail: they would wait for each other for ever, or train on what
nobody has asked for. So they compare before anything else happens, and say what differs.
"""

from __future__ import annotations

import json
import platform
import time
import zlib
from importlib import metadata
from pathlib import Path
from typing import Any

from zaya_jax.config import Experiment, to_dict
from zaya_jax.parallel.processes import Alone
from zaya_jax.train.workdir import DISTRIBUTIONS, differences, mark

_PACKAGES = ("zaya_jax", "pallas_kernels")
_MAY_DIFFER = ("data.cache_dir",)
"""Machines may keep what they have prepared where they like."""
_MANY = 8
"""Of differences, so many are named."""


def check(group: Alone, experiment: Experiment) -> None:
    """Compares this process with process 0.

    Raises:
      UserError: in all processes, if one of them differs from process 0; lists what does.
    """
    if group.count == 1:
        return
    mine = about(experiment)
    theirs = group.share(lambda: mine)
    found = compare(theirs, json.loads(json.dumps(mine)))
    told = group.gather("\n".join(found))
    lines = [
        f"process {index} differs from process 0:\n{text}"
        for index, text in enumerate(told)
        if text
    ]
    if lines:
        way = "Start all processes with the same command, from the same code"
        raise group.mistake("\n".join([*lines, way]))


def check_folder(group: Alone, folder: Path, seconds: float = 60.0) -> None:
    """Checks that all processes see the run directory that process 0 has just claimed.

    Args:
      group: the processes.
      folder: the run directory.
      seconds: that a shared file system may take to show it to the other machines.

    Raises:
      UserError: in all of them, if one does not.
    """
    wanted = group.share(lambda: mark(folder))
    end = time.monotonic() + seconds
    while mark(folder) != wanted and time.monotonic() < end:
        time.sleep(0.5)
    _check_same(
        group,
        mark(folder),
        f"--workdir={folder}: another folder than process 0 writes to; it must lie on a file "
        "system that all processes see under the same path",
    )


def check_data(group: Alone, named: str, rows_sha256: str) -> None:
    """Checks that all processes make their rows of the same text.

    Raises:
      UserError: in all of them, if one does not.
    """
    _check_same(group, rows_sha256, f"{named}: other text than process 0 reads")


def _check_same(group: Alone, mine: str, wrong: str) -> None:
    told = group.gather(mine)
    others = [str(index) for index, text in enumerate(told) if text != told[0]]
    if others:
        raise group.mistake(f"process {', '.join(others)}: {wrong}")


def about(experiment: Experiment) -> dict[str, Any]:
    """What must be the same in all processes; JSON."""
    return {
        "config": to_dict(experiment),
        "code": code(),
        "version": {
            "python": platform.python_version(),
            **{name: metadata.version(name) for name in DISTRIBUTIONS},
        },
    }


def code() -> dict[str, str]:
    """Every Python file of the packages, with its checksum."""
    root = Path(__file__).parents[2]
    return {
        str(file.relative_to(root)): f"{zlib.crc32(file.read_bytes()):08x}"
        for package in _PACKAGES
        for file in sorted((root / package).rglob("*.py"))
    }


def compare(first: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """One line for each thing in which a process differs from process 0."""
    lines = []
    for kind in mine:
        if kind == "code":
            files = dict.fromkeys([*first[kind], *mine[kind]])
            changed = [file for file in files if first[kind].get(file) != mine[kind].get(file)]
            found = [f"code: {file}" for file in changed]
        else:
            found = [
                f"{kind}.{path}: {there!r} in process 0, {here!r} here"
                for path, (there, here) in differences(first[kind], mine[kind]).items()
                if path not in _MAY_DIFFER
            ]
        more = [f"... and {len(found) - _MANY} more"] if len(found) > _MANY else []
        lines += [*found[:_MANY], *more]
    return [f"  {line}" for line in lines]
