"""The training step of an experiment on its mesh, as a program to compile.

aot.compile("zaya_jax.aot.sharded:training", {"experiment": config.to_dict(...)}, target="mi300x",
            mesh=zaya_jax.config.mesh.parse("data=8,expert=8"), want_hlo=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import NamedSharding, PartitionSpec

from zaya_jax import config
from zaya_jax.aot.program import Program
from zaya_jax.config import Experiment
from zaya_jax.data.packing import Batch
from zaya_jax.model import functional
from zaya_jax.parallel import ONE_DEVICE, OneDevice, OnMesh
from zaya_jax.rl.packing import Rows
from zaya_jax.rl.step import make_add_gradient, zero_sums
from zaya_jax.train import state as train_state
from zaya_jax.train.checkpoint import placed_on
from zaya_jax.train.step import make_train_step, rates


def training(
    experiment: Mapping[str, Any] | Experiment, mesh: jax.sharding.Mesh | None = None
) -> Program:
    """One step, with every array where it lies.

    Args:
      experiment: as `config.to_dict` gives it; its own `mesh` is not read.
      mesh: with all axes of `zaya_jax.config.mesh.AXES`; None is one device.
    """
    these = _experiment(experiment)
    layout = ONE_DEVICE if mesh is None else OnMesh(these, mesh)
    state, frozen = _values(these, layout)
    shape = these.train.batch_size, these.train.sequence_length
    ints, weights = (_part(layout, shape, dtype) for dtype in (jnp.int32, jnp.float32))
    batch: Any = Batch(ints, ints, ints, ints, weights)
    step = make_train_step(these, layout)
    return Program(step, (state, frozen, batch, rates(these)), donate=(0,))


def reinforcing(
    experiment: Mapping[str, Any] | Experiment, mesh: jax.sharding.Mesh | None = None
) -> Program:
    """The gradient of one microbatch of reinforcement learning, added to those before it: the part
    of an update that needs the most memory. The optimizer's state is no argument of it, but lies
    beside it.

    Args:
      experiment: as for `training`; a microbatch is `rl.microbatch_rows` rows, of all devices.
      mesh: as for `training`.
    """
    these = _experiment(experiment)
    layout = ONE_DEVICE if mesh is None else OnMesh(these, mesh)
    state, frozen = _values(these, layout)
    shape = these.rl.microbatch_rows, these.rl.microbatch_tokens
    ints, floats = (_part(layout, shape, dtype) for dtype in (jnp.int32, jnp.float32))
    routes = None
    if these.rl.loss.replay:
        routes = _part(layout, (*shape, these.model.num_layers), jnp.uint8)
    rows: Any = Rows(ints, ints, ints, ints, floats, floats, floats, ints, routes)
    gradients, told = jax.eval_shape(lambda params: zero_sums(these, params), state.params)
    sums = _at_rest(layout, gradients), told
    add = make_add_gradient(these, these.rl.loss, layout)
    rollouts = jax.ShapeDtypeStruct((), jnp.float32)
    return Program(add, (sums, state.params, frozen, state.biases, rows, rollouts), donate=(0,))


def _experiment(given: Mapping[str, Any] | Experiment) -> Experiment:
    return given if isinstance(given, Experiment) else config.from_dict(given)


def _values(these: Experiment, layout: OneDevice) -> tuple[Any, Any]:
    """The state, and the base under LoRA, where they lie."""
    state = train_state.abstract(these)
    if not isinstance(layout, OnMesh):
        return state, _base(these) if these.lora.rank else {}
    frozen = {}
    if these.lora.rank:
        frozen = {
            path: jax.ShapeDtypeStruct(
                x.shape, x.dtype, sharding=NamedSharding(layout.mesh, layout.places[path].use)
            )
            for path, x in _base(these).items()
        }
    return placed_on(layout, state), frozen


def _base(these: Experiment) -> dict[str, Any]:
    return {
        path: jax.ShapeDtypeStruct(declared.shape, declared.dtype)
        for path, declared in functional.declarations(these.model).items()
    }


def _at_rest(layout: OneDevice, tree: Any) -> Any:
    return placed_on(layout, tree) if isinstance(layout, OnMesh) else tree


def _part(layout: OneDevice, shape: tuple[int, ...], dtype: Any) -> Any:
    """An array of a batch, [rows, tokens, ...]."""
    if not isinstance(layout, OnMesh):
        return jax.ShapeDtypeStruct(shape, dtype)
    spec = PartitionSpec(*layout.batch_sharding.spec, *(None,) * (len(shape) - 2))
    return jax.ShapeDtypeStruct(shape, dtype, sharding=NamedSharding(layout.mesh, spec))
