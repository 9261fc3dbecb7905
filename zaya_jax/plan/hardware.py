"""The cluster that a plan is for: what a device holds, how fast it computes, what its links carry.

Every number can be changed by a file, `--hardware=mine.json`, of the fields below.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from zaya_jax.aot.targets import TARGETS, target_of
from zaya_jax.errors import UserError, hint


@dataclasses.dataclass(frozen=True)
class Hardware:
    """Nodes of equal devices. Rates are peaks; what of a peak is reached stands beside it.

    Attributes:
      target: name of the compiler's target (`zaya_jax.aot.targets`).
      memory: bytes of a device.
      usable: share of it that a program may plan with; the rest is the runtime's, the collectives'
        library's, and lost to fragmentation.
      matrix: FLOP/s of matrix products by the dtype of their operands, dense.
      matrix_reached: share of it in a step's products.
      bandwidth: bytes/s of device memory.
      bandwidth_reached: share of it.
      node: devices of a node.
      link: bytes/s that a device sends to all others of its node together, in one direction.
      switched: whether a few devices of a node get all of `link`; else each pair has a link of its
        own, with 1 / (node - 1) of it.
      network: bytes/s that a device sends to other nodes: its own NIC's, in one direction.
      links_reached: share of link and network.
      link_latency, network_latency: seconds of one message of a collective.
      overlap: share of the collectives' time that hides behind computation, if there is enough.
    """

    target: str
    memory: float
    usable: float
    matrix: Mapping[str, float]
    matrix_reached: float
    bandwidth: float
    bandwidth_reached: float
    node: int
    link: float
    switched: bool
    network: float
    links_reached: float
    link_latency: float
    network_latency: float
    overlap: float

    @property
    def limit(self) -> float:
        """Bytes that a program may plan with."""
        return self.memory * self.usable

    def flops(self, dtype: str) -> float:
        """FLOP/s that a step's products of `dtype` reach."""
        return self.matrix.get(dtype, self.matrix["float32"]) * self.matrix_reached


# Peaks and memory: `zaya_jax.aot.targets`, from the makers' data sheets. Shares reached, with their
# sources; "ours" marks a guess that nothing has been measured for.
_OWN = {
    "mi300x": dict(
        usable=0.93,  # XLA_PYTHON_CLIENT_MEM_FRACTION of our ROCm preset, which is AMD's
        matrix_reached=0.56,  # 750 PFLOP/s of matmul on 1,024 devices (AMD's blog on ZAYA1-base)
        bandwidth_reached=0.82,  # 4.33 of 5.3 TB/s (arXiv 2511.17127)
        node=8,
        link=448e9,  # Infinity Fabric: 7 links of 64 GB/s each way (MI300X platform data sheet)
        switched=False,
        network=50e9,  # one Pollara 400 Gb/s NIC a device (arXiv 2511.17127)
    ),
    "h100": dict(
        usable=0.93,  # ours, as above; jax takes 0.75 unless XLA_PYTHON_CLIENT_MEM_FRACTION says so
        matrix_reached=0.60,  # ours
        bandwidth_reached=0.91,  # 3.04 of 3.35 TB/s (arXiv 2511.17127)
        node=8,
        link=450e9,  # NVLink 4 through NVSwitch (H100 SXM data sheet: 900 GB/s both ways)
        switched=True,
        network=50e9,  # one ConnectX-7 NDR 400 Gb/s HCA a device (DGX H100 data sheet)
    ),
}
_OURS = dict(links_reached=0.8, link_latency=10e-6, network_latency=25e-6, overlap=0.0)


def cluster(target: str, file: str | None = None) -> Hardware:
    """The cluster of a target, with the fields that a JSON file changes.

    Raises:
      UserError: no such target; a file that cannot be read, or that says what there is not.
    """
    found = target_of(target)
    matrix = {dtype: rate for dtype, rate in found.peak.items() if dtype != "vector"}
    fields: dict[str, Any] = {
        "target": target,
        "memory": found.memory,
        "matrix": matrix,
        "bandwidth": found.bandwidth,
        **_OURS,
        **_OWN[target],
    }
    changes = {} if file is None else _read(file)
    for name, value in changes.items():
        if name == "matrix" and isinstance(value, dict):
            value = {**matrix, **value}
        fields[name] = value
    _check(fields, file)
    return Hardware(**fields)


def _read(file: str) -> dict[str, Any]:
    try:
        read = json.loads(Path(file).read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"--hardware={file}: {error}") from None
    if not isinstance(read, dict):
        raise UserError(f"--hardware={file}: expected an object of fields, as {{'network': 25e9}}")
    accepted = [field.name for field in dataclasses.fields(Hardware) if field.name != "target"]
    for name in read:
        if name not in accepted:
            raise UserError(f"--hardware={file}: no field {name!r}{hint(name, accepted)}")
    return read


def _check(fields: Mapping[str, Any], file: str | None) -> None:
    """Numbers where numbers are due: shares up to 1, sizes and rates above 0."""
    for name, value in fields.items():
        if name == "target":
            continue
        if name == "matrix" and not isinstance(value, dict):
            raise UserError(
                f"--hardware={file}: matrix is {value!r:.40}; expected rates by dtype, as "
                "{'bfloat16': 1e15}"
            )
        numbers = value.values() if name == "matrix" else [value]
        if name == "switched":
            good, wanted = isinstance(value, bool), "true or false"
        elif name == "node":
            good = isinstance(value, int) and not isinstance(value, bool) and value > 0
            wanted = "a whole number above 0"
        else:
            share = name in ("usable", "overlap") or name.endswith("_reached")
            least = name == "overlap" or name.endswith("_latency")
            good = all(
                isinstance(number, int | float)
                and not isinstance(number, bool)
                and (0 <= number if least else 0 < number)
                and (not share or number <= 1)
                for number in numbers
            )
            wanted = "a share from 0 to 1" if share else "a number above 0"
        if not good:
            raise UserError(f"--hardware={file}: {name} = {value!r}: expected {wanted}")


NAMES = tuple(TARGETS)
"""Targets that there is a cluster of."""
