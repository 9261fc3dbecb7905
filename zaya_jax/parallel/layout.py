"""On which devices a run lies: all that training must know of it, for one device and for a mesh.

`OneDevice` says what there is to say, and does nothing; a program made with it is the program of a
single device. `OnMesh` does the same for many: the step's gradient runs inside one `shard_map`, in
which every op sees the shards of its device and nothing moves but what is written to move; the
optimizer runs outside of it, on parameters at rest, each device on its shards.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import jax
import numpy as np
from jax import lax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from zaya_jax import lora
from zaya_jax.config import Experiment
from zaya_jax.config import mesh as line
from zaya_jax.data import Batch, Batches
from zaya_jax.errors import UserError
from zaya_jax.model import functional
from zaya_jax.model.shard import WHOLE, Shard
from zaya_jax.muon import in_pieces
from zaya_jax.parallel import context, muon, parts, weights
from zaya_jax.parallel.expert import Exchange
from zaya_jax.parallel.rules import TABLE, Place, place
from zaya_jax.parallel.shard import MeshShard

T = TypeVar("T")


class OneDevice:
    """Everything on the first device.

    Attributes:
      shard: for the model.
      devices: how many.
    """

    shard: Shard = WHOLE
    devices = 1

    def matrices(self, path: str, function: Callable[..., jax.Array], *arrays: jax.Array):
        """How Muon goes through the matrices of a leaf; see `zaya_jax.muon.scale_by_muon`."""
        return in_pieces(function, *arrays)

    # Inside a step, on the shards of a device.

    def total(self, tree: T) -> T:
        """Sums over all parts of the batch."""
        return tree

    def portion(self, x: jax.Array) -> jax.Array:
        """A device's share of a number that all of them have, for sums over devices."""
        return x

    def gather(self, params: weights.Values) -> weights.Values:
        """Parameters at rest to those that are used for a step."""
        return params

    def lazy(self, params: weights.Values) -> dict[str, Any]:
        """Parameters in use as `functional.merge` takes them."""
        return params

    def scatter(self, gradients: weights.Values) -> weights.Values:
        """This part's gradients of parameters in use to the whole batch's of those at rest."""
        return gradients

    def over(self, function: Callable, *, params: int, results: bool) -> Callable:
        """A function of shards as a function of whole arrays.

        Args:
          function: `(params at rest, ..., biases, batch) -> results`.
          params: how many arguments are parameters; those after the first are in use, not at rest.
          results: whether the first result is like the first argument; all others are numbers that
            every device has.
        """
        return function

    # Outside of a step.

    def shardings(self, tree: Any) -> Any:
        """Where each leaf of a state, or of a part of it, lies at rest.

        Args:
          tree: of arrays or their shapes; what belongs to a parameter stands under its path.
        """
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        return jax.tree.map(lambda _: device, tree)

    def constrain(self, tree: T) -> T:
        """Inside jit: leaves are to lie as `shardings` says."""
        return tree

    def place(self, tree: T) -> T:
        """Puts a state, or a part of it, where it is to lie."""
        return jax.device_put(tree, jax.devices()[0])

    def place_frozen(self, params: weights.Values) -> weights.Values:
        """Puts parameters that are not trained where they are used."""
        return self.place(params)

    def place_batch(self, batch: Batch) -> Batch:
        """Puts a batch of whole rows where its parts are computed."""
        return jax.device_put(batch, jax.devices()[0])

    def load(self, batches: Batches, number: int) -> Batch:
        """Makes a batch and places it; of several processes, each makes its devices' rows."""
        return self.place_batch(batches.batch(number))

    def make(self, function: Callable[[], T]) -> T:
        """The state that a function returns, placed."""
        return function()

    def describe(self) -> list[str]:
        """Lines for a person; none for one device."""
        return []


ONE_DEVICE = OneDevice()


