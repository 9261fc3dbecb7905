"""What the tests run where jax has eight devices; arguments and results are plain or numpy."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.cca_mix import Weights, cca_mix
from pallas_kernels.grouped_matmul import experts
from zaya_jax import cli, parallel
from zaya_jax.config import (
    Attention,
    Balance,
    Experiment,
    Model,
    Optim,
    Parallel,
    Router,
    Train,
)
from zaya_jax.data import Batch
from zaya_jax.model import functional
from zaya_jax.muon import scale_by_muon
from zaya_jax.parallel import context, expert
from zaya_jax.train import state as train_state
from zaya_jax.train.checkpoint import Checkpoints
from zaya_jax.train.gradient import make_gradient
from zaya_jax.train.step import make_eval_step, make_train_step

ROWS, LENGTH = 16, 32


def experiment(mesh: str = "", dtype: str = "float32", **changes: Any) -> Experiment:
    """Three layers of 32 channels with 8 experts; `changes` to fields of its sections."""
    model = Model(
        vocab_size=96,
        hidden_size=32,
        num_layers=3,
        expert_width=16,
        context_length=64,
        pad_id=0,
        eos_id=1,
        attention=Attention(heads=4, kv_heads=2, head_dim=8),
        router=Router(experts=8, width=16),
        param_dtype=dtype,
        activation_dtype=dtype,
        remat="full",
    )
    found = Experiment(
        name="mesh",
        mesh=mesh,
        model=model,
        train=Train(steps=20, batch_size=ROWS, sequence_length=LENGTH, z_loss=1e-3),
        optim=Optim(kind="muon", learning_rate=1e-2, warmup_steps=2, eps=1e-5),
        balance=Balance(rate=5e-3, aux_loss=1e-3),
        parallel=Parallel(room=1.0),
    )
    for section, fields in changes.items():
        part = dataclasses.replace(getattr(found, section), **fields)
        found = dataclasses.replace(found, **{section: part})
    return found


def batch(number: int, rows: int = ROWS, length: int = LENGTH) -> Batch:
    """Packed documents of 1 to `length` tokens, so that they cross the borders of any shard; some
    padding at the end of some rows."""
    rng = np.random.default_rng(number)
    segments, positions = (np.zeros((rows, length), np.int32) for _ in range(2))
    for row in range(rows):
        at, document = 0, 0
        end = length - rng.integers(0, 6) * (row % 3 == 0)
        while at < end:
            size = min(int(rng.integers(1, length)), end - at)
            document += 1
            segments[row, at : at + size] = document
            positions[row, at : at + size] = np.arange(size)
            at += size
    tokens = np.where(segments > 0, rng.integers(3, 96, (rows, length)), 0).astype(np.int32)
    weights = (segments > 0).astype(np.float32)
    weights[:, :-1] *= segments[:, :-1] == segments[:, 1:]
    weights[:, -1] = 0
    targets = np.roll(tokens, -1, axis=1)
    return Batch(tokens, targets, segments, positions, weights)


@contextlib.contextmanager
def precision(dtype: str):
    with jax.enable_x64(dtype == "float64"):
        yield


def first(these: Experiment):
    """The state that runs of an experiment start from, as numpy, whatever their mesh."""
    fields = {"mesh": "", "parallel": Parallel(), "train": Train(steps=these.train.steps)}
    return _first(dataclasses.replace(these, **fields))


@functools.cache
def _first(these: Experiment):
    return jax.tree.map(np.asarray, train_state.init(these))


@functools.cache
def compiled_step(these: Experiment):
    """The training step, with its layout."""
    layout = parallel.layout(these)
    args = layout.place(first(these)), {}, layout.place_batch(batch(0)), None
    return make_train_step(these, layout).lower(*args).compile(), layout


def train(mesh: str, steps: int, dtype: str, **changes: Any) -> dict[str, Any]:
    """Trains; returns what a run of another mesh must agree with."""
    with precision(dtype):
        these = experiment(mesh, dtype, **changes)
        step, layout = compiled_step(these)
        state, losses, loads = layout.place(first(these)), [], []
        for number in range(steps):
            state, metrics = step(state, {}, layout.place_batch(batch(number)), None)
            losses.append(float(metrics.loss))
            loads.append(np.asarray(metrics.load))
        evaluated = make_eval_step(these.model, layout)(
            state.params, state.biases, layout.place_batch(batch(steps))
        )
        return {
            "losses": np.array(losses),
            "loads": np.array(loads),
            "grad_norm": float(metrics.grad_norm),
            "balance_loss": float(metrics.balance_loss),
            "z_loss": float(metrics.z_loss),
            "entropy": np.asarray(metrics.routing_entropy),
            "evaluated": jax.tree.map(np.asarray, evaluated),
            "state": {
                jax.tree_util.keystr(path): np.asarray(leaf)
                for path, leaf in jax.tree_util.tree_leaves_with_path(state)
            },
        }


@functools.cache
def compiled_gradient(these: Experiment):
    """The gradient of a batch, with its layout and its arguments."""
    layout = parallel.layout(these)
    state = layout.place(first(these))
    args = state.params, {}, state.biases, layout.place_batch(batch(0))
    return jax.jit(make_gradient(these, layout)).lower(*args).compile(), args


def gradient(mesh: str) -> dict[str, np.ndarray]:
    """Gradients and statistics of one batch in float64."""
    with precision("float64"):
        run, args = compiled_gradient(experiment(mesh, "float64"))
        found = {jax.tree_util.keystr(path): np.asarray(x) for path, x in _leaves(run(*args))}
        return found


def compiled(mesh: str, what: str) -> str:
    """The compiled `gradient` or `step`, in float64, as HLO text."""
    with precision("float64"):
        make = {"gradient": compiled_gradient, "step": compiled_step}[what]
        return make(experiment(mesh, "float64"))[0].as_text()


def places(mesh: str) -> dict[str, str]:
    """How each leaf of a training state is divided at rest."""
    with precision("float64"):
        these = experiment(mesh, "float64")
        shardings = parallel.layout(these).shardings(first(these))
        return {jax.tree_util.keystr(path): str(found.spec) for path, found in _leaves(shardings)}


def orthogonalized(mesh: str) -> dict[str, float]:
    """The largest difference that dividing makes to Muon's updates, by path."""
    with precision("float64"):
        these = experiment(mesh, "float64")
        layout = parallel.layout(these)
        declared = functional.declarations(these.model)
        matrices = {
            path: np.random.default_rng(i).normal(size=d.shape)
            for i, (path, d) in enumerate(declared.items())
            if path.startswith("stacks") and d.group == "matrix"
        }
        results = []
        for at in (parallel.ONE_DEVICE, layout):
            rule = scale_by_muon(these.optim.muon, run=at.matrices)
            state = at.place(rule.init(matrices))
            updates = jax.jit(rule.update)(at.place(matrices), state)[0]
            results.append(jax.tree.map(np.asarray, updates))
        return {p: float(np.max(np.abs(results[1][p] - results[0][p]))) for p in matrices}


