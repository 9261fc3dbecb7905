"""Whole steps as programs to compile: what a device does in training and in decoding.

aot.compile("zaya_jax.aot.steps:training", {"tokens": 4096}, target="mi300x", want_hlo=True)
"""

from __future__ import annotations

import dataclasses
import functools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from zaya_jax.aot.compiler import Compiler
from zaya_jax.aot.program import Job, Program
from zaya_jax.config import Experiment, Model, Ops, Optim, Train
from zaya_jax.data.packing import Batch
from zaya_jax.infer import programs, sampler
from zaya_jax.model import cache as caches
from zaya_jax.model import functional
from zaya_jax.train import state as train_state
from zaya_jax.train.step import make_train_step


def training(
    rows: int = 1,
    tokens: int = 4096,
    model: Mapping[str, Any] | None = None,
    optim: Mapping[str, Any] | None = None,
) -> Program:
    """One training step of the 8B on `rows` packed rows of `tokens` tokens.

    Args:
      model: fields of `config.Model` to change; `ops` maps ops to implementations.
      optim: of `config.Optim`.
    """
    train = Train(batch_size=rows, sequence_length=tokens)
    experiment = Experiment(
        model=_model(model, layers="scan", remat="full"),
        train=train,
        optim=Optim(**(optim or {})),
        name="aot",
    )
    ints = jax.ShapeDtypeStruct((rows, tokens), jnp.int32)
    weights = jax.ShapeDtypeStruct((rows, tokens), jnp.float32)
    batch: Any = Batch(ints, ints, ints, ints, weights)
    state = train_state.abstract(experiment)
    return Program(make_train_step(experiment), (state, {}, batch), donate=(0,))


def decoding(
    rows: int = 1, capacity: int = 4096, model: Mapping[str, Any] | None = None
) -> Program:
    """One step of cached decoding: a token more for each of `rows` rows, drawn greedily.

    As generation runs it: nobody asks for the statistics of routing.

    Args:
      capacity: tokens that a row of the cache holds.
      model: as for `training`.
    """
    chosen = _model(model, layers="unroll")
    params, biases = jax.eval_shape(lambda: functional.init(chosen, jax.random.key(0)))
    filters, settings = sampler.batch([sampler.Sampling(temperature=0.0)] * rows, chosen.vocab_size)
    cache = jax.eval_shape(functools.partial(caches.empty, chosen, rows, capacity))
    state = programs.State(
        dataclasses.replace(cache, filled=True), jax.ShapeDtypeStruct((rows,), jnp.int32)
    )
    live = jax.ShapeDtypeStruct((rows,), jnp.bool_)

    def step(*args):
        state, logprobs, _ = programs.step(chosen, filters, *args)
        return state, logprobs

    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), settings)
    return Program(step, (params, biases, state, live, shapes), donate=(2,))


def launches_per_layer(
    compiler: Compiler, rows: int = 8, capacity: int = 4096, model: Mapping[str, Any] | None = None
) -> Mapping[str, int]:
    """What one more layer adds to the steps that XLA launches for a token of decoding, by kind.

    Args:
      rows, capacity, model: as for `decoding`; what it has as `num_layers` is not looked at.

    Raises:
      RuntimeError: a step does not compile, in the compiler's words.
    """
    counts = []
    for layers in (2, 3):
        arguments = {"rows": rows, "capacity": capacity}
        fields = {**(model or {}), "num_layers": layers}
        report = compiler.compile(Job(f"{__name__}:decoding", {**arguments, "model": fields}))
        if not report.ok:
            raise RuntimeError(f"decoding with {layers} layers: {report.error}")
        counts.append(Counter(report.steps["main"]))
    few, many = counts
    return {kind: many[kind] - few[kind] for kind in many if many[kind] != few[kind]}


def _model(changes: Mapping[str, Any] | None, **fields: Any) -> Model:
    """The 8B in the dtypes of its published weights, changed."""
    fields = {"param_dtype": "bfloat16", "activation_dtype": "bfloat16", **fields}
    changes = dict(changes or {})
    ops = Ops(**changes.pop("ops", {}))
    return Model(**{**fields, **changes}, ops=ops)
