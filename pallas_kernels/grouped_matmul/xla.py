"""The experts by sorting: portable, dropless, and only the work that was routed.

Assignments (token, choice) are sorted by expert, so each expert owns a run of rows. The first
`capacity` rows of all runs go through one batched matmul over the experts, which reads every
weight in place. What does not fit goes through a loop of `block` rows each, as many turns as the
data needs. With a capacity near the mean the loop is short; with a capacity of 0 (decode) the loop
is everything, and only the chosen experts' weights are read.

All movement between token order and expert order is a gather, forward and backward: a permutation
has an inverse, so nothing needs a scatter-add. The backward pass is our own: autodiff would keep
each turn's intermediates and scatter each turn's weight gradient into a fresh [E, D, 2F].
"""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.grouped_matmul.streaming import matmul, matmul_transposed


class Routing(NamedTuple):
    """Where each row is; N = T * k assignments, C = capacity, all integers.

    `slot` and `row_of_slot` are inverse to each other between the N sorted rows and the E * C rows
    of the batched matmul, as `order` and `position` are between assignments and sorted rows.
    """

    order: jax.Array  # [N] sorted row -> assignment
    position: jax.Array  # [T, k] assignment -> sorted row
    slot: jax.Array  # [N + block] sorted row -> slot in [E * C], or E * C if it has none
    row_of_slot: jax.Array  # [E, C] slot -> sorted row, or N if it is empty
    turns: jax.Array  # [] turns of the loop
    owner: jax.Array  # [max turns] turn -> expert
    first: jax.Array  # [max turns] turn -> its first sorted row
    stop: jax.Array  # [max turns] turn -> one past the last row of its expert


def experts(
    x: jax.Array, index: jax.Array, weight: jax.Array, gate_up: jax.Array, down: jax.Array
) -> jax.Array:
    """See `pallas_kernels.grouped_matmul.experts`."""
    return _experts(x, index, weight, gate_up, down)


def tiling(assignments: int, num_experts: int) -> tuple[int, int]:
    """`(capacity, block)` for N assignments: rows an expert has in the batch, rows of one turn."""
    if assignments <= 64:  # decode: about a turn for each chosen expert, and little padding
        return 0, min(4 if assignments <= 16 else 8, assignments)
    mean = assignments / num_experts
    # A balanced router gives each expert mean +- sqrt(mean) rows. A turn pays for moving its
    # expert's weights, and in the backward pass their gradient: long ones pay once for more rows.
    block = 128 if mean >= 64 else 32
    return 8 * math.ceil((mean + 1.5 * math.sqrt(mean)) / 8), block