class OnMesh(OneDevice):
    """Divided over the devices of a mesh.

    Args:
      experiment: its `mesh`, and what there is to divide.
      mesh: with all axes of `zaya_jax.config.mesh.AXES`, an abstract one to compile only.
    """

    def __init__(self, experiment: Experiment, mesh: Mesh):
        self.experiment, self.mesh = experiment, mesh
        sizes = dict(mesh.shape)
        self.devices = math.prod(sizes.values())
        axes = tuple(axis for axis, size in sizes.items() if size > 1)
        declared = {**functional.declarations(experiment.model), **lora.trained(experiment)}
        self.places: Mapping[str, Place] = {
            path: place(found, sizes) for path, found in declared.items()
        }
        self.exchange: Exchange | None = None
        if sizes["expert"] > 1:
            section = experiment.parallel
            self.exchange = Exchange.of(sizes["expert"], section.all_to_all, section.room)
        self.shard = MeshShard(axes, sizes["context"], self.exchange)
        self.axes, self.sizes = axes, sizes
        self._matrices = muon.matrices(mesh, self.places, in_pieces)

    def matrices(self, path, function, *arrays):
        """See `OneDevice`."""
        return self._matrices(path, function, *arrays)

    def total(self, tree):
        """See `OneDevice`."""
        return lax.psum(tree, self.axes)

    def portion(self, x):
        """See `OneDevice`."""
        return x / self.devices

    def gather(self, params):
        """See `OneDevice`."""
        return weights.gather(self.places, params)

    def lazy(self, params):
        """See `OneDevice`."""
        return weights.lazy(self.places, params)

    def scatter(self, gradients):
        """See `OneDevice`."""
        return weights.scatter(self.places, gradients)

    def over(self, function, *, params, results):
        """See `OneDevice`."""
        numbers = PartitionSpec()

        def call(*args):
            rest = {path: self.places[path].rest for path in args[0]}
            used = [{path: self.places[path].use for path in tree} for tree in args[1:params]]
            return jax.shard_map(
                function,
                mesh=self.mesh,
                in_specs=(rest, *used, numbers, self._batch),
                out_specs=(rest, numbers) if results else numbers,
                check_vma=False,
            )(*args)

        return call

    @property
    def _batch(self) -> PartitionSpec:
        return PartitionSpec(TABLE["batch"], TABLE["sequence"])

    def shardings(self, tree):
        """See `OneDevice`."""

        def of(keys, leaf) -> NamedSharding:
            for key in reversed(keys):
                found = self.places.get(str(getattr(key, "key", "")))
                if found is not None and found.shape == leaf.shape:
                    return NamedSharding(self.mesh, found.rest)
            return NamedSharding(self.mesh, PartitionSpec())

        return jax.tree_util.tree_map_with_path(of, tree)

    def constrain(self, tree):
        """See `OneDevice`."""
        return lax.with_sharding_constraint(tree, self.shardings(tree))

    def place(self, tree):
        """See `OneDevice`. Of several processes, each brings the whole tree."""
        return self._put(tree, self.shardings(tree))

    def place_frozen(self, params):
        """See `OneDevice`; as `place`."""
        used = {path: NamedSharding(self.mesh, self.places[path].use) for path in params}
        return self._put(params, used)

    def _put(self, tree, shardings):
        if self._alone:
            return jax.device_put(tree, shardings)
        return jax.tree.map(parts.spread, tree, shardings)

    @property
    def _alone(self) -> bool:
        return jax.process_count() == 1

    def place_batch(self, batch):
        """See `OneDevice`. Rows and tokens are taken in another order, which no sum depends on."""
        rows, tokens = self.rows(len(batch.tokens)), self.tokens(batch.tokens.shape[1])
        ordered = jax.tree.map(lambda x: np.asarray(x)[rows][:, tokens], batch)
        return jax.device_put(ordered, self.batch_sharding)

    def load(self, batches, number):
        """See `OneDevice`. What `place_batch` would place."""
        if self._alone:
            return super().load(batches, number)
        count = batches.batch_size
        owners = np.vectorize(lambda device: device.process_index)(self.mesh.devices)
        places = parts.own_places(owners, jax.process_index(), count)
        own = batches.batch(number, self.rows(count)[places])
        tokens = self.tokens(own.tokens.shape[1])
        return jax.tree.map(
            lambda x: parts.from_own_rows(x[:, tokens], places, count, self.batch_sharding), own
        )

    @property
    def batch_sharding(self) -> NamedSharding:
        """Of a batch's fields [B, S]."""
        return NamedSharding(self.mesh, self._batch)

    def rows(self, count: int) -> np.ndarray:
        """[B]: which row of a batch stands at each place; see `parts.row_order`."""
        microbatches = self.experiment.train.microbatches
        return parts.row_order(count, microbatches, line.row_shards(self.sizes))

    def tokens(self, length: int) -> np.ndarray:
        """[S]: which token of a row stands at each place."""
        return context.order(length, self.sizes["context"])

    def make(self, function):
        """See `OneDevice`. No device ever holds more than its shards."""
        shape = jax.eval_shape(function)
        return jax.jit(function, out_shardings=self.shardings(shape))()

    def describe(self):
        """See `OneDevice`."""
        sizes = " x ".join(f"{axis} {self.sizes[axis]}" for axis in self.axes)
        kind = self.mesh.devices.flat[0].device_kind
        several = "" if self._alone else f" of {jax.process_count()} processes"
        lines = [f"mesh: {sizes}: {self.devices} devices ({kind}){several}"]
        if self.exchange is not None:
            lines.append(f"  tokens travel to their experts by {self.exchange.kind} all-to-all")
        if self.sizes["fsdp"] > 1 and self.experiment.model.remat == "none":
            lines.append(
                "note: model.remat = none keeps the weights that fsdp gathers for the backward "
                "pass; dots or full gathers them again, and holds a layer's at a time"
            )
        return lines


