"""Muon beside `optax.contrib.muon`: time and memory of a step on one layer's expert matrices.

Both sides do the same whole step: momentum, Newton-Schulz in float32, RMS matching, decoupled
decay, new parameters. Memory is what the compiled step needs beyond parameters, state and
gradients. There the gradients are made within the step, as a backward pass makes them, and are not
an argument, whose place XLA would not use again. State is measured without momentum too; the peer
computes that, but holds the buffer all the same.
"""

from __future__ import annotations

import dataclasses
import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from zaya_jax import muon
from zaya_jax.bench import machine
from zaya_jax.config import Model, Muon

RATE, DECAY = 1e-3, 0.1
Shape = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table.

    ours, theirs, floor: median seconds a step of `timed` experts; the floor is that of the matmuls'
    operations, a symmetric product counted by half, at the measured peak. ratio: median over pairs.
    The memory, in bytes, is that of all experts: `ours_extra` beyond parameters, state and
    gradients, `ours_state` the optimizer's state, `ours_bare` that without momentum.
    """

    name: str
    shape: Shape
    timed: int
    ours: float
    theirs: float
    floor: float
    ratio: float
    spread: tuple[float, float]
    ours_extra: int
    theirs_extra: int
    ours_state: int
    theirs_state: int
    ours_bare: int
    theirs_bare: int


def shapes(model: Model) -> dict[str, Shape]:
    """The matrices of one layer's experts."""
    E, D, F = model.router.experts, model.hidden_size, model.expert_width
    return {"gate_up": (E, D, 2 * F), "down": (E, F, D)}


def ours(config: Muon) -> optax.GradientTransformation:
    """Our side."""
    return optax.chain(
        muon.scale_by_muon(config),
        optax.add_decayed_weights(DECAY),
        optax.scale_by_learning_rate(RATE),
    )


def theirs(config: Muon) -> optax.GradientTransformation:
    """The peer, told that the two last axes of a stack are the matrix."""
    return optax.contrib.muon(
        RATE,
        ns_steps=config.iterations,
        beta=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        weight_decay=DECAY,
        consistent_rms=config.rms,
        muon_weight_dimension_numbers={
            "w": optax.contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)
        },
    )


def step_of(optimizer: optax.GradientTransformation):
    """The step `(params, state, gradients) -> (params, state)`."""

    def step(params, state, gradients):
        updates, state = optimizer.update(gradients, state, params)
        return optax.apply_updates(params, updates), state

    return step


def abstract(shape: Shape, optimizer: optax.GradientTransformation):
    """Shapes of (parameters, state) of one stack of matrices."""
    params = {"w": jax.ShapeDtypeStruct(shape, jnp.float32)}
    return params, jax.eval_shape(optimizer.init, params)


def extra_bytes(shape: Shape, optimizer: optax.GradientTransformation) -> int:
    """What the compiled step allocates beyond parameters, state and gradients."""
    params, state = abstract(shape, optimizer)
    left, right = (
        jax.ShapeDtypeStruct(sides, jnp.float32)
        for sides in ((*shape[:-1], 8), (*shape[:-2], 8, shape[-1]))
    )

    def step(params, state, left, right):
        gradients = {"w": jax.lax.optimization_barrier(jnp.matmul(left, right))}
        return step_of(optimizer)(params, state, gradients)

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, left, right).compile()
    memory: Any = compiled.memory_analysis()
    made = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return memory.temp_size_in_bytes + made - 4 * math.prod(shape)


def state_bytes(shape: Shape, optimizer: optax.GradientTransformation) -> int:
    """Size of the optimizer's state."""
    leaves = jax.tree.leaves(abstract(shape, optimizer)[1])
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in leaves)


def flops(shape: Shape, iterations: int) -> float:
    """Operations of the matmuls: X X^T and A A by half, for they are symmetric, and one whole."""
    *batch, a, b = shape
    m, n = min(a, b), max(a, b)
    return math.prod(batch) * iterations * (m * m * n + m**3 + 2.0 * m * m * n)