def route(index: jax.Array, num_experts: int, capacity: int, block: int) -> Routing:
    """Sorts the assignments `index` [T, k] by expert and lays out batch and loop."""
    flat = index.reshape(-1)
    size = flat.shape[0]
    key = jnp.where((flat >= 0) & (flat < num_experts), flat, num_experts)
    assignment = jnp.arange(size, dtype=jnp.int32)
    key, order = lax.sort((key.astype(jnp.int32), assignment), num_keys=1)
    _, position = lax.sort((order, assignment), num_keys=1)
    bounds = _searchsorted(key, jnp.arange(num_experts + 1), "left")
    start, end = bounds[:-1], bounds[1:]

    row = jnp.arange(size + block, dtype=jnp.int32)
    owner_of_row = jnp.minimum(key, num_experts - 1)[jnp.minimum(row, size - 1)]
    column = row - start[owner_of_row]
    in_batch = (row < end[owner_of_row]) & (column < capacity)
    slot = jnp.where(in_batch, owner_of_row * capacity + column, num_experts * capacity)
    row_of_slot = start[:, None] + jnp.arange(capacity, dtype=jnp.int32)
    row_of_slot = jnp.where(row_of_slot < end[:, None], row_of_slot, size)

    # Turn i belongs to the first expert whose cumulative number of turns exceeds i.
    turns = -(-jnp.maximum(end - start - capacity, 0) // block)
    last = jnp.cumsum(turns)
    turn = jnp.arange(size // block + min(num_experts, size), dtype=jnp.int32)
    owner = jnp.minimum(_searchsorted(last, turn, "right"), num_experts - 1)
    first = start[owner] + capacity + (turn - (last - turns)[owner]) * block
    position = position.reshape(index.shape)
    return Routing(order, position, slot, row_of_slot, last[-1], owner, first, end[owner])


def take(rows: jax.Array, at: jax.Array) -> jax.Array:
    """`rows[at]` along the first axis, zero where `at` is past the end."""
    if rows.shape[0] == 0:
        return jnp.zeros(at.shape + rows.shape[1:], rows.dtype)
    return rows.at[at].get(mode="fill", fill_value=0)


def swiglu(z: jax.Array) -> jax.Array:
    gate, up = jnp.split(z, 2, axis=-1)
    return jax.nn.silu(gate) * up


@jax.custom_vjp
def _experts(x, index, weight, gate_up, down):
    return _forward(x, index, weight, gate_up, down)[0]


def _forward(x, index, weight, gate_up, down):
    num_experts, choices = gate_up.shape[0], index.shape[1]
    capacity, block = tiling(index.size, num_experts)
    routing = route(index, num_experts, capacity, block)
    token = jnp.append(routing.order // choices, x.shape[0])  # of a sorted row; T past the end

    z = jnp.einsum("ecd,edf->ecf", take(x, token[routing.row_of_slot]), gate_up)
    batch = jnp.einsum("ecf,efd->ecd", swiglu(z), down)
    y = take(batch.reshape(-1, x.shape[1]), routing.slot)

    def turn(i, y):
        at, valid, expert = _turn(routing, i, block)
        h = swiglu(matmul(take(x, token[at]), gate_up, expert))
        return _put(y, matmul(h, down, expert), routing.first[i], valid)

    y = lax.fori_loop(0, routing.turns, turn, y)
    y = (y[routing.position] * weight[..., None]).sum(1).astype(x.dtype)
    return y, (x, weight, gate_up, down, routing, z)


def _backward(saved, dy):
    x, weight, gate_up, down, routing, z = saved
    capacity, block = tiling(weight.size, gate_up.shape[0])
    accumulator = jnp.promote_types(x.dtype, jnp.float32)
    token = jnp.append(routing.order // weight.shape[1], x.shape[0])
    probability = jnp.append(weight.reshape(-1)[routing.order], 0)  # of a sorted row

    def glu_backward(z, dy_down, p):
        """Gradients of z and p, and h * p, given dy @ down.T of the rows before p multiplies."""
        h, pull = jax.vjp(swiglu, z)
        dp = (h * dy_down).sum(-1, dtype=accumulator)
        (dz,) = pull((dy_down * p[..., None]).astype(z.dtype))
        return dz, dp, (h * p[..., None]).astype(z.dtype)

    rows, p = token[routing.row_of_slot], probability[routing.row_of_slot]
    dy_batch = take(dy, rows)
    dz, dp, h = glu_backward(z, jnp.einsum("ecd,efd->ecf", dy_batch, down), p)
    d_down = jnp.einsum("ecf,ecd->efd", h, dy_batch, preferred_element_type=accumulator)
    d_gate_up = jnp.einsum("ecd,ecf->edf", take(x, rows), dz, preferred_element_type=accumulator)
    dx = jnp.einsum("ecf,edf->ecd", dz, gate_up)
    dx = take(dx.reshape(-1, x.shape[1]), routing.slot)
    dp = take(dp.reshape(-1), routing.slot)

    def turn(i, carry):
        dx, dp, d_gate_up, d_down = carry
        at, valid, expert = _turn(routing, i, block)
        x_rows, dy_rows = take(x, token[at]), take(dy, token[at])
        z = matmul(x_rows, gate_up, expert)
        dz, dp_rows, h = glu_backward(z, matmul_transposed(dy_rows, down, expert), probability[at])
        d_gate_up = _accumulate(d_gate_up, expert, x_rows, dz)
        d_down = _accumulate(d_down, expert, h, dy_rows)
        dx = _put(dx, matmul_transposed(dz, gate_up, expert), routing.first[i], valid)
        return dx, _put(dp, dp_rows, routing.first[i], valid), d_gate_up, d_down

    dx, dp, d_gate_up, d_down = lax.fori_loop(0, routing.turns, turn, (dx, dp, d_gate_up, d_down))
    return (
        dx[routing.position].sum(1),
        None,
        dp[routing.position].astype(weight.dtype),
        d_gate_up.astype(gate_up.dtype),
        d_down.astype(down.dtype),
    )


_experts.defvjp(_forward, _backward)


def _searchsorted(sorted_keys: jax.Array, values: jax.Array, side: str) -> jax.Array:
    """As jnp's, by comparing all: tables are small, and a binary search is a slow loop on CPU."""
    found = jnp.searchsorted(sorted_keys, values, side=side, method="compare_all")
    return found.astype(jnp.int32)


def _turn(routing: Routing, i: jax.Array, block: int):
    """Turn i's sorted rows [block] (N where the run has ended), which are valid, its expert."""
    row = routing.first[i] + jnp.arange(block, dtype=jnp.int32)
    valid = row < routing.stop[i]
    return jnp.where(valid, row, routing.order.shape[0]), valid, routing.owner[i]


def _put(rows: jax.Array, new: jax.Array, first: jax.Array, valid: jax.Array) -> jax.Array:
    """Overwrites `rows[first:]` with the valid rows of `new`, in place inside a loop."""
    old = lax.dynamic_slice_in_dim(rows, first, new.shape[0])
    valid = valid.reshape(-1, *[1] * (new.ndim - 1))
    return lax.dynamic_update_slice_in_dim(rows, jnp.where(valid, new, old), first, 0)


def _accumulate(gradient: jax.Array, expert: jax.Array, left: jax.Array, right: jax.Array):
    """`gradient[expert] += left.T @ right`, in place inside a loop."""
    update = jnp.einsum("br,bc->rc", left, right, preferred_element_type=gradient.dtype)
    old = lax.dynamic_index_in_dim(gradient, expert, keepdims=False)
    return lax.dynamic_update_index_in_dim(gradient, old + update, expert, 0)