def make_mesh(sizes: Mapping[str, int], devices: Sequence[Any]) -> Mesh:
    """The devices as a mesh with all axes, outermost first.

    Raises:
      UserError: the mesh has more devices than there are.
    """
    wanted = math.prod(sizes.values())
    if wanted > len(devices):
        product = " x ".join(f"{axis} {size}" for axis, size in sizes.items() if size > 1)
        raise UserError(
            f"mesh: {product} takes {wanted} devices, and jax has {len(devices)} "
            f"({devices[0].device_kind}): take a smaller mesh, or for a trial on a CPU set "
            f"XLA_FLAGS=--xla_force_host_platform_device_count={wanted}"
        )
    shape = tuple(sizes[axis] for axis in line.AXES)
    return Mesh(np.array(devices[:wanted]).reshape(shape), line.AXES)


def layout(experiment: Experiment, devices: Sequence[Any] | None = None) -> OneDevice:
    """How an experiment lies on the devices that it names.

    Raises:
      UserError: as `make_mesh`, or a mesh that does not fit the experiment, or one that leaves
        devices of several processes idle.
    """
    problems = list(line.check(experiment))
    if problems:
        raise UserError("\n".join(problems))
    sizes = line.parse(experiment.mesh)
    wanted = math.prod(sizes.values())
    if devices is None and (wanted > 1 or jax.process_count() > 1):
        devices = sorted(jax.devices(), key=lambda device: (device.process_index, device.id))
        if wanted < len(devices) and jax.process_count() > 1:
            raise UserError(
                f"mesh = {experiment.mesh!r}: {wanted} of the {len(devices)} devices that the "
                f"{jax.process_count()} processes have together; all are to take part, as in "
                f"--mesh=data={len(devices)}"
            )
    if wanted == 1:
        return ONE_DEVICE
    assert devices is not None
    return OnMesh(experiment, make_mesh(sizes, devices))