class Runner:
    """One side, stepping from step to step on the same gradients."""

    def __init__(self, shape: Shape, optimizer: optax.GradientTransformation, seed: int):
        keys = jax.random.split(jax.random.key(seed))
        self.params = {"w": 0.02 * jax.random.normal(keys[0], shape)}
        self.gradients = {"w": jax.random.normal(keys[1], shape)}
        self.state = optimizer.init(self.params)
        self.step = jax.jit(step_of(optimizer), donate_argnums=(0, 1))

    def __call__(self):
        self.params, self.state = self.step(self.params, self.state, self.gradients)
        return self.params


def gap(config: Muon, seed: int) -> float:
    """Relative distance of what the sides do at the first step, where their momenta agree."""
    shape = (2, 96, 160)
    runs = [Runner(shape, side(config), seed) for side in (ours, theirs)]
    before = np.asarray(runs[0].params["w"])
    moves = [np.asarray(run()["w"]) - before for run in runs]
    return float(np.linalg.norm(moves[0] - moves[1]) / np.linalg.norm(moves[1]))


def measure(model: Model, timed: int, pairs: int, seed: int = 0) -> tuple[list[Row], float]:
    """Rows of the table, and the matmul peak in FLOP/s.

    Args:
      model: whose experts.
      timed: experts that are run; memory is compiled for all of them.
      pairs: measurements of each side, taken in turns.

    Raises:
      RuntimeError: the two sides do not agree, so that timing them means nothing.
    """
    config, bare = Muon(), Muon(momentum=0.0)
    if not (found := gap(config, seed)) < 1e-3:
        raise RuntimeError(f"the two sides' first steps differ by {found:.1e}")
    peak, rows = machine.matmul_peak(), []
    for name, shape in shapes(model).items():
        few = (min(timed, shape[0]), *shape[1:])
        taken = machine.interleave(
            {"ours": Runner(few, ours(config), seed), "theirs": Runner(few, theirs(config), seed)},
            pairs,
        )
        ratios = [t / o for o, t in zip(taken["ours"], taken["theirs"], strict=True)]
        rows.append(
            Row(
                name=name,
                shape=shape,
                timed=few[0],
                ours=statistics.median(taken["ours"]),
                theirs=statistics.median(taken["theirs"]),
                floor=flops(few, config.iterations) / peak,
                ratio=statistics.median(ratios),
                spread=(min(ratios), max(ratios)),
                ours_extra=extra_bytes(shape, ours(config)),
                theirs_extra=extra_bytes(shape, theirs(config)),
                ours_state=state_bytes(shape, ours(config)),
                theirs_state=state_bytes(shape, theirs(config)),
                ours_bare=state_bytes(shape, ours(bare)),
                theirs_bare=state_bytes(shape, theirs(bare)),
            )
        )
    return rows, peak


def show(rows: list[Row], peak: float) -> str:
    """The table, for people."""
    lines = [
        f"floor: matmul {peak / 1e9:.0f} GFLOP/s",
        f"{'':<10}{'shape':<18}{'timed':>6}{'ours s':>9}{'optax s':>9}{'floor s':>9}{'ratio':>8}"
        f"{'spread':>14}{'extra MiB':>16}{'state MiB':>16}{'no momentum':>16}",
    ]
    for r in rows:
        spread = f"{r.spread[0]:.2f}-{r.spread[1]:.2f}"
        memory = (
            (r.ours_extra, r.theirs_extra),
            (r.ours_state, r.theirs_state),
            (r.ours_bare, r.theirs_bare),
        )
        lines.append(
            f"{r.name:<10}{'x'.join(map(str, r.shape)):<18}{r.timed:>6}{r.ours:>9.3g}"
            f"{r.theirs:>9.3g}{r.floor:>9.3g}{r.ratio:>7.2f}x{spread:>14}"
            + "".join(f"{a / 2**20:>9.0f} /{b / 2**20:>5.0f}" for a, b in memory)
        )
    lines.append(
        "memory: ours / optax, of all experts of the layer; extra: what a step needs beyond"
    )
    lines.append("parameters, state and gradients.")
    return "\n".join(lines)
