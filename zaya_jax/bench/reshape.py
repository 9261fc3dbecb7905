"""A checkpoint saved on one mesh and restored on another: seconds, and memory of the host.

    python launch.py bench --suite=reshape --config=experiments/zaya1_8b.py \
        --config.model.num_layers=8 --config.model.param_dtype=bfloat16

Each side is a process of its own with eight virtual devices, so that its peak memory is its own.
No number is drawn: every element follows from its leaf and its place in it, and what was restored
is compared bit for bit. Of the optimizer there is nothing but two moments of the vectors. Memory is
read from Linux's /proc.

`python -m zaya_jax.bench.reshape SIDE CONFIG FOLDER` is one side.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from zaya_jax import config
from zaya_jax.config import Experiment
from zaya_jax.errors import UserError

DEVICES = 8
MESHES = {"save": "fsdp=2,expert=4", "restore": "data=4,context=2"}
_NUMBERS = 32_749  # a prime, so that strides do not fall together


@dataclasses.dataclass(frozen=True)
class Side:
    """What a process did.

    name: `save` or `restore`. mesh: its own. seconds: of the checkpoint alone. bytes: of the state.
    before, peak: bytes of the host that the process held, with the state if it saves it, and at
    most. wrong: leaves that are not what was saved.
    """

    name: str
    mesh: str
    seconds: float
    bytes: int
    before: int
    peak: int
    wrong: int


def measure(experiment: Experiment) -> list[Side]:
    """Both sides, one after the other, by a checkpoint in the system's temporary folder.

    Raises:
      UserError: a side failed, in its own words.
    """
    factors = dataclasses.replace(experiment.optim.factors, matrix=0.0, embedding=0.0)
    train = dataclasses.replace(
        experiment.train, batch_size=DEVICES, sequence_length=experiment.model.context_length
    )
    optim = dataclasses.replace(experiment.optim, factors=factors)
    experiment = dataclasses.replace(experiment, optim=optim, train=train)
    with tempfile.TemporaryDirectory(prefix="zaya-reshape-") as folder:
        sides = []
        for name, mesh in MESHES.items():
            own = config.to_dict(dataclasses.replace(experiment, mesh=mesh))
            environment = {
                **os.environ,
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"--xla_force_host_platform_device_count={DEVICES}",
            }
            command = [sys.executable, "-m", "zaya_jax.bench.reshape", name, json.dumps(own)]
            done = subprocess.run(
                [*command, folder],
                env=environment,
                cwd=Path(__file__).parents[2],
                capture_output=True,
                text=True,
            )
            if done.returncode:
                told = done.stderr.strip().splitlines()[-1:] or [f"status {done.returncode}"]
                raise UserError(f"--suite=reshape: {name} on {mesh} failed: {told[0]}")
            sides.append(Side(**json.loads(done.stdout.splitlines()[-1])))
        return sides


def table(sides: list[Side]) -> str:
    """For a person."""
    lines = [f"{'':<8} {'mesh':<20} {'state':>10} {'seconds':>8} {'held before':>12} {'peak':>10}"]
    for side in sides:
        wrong = f"  {side.wrong} LEAVES DIFFER" if side.wrong else ""
        sizes = [f"{size / 2**30:.2f} GiB" for size in (side.bytes, side.before, side.peak)]
        lines.append(
            f"{side.name:<8} {side.mesh:<20} {sizes[0]:>10} {side.seconds:>8.1f} "
            f"{sizes[1]:>12} {sizes[2]:>10}{wrong}"
        )
    return "\n".join(lines)


def run(name: str, experiment: Experiment, folder: Path) -> Side:
    """One side, in this process."""
    import jax

    from zaya_jax.parallel import layout as layout_of
    from zaya_jax.train import state as train_state
    from zaya_jax.train.checkpoint import Checkpoints, placed_on

    layout = layout_of(experiment)
    wanted = placed_on(layout, train_state.abstract(experiment))
    leaves, structure = jax.tree.flatten(wanted)
    wrong = 0
    with closing(Checkpoints(folder, experiment, layout)) as checkpoints:
        if name == "save":
            state = jax.tree.unflatten(structure, [made(*leaf) for leaf in enumerate(leaves)])
            before, began = _held(), time.perf_counter()
            checkpoints.save(state)
            checkpoints.wait()
            checkpoints.raise_failure()
            seconds, peak = time.perf_counter() - began, _peak()
        else:
            before, began = _held(), time.perf_counter()
            found = checkpoints.restore()
            seconds, peak = time.perf_counter() - began, _peak()
            wrong = differing(jax.tree.leaves(found))
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in leaves)
    return Side(name, experiment.mesh, seconds, size, before, peak, wrong)


def made(number: int, leaf: Any) -> Any:
    """The array of a leaf, a `jax.ShapeDtypeStruct` with its sharding, and of its number."""
    import jax

    return jax.make_array_from_callback(
        leaf.shape, leaf.sharding, lambda at: _values(leaf, number, at)
    )


def differing(arrays: list[Any]) -> int:
    """How many of these arrays, in the order of their numbers, are not bit for bit as `made`."""
    return sum(
        any(
            np.asarray(shard.data).tobytes() != _values(array, number, shard.index).tobytes()
            for shard in array.addressable_shards
        )
        for number, array in enumerate(arrays)
    )


def _values(leaf: Any, number: int, at: tuple[slice, ...]) -> np.ndarray:
    """What stands at some place of a leaf: small whole numbers, exact in every dtype; 0 in a leaf
    of one number, as the step."""
    if not leaf.shape:
        return np.zeros((), leaf.dtype)
    ends = [place.indices(size) for place, size in zip(at, leaf.shape, strict=True)]
    total = np.full([], number, np.int64)
    for axis, (start, stop, _) in enumerate(ends):
        stride = math.prod(leaf.shape[axis + 1 :]) % _NUMBERS
        steps = np.arange(start, stop, dtype=np.int64) * stride % _NUMBERS
        total = total[..., None] + steps
    return (total % _NUMBERS % 251).astype(leaf.dtype)


def _held() -> int:
    """Bytes that this process holds now; from now on `_peak` counts anew."""
    Path("/proc/self/clear_refs").write_text("5")
    return _peak()


def _peak() -> int:
    """Bytes that it has held at most since the last `_held`."""
    status = Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024  # type: ignore[index]


if __name__ == "__main__":
    side, text, place = sys.argv[1:]
    result = run(side, config.from_dict(json.loads(text)), Path(place))
    print(json.dumps(dataclasses.asdict(result)))