def mistake(mesh: str, **changes: Any) -> str:
    """The message of the error that a layout is."""
    try:
        parallel.layout(experiment(mesh, **changes))
    except ValueError as error:
        return str(error)
    return ""


# The all-to-all, and the halo, each alone.


def _mesh(axis: str, ranks: int):
    return jax.sharding.Mesh(np.array(jax.devices()[:ranks]), (axis,))


def emulated_ragged(
    operand, output, input_offsets, send_sizes, output_offsets, recv_sizes, *, axis_name
):
    """What `ragged_all_to_all` is defined to do, by gathering everything: XLA's CPU has none."""
    gather = functools.partial(jax.lax.all_gather, axis_name=axis_name)
    rows, starts, sizes, offsets = map(gather, (operand, input_offsets, send_sizes, output_offsets))
    me = jax.lax.axis_index(axis_name)
    place = jnp.arange(output.shape[0])
    for rank in range(rows.shape[0]):
        number = place - offsets[rank, me]
        ours = (number >= 0) & (number < sizes[rank, me])
        found = rows[rank][jnp.clip(starts[rank, me] + number, 0, operand.shape[0] - 1)]
        output = jnp.where(ours.reshape(-1, *(1,) * (output.ndim - 1)), found, output)
    return output


@functools.cache
def _exchange(ranks: int, kind: str, room: float):
    exchange = expert.Exchange(ranks, kind, room)
    sharded = jax.sharding.PartitionSpec("expert")

    def loss(op, x, weight, gate_up, down, index, probe):
        y = op(x, index, weight, gate_up, down)
        return jnp.sum(y * probe), y

    def of(op):
        def call(index, x, weight, gate_up, down, probe):
            return jax.grad(functools.partial(loss, op), argnums=(0, 1, 2, 3), has_aux=True)(
                x, weight, gate_up, down, index, probe
            )

        return call

    plain = functools.partial(experts, implementation="reference")
    over = jax.jit(
        jax.shard_map(
            of(functools.partial(expert.experts, exchange, plain)),
            mesh=_mesh("expert", ranks),
            in_specs=(sharded,) * 6,
            out_specs=((sharded,) * 4, sharded),
            check_vma=False,
        )
    )
    return over, jax.jit(of(plain))


def exchange(index: np.ndarray, experts_: int, ranks: int, kind: str, room: float) -> float:
    """The largest difference between experts over devices and on one, gradients included.

    Args:
      index: [ranks * T, k] any choice of experts.
    """
    with precision("float64"):
        rng = np.random.default_rng(0)
        rows, choices = index.shape
        D, F = 6, 4
        x, probe = rng.normal(size=(2, rows, D))
        weight = rng.normal(size=(rows, choices))
        gate_up, down = rng.normal(size=(experts_, D, 2 * F)), rng.normal(size=(experts_, F, D))
        kept = jax.lax.ragged_all_to_all
        jax.lax.ragged_all_to_all = emulated_ragged if kind == "ragged" else kept
        try:
            over, one = _exchange(ranks, kind, room)
            args = index, x, weight, gate_up, down, probe
            found, wanted = jax.tree.map(np.asarray, (over(*args), one(*args)))
        finally:
            jax.lax.ragged_all_to_all = kept
        return max(
            float(np.max(np.abs(a - b)))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        )


