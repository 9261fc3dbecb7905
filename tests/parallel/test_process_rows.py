"""What each process reads: together every batch once, whoever takes part, wherever a run goes on.

No program is compiled: which rows a process makes follows from numbers alone.
"""

from __future__ import annotations

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from tests.data.in_memory import pack, text
from zaya_jax.config.mesh import AXES
from zaya_jax.data.mixture import Batches, join
from zaya_jax.parallel import parts
from zaya_jax.parallel.layout import make_mesh

ROWS = 12
"""Of a batch: 1, 2, 3 and 4 processes divide them, 1, 2 and 3 in 2 microbatches."""


def owners(processes: int, data: int, expert: int, context: int) -> np.ndarray:
    """Devices in the order of the axes, dealt to processes in equal stretches."""
    count = data * expert * context
    shape = {"data": data, "fsdp": 1, "context": context, "expert": expert}
    each = np.repeat(np.arange(processes), count // processes)
    return each.reshape([shape[axis] for axis in AXES])


def read(batches: Batches, step: int, mesh: np.ndarray, microbatches: int) -> list[np.ndarray]:
    """A batch, put together of what each process reads; asserts that none reads too much."""
    shards = mesh.size // mesh.shape[AXES.index("context")]
    order = parts.row_order(ROWS, microbatches, shards)
    whole: list[np.ndarray] | None = None
    reads = np.zeros(ROWS, int)
    for process in np.unique(mesh):
        places = parts.own_places(mesh, process, ROWS)
        rows = order[places]
        reads[rows] += 1
        found = batches.batch(step, rows)
        if whole is None:
            whole = [np.full((ROWS, *field.shape[1:]), -1, field.dtype) for field in found]
        for field, mine in zip(whole, found, strict=True):
            field[rows] = mine
    # A row is read by the processes that compute a part of it: one, but for ranks of `context`.
    ranks = mesh.shape[AXES.index("context")]
    assert reads.min() >= 1 and reads.max() <= ranks
    return whole


documents = st.lists(st.integers(1, 23), min_size=4, max_size=12)


@st.composite
def streams(draw):
    """Batches of a random packing of random texts: of one source, or of a mixture that changes."""
    packing = draw(st.sampled_from(["stream", "best_fit"]))
    sources = []
    for number in range(draw(st.integers(1, 3))):
        texts, at = [], 2 + 1000 * number
        for size in draw(documents):
            texts.append(text(range(at, at + size)))
            at += size
        sources.append(pack(texts, 8, packing))
    weight = st.sampled_from([0.3, 1, 2.5])
    weights, schedule = None, []
    if len(sources) > 1:
        weights = [draw(weight) for _ in sources]
        if draw(st.booleans()):
            schedule = [(draw(st.integers(1, 4)), [draw(weight) for _ in sources])]
    return Batches(join(sources), ROWS, draw(st.integers(0, 9)), weights, schedule)


@settings(max_examples=8)  # of four stretches each
@given(
    streams(),
    st.permutations([4, 2, 3, 1]),
    st.lists(st.integers(1, 2), min_size=4, max_size=4),
    st.sampled_from([1, 2]),
)
def test_a_run_of_4_then_2_then_3_then_1_processes_reads_the_stream_of_one(
    batches, counts, steps, microbatches
):
    cursor = 0
    for processes, more in zip(counts, steps, strict=True):
        mesh = owners(processes, data=processes, expert=1, context=1)
        for _ in range(more):
            for found, wanted in zip(
                read(batches, cursor, mesh, microbatches), batches.batch(cursor), strict=True
            ):
                np.testing.assert_array_equal(found, wanted)
            cursor += 1  # all that a checkpoint holds of the data
    assert cursor == sum(steps)


@pytest.mark.parametrize("context", [2, 4])  # 12 rows: eight parts of them would be uneven
@pytest.mark.parametrize("processes", [1, 2, 4, 8])
def test_ranks_of_a_row_in_several_processes_all_read_it(processes, context):
    rows = pack([text(range(2, 9))] * 30, 8)
    batches = Batches(rows, ROWS, seed=1)
    mesh = owners(processes, data=2, expert=4 // context, context=context)
    for found, wanted in zip(read(batches, 3, mesh, 1), batches.batch(3), strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_what_a_process_reads_lies_where_it_belongs():
    """On one device, which has all of an array."""
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.devices())
    rows = np.arange(24).reshape(6, 4)
    sharding = NamedSharding(mesh, PartitionSpec(("data", "fsdp", "expert"), "context"))
    found = parts.from_own_rows(rows, np.arange(6), 6, sharding)
    np.testing.assert_array_equal(found, rows)
    assert found.sharding == sharding


def test_what_lies_where_it_is_to_lie_is_not_moved():
    mesh = make_mesh(dict.fromkeys(AXES, 1), jax.devices())
    sharding = NamedSharding(mesh, PartitionSpec())
    there = jax.device_put(np.arange(3), sharding)
    assert parts.spread(there, sharding) is there
    np.testing.assert_array_equal(parts.spread(np.arange(3), sharding), there)
