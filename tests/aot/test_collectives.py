"""Collectives read from HLO text, in each way that XLA writes their groups."""

from __future__ import annotations

import pytest

from zaya_jax.aot.collectives import collectives

MESH = {"data": 2, "context": 2, "expert": 2}
GROUPS = [
    ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
    ("replica_groups={{0,2},{1,3},{4,6},{5,7}}", ("context",)),
    ("replica_groups=[4,2]<=[8]", ("expert",)),
    ("replica_groups=[2,4]<=[2,2,2]T(1,0,2)", ("data", "expert")),
    ("replica_groups=[1,8]<=[8]", ("data", "context", "expert")),
    ("replica_groups=mesh['a'=1,'b'=2,'c'=4] {'b'}", ("data",)),
    ("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b'}", ("data", "context")),
    ("replica_groups=mesh['a'=8] {'a':(2)4}", ()),  # a part of an axis
    ("replica_groups={{0,3},{1,2},{4,7},{5,6}}", ()),  # of no axes
]


def program(line: str) -> str:
    return f"HloModule m\n\nENTRY %main (p: f32[4]) -> f32[8] {{\n{line}\n}}\n"


@pytest.mark.parametrize(("groups", "axes"), GROUPS)
def test_groups_are_axes(groups, axes):
    line = f"  ROOT %g = f32[8,4]{{1,0}} all-gather(%p), channel_id=1, {groups}, dimensions={{0}}"
    [found] = collectives(program(line), MESH)
    assert (found.kind, found.axes, found.bytes) == ("all-gather", axes, 128)


def test_a_permute_names_the_axis_it_moves_along():
    pairs = "{{0,2},{1,3},{4,6},{5,7}}"
    line = f"  ROOT %c = bf16[3]{{0}} collective-permute(%p), source_target_pairs={pairs}"
    [found] = collectives(program(line), MESH)
    assert (found.axes, found.bytes) == (("context",), 6)


def test_loops_count_as_often_as_they_run():
    text = """HloModule m

%body (t: (f32[4])) -> (f32[4]) {
  %s = f32[4]{0} all-reduce(%x), replica_groups=[1,8]<=[8], to_apply=%add
}

%outer (t: (f32[4])) -> (f32[4]) {
  %w = (f32[4]) while(%t), condition=%c, body=%body, backend_config={"known_trip_count":{"n":"3"}}
  %v = (f32[4]) while(%t), condition=%c, body=%body
}

ENTRY %main (p: f32[4]) -> f32[4] {
  %w = (f32[4]) while(%t), condition=%c, body=%outer, backend_config={"known_trip_count":{"n":"5"}}
  %a = (f32[4]{0}, f32[4]{0}) all-to-all(%x, %y), replica_groups=[4,2]<=[8]
}
"""
    found = collectives(text, MESH)
    assert [(one.times, one.known) for one in found] == [(15, True), (5, False), (1, True)]
    assert found[-1].bytes == 32  # a piece for each device of the group


STARTS = [
    ("(f32[4]{0}, f32[8]{0}) all-gather-start(%x)", "all-gather", 32),
    ("((f32[4]{0}, f32[2]{0}), (f32[8]{0}, f32[4]{0})) all-gather-start(%x, %y)", "all-gather", 48),
    # A sum's start has the results' type alone; a permute's names two counters at the end.
    ("(f32[4]{0}, f32[2]{0}) all-reduce-start(%x, %y)", "all-reduce", 24),
    ("f32[4]{0} all-reduce-start(%x)", "all-reduce", 16),
    ("(f32[4]{0}, f32[4]{0}, u32[], u32[]) collective-permute-start(%x)", "collective-permute", 16),
    ("(f32[4]{0}, f32[4]{0}) collective-permute-start(%x)", "collective-permute", 16),
]


@pytest.mark.parametrize(("start", "kind", "size"), STARTS)
def test_an_asynchronous_start_counts_its_results(start, kind, size):
    line = f"  %s = {start}, replica_groups=[4,2]<=[8], source_target_pairs={{{{0,1}}}}"
    [found] = collectives(program(line), MESH)
    assert (found.kind, found.bytes) == (kind, size)


def test_the_buffer_of_a_scatter_is_what_goes_in():
    line = "  %r = f32[4]{0} reduce-scatter(%x), replica_groups=[2,4]<=[8], to_apply=%add"
    [found] = collectives(program(line), MESH)
    assert (found.group, found.bytes, found.buffer) == (4, 16, 64)