@functools.cache
def _mix(ranks: int, kernels: tuple[int, ...]):
    C, heads, kv_heads = 4, 2, 1
    channels = (heads + kv_heads) * C
    rng = np.random.default_rng(1)
    depthwise, grouped = rng.normal(size=(kernels[0], channels)), None
    if len(kernels) > 1:
        grouped = rng.normal(size=(kernels[1], heads + kv_heads, C, C))
    weights = Weights(
        jnp.asarray(depthwise),
        jnp.asarray(rng.normal(size=channels)),
        None if grouped is None else jnp.asarray(grouped),
        None if grouped is None else jnp.asarray(rng.normal(size=channels)),
        jnp.ones(kv_heads),
    )

    def op(q, k, v_current, v_delayed, cos, sin, positions, state):
        return cca_mix(
            q, k, v_current, v_delayed, weights, cos, sin, positions, state,
            norm_dtype=jnp.float64, implementation="reference",
        )  # fmt: skip

    def of(mix):
        def call(latents, tables, probes):
            def loss(latents):
                mixed = mix(latents, tables)
                return sum(jnp.sum(y * p) for y, p in zip(mixed, probes, strict=True)), mixed

            return jax.grad(loss, has_aux=True)(latents)

        return call

    spec = jax.sharding.PartitionSpec(None, "context")
    over = jax.shard_map(
        of(lambda latents, tables: context.mix(op, weights.past, latents, tables, ranks)),
        mesh=_mesh("context", ranks),
        in_specs=spec,
        out_specs=spec,
        check_vma=False,
    )
    return jax.jit(over), jax.jit(of(lambda latents, tables: op(*latents, *tables, None)))


def halo(positions: np.ndarray, ranks: int, kernels: tuple[int, ...]) -> float:
    """The largest difference between the mix over a row's chunks and over the row, gradients
    included; positions [B, S] say where documents begin."""
    with precision("float64"):
        rng = np.random.default_rng(2)
        (B, S), C = positions.shape, 4
        q, k = rng.normal(size=(B, S, 2 * C)), rng.normal(size=(B, S, C))
        current, delayed = rng.normal(size=(2, B, S, C // 2))
        angles = rng.normal(size=(B, S, 1))
        latents, tables = (q, k, current, delayed), (np.cos(angles), np.sin(angles), positions)
        probes = tuple(rng.normal(size=(B, S, heads, C)) for heads in (2, 1, 1))
        over, one = _mix(ranks, kernels)
        at = context.order(S, ranks)
        permuted = jax.tree.map(lambda x: x[:, at], (latents, tables, probes))
        found, wanted = over(*permuted), one(latents, tables, probes)
        wanted = jax.tree.map(lambda x: np.asarray(x)[:, at], wanted)
        return max(
            float(np.max(np.abs(np.asarray(a) - b)))
            for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True)
        )


# Runs.


def reshaped(folder: str, meshes: list[str]) -> dict[str, Any]:
    """Saves a state from each mesh in turn, restores it on the next.

    Returns:
      Leaves that changed, and leaves that lie otherwise than their mesh says.
    """
    with precision("float64"):
        return _reshaped(folder, meshes)


def _reshaped(folder: str, meshes: list[str]) -> dict[str, Any]:
    changed, misplaced = [], []
    these = experiment(meshes[0], "float64")
    state = parallel.layout(these).place(first(these))
    wanted = {jax.tree_util.keystr(path): np.asarray(x) for path, x in _leaves(state)}
    for number, (here, there) in enumerate(zip(meshes, [*meshes[1:], ""], strict=True)):
        place = Path(folder) / str(number)
        for mesh, act in ((here, "save"), (there, "restore")):
            these = experiment(mesh, "float64")
            layout = parallel.layout(these)
            checkpoints = Checkpoints(place, these, layout)
            if act == "save":
                checkpoints.save(state)
            checkpoints.wait()
            if act == "restore":
                state = checkpoints.restore()
            checkpoints.close()
        places = dict(_leaves(layout.shardings(state)))
        for path, leaf in _leaves(state):
            name = jax.tree_util.keystr(path)
            if not np.array_equal(np.asarray(leaf), wanted[name]):
                changed.append((there, name))
            if not leaf.sharding.is_equivalent_to(places[path], leaf.ndim):
                misplaced.append((there, name))
    return {"leaves": len(wanted), "changed": changed, "misplaced": misplaced}


def _leaves(tree):
    return jax.tree_util.tree_leaves_with_path(tree)


def launch(arguments: list[str]) -> tuple[int, str]:
    """Status of `launch.py ARGUMENTS` in this process, and what it tells of its progress."""
    with contextlib.redirect_stderr(io.StringIO()) as errors:
        return cli.main(arguments), errors.getvalue()
