"""The training step of an experiment on its mesh, as a program to compile.

aot.compile("zaya_jax.aot.sharded:training", {"experiment": config.to_dict(...)}, target="mi300x",
            mesh=zaya_jax.config.mesh.parse("data=8,expert=8"), want_hlo=True)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zaya_jax import config
from zaya_jax.aot.program import Program
from zaya_jax.config import Experiment
from zaya_jax.data.packing import Batch
from zaya_jax.parallel import OnMesh
from zaya_jax.train import state as train_state
from zaya_jax.train.checkpoint import placed_on
from zaya_jax.train.step import make_train_step, rates


def training(experiment: Mapping[str, Any] | Experiment, mesh: jax.sharding.Mesh) -> Program:
    """One step, with every array where it lies.

    Args:
      experiment: as `config.to_dict` gives it; its own `mesh` is not read.
      mesh: with all axes of `zaya_jax.config.mesh.AXES`.
    """
    these = experiment if isinstance(experiment, Experiment) else config.from_dict(experiment)
    layout = OnMesh(these, mesh)
    state = placed_on(layout, train_state.abstract(these))
    shape = these.train.batch_size, these.train.sequence_length
    ints, weights = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=layout.batch_sharding)
        for dtype in (jnp.int32, jnp.float32)
    )
    batch: Any = Batch(ints, ints, ints, ints, weights)
    step = make_train_step(these, layout)
    return Program(step, (state, {}, batch, rates(these)), donate=(0,))
