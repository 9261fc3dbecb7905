"""Shapes that do not fit together are refused, and what is compiled covers what is asked for."""

import pytest

from zaya_jax.errors import UserError
from zaya_jax.infer.engine import Options


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"rows": 0}, "rows = 0"),
        ({"page": 1}, "page = 1"),
        ({"pages": 1}, "pages = 1"),
        ({"chunks": ()}, "chunks = "),
        ({"chunks": (64, 100)}, "multiples of page"),
        ({"chunks": (256, 64)}, "ascending"),
        ({"steps": 0}, "steps = 0"),
        ({"row_sizes": (1, 4)}, "row_sizes"),
        ({"row_sizes": (0, 32)}, "row_sizes"),
        ({"top_logprobs": 0}, "top_logprobs"),
        ({"prefill_tokens": 0}, "prefill_tokens"),
        ({"capacity": 1}, "capacity"),
        ({"pool_bytes": 0}, "pool_bytes"),
        ({"cache_dtype": "fp8"}, "cache_dtype = 'fp8': expected int8, or none"),
    ],
)
def test_options_out_of_range_are_named(fields, message):
    with pytest.raises(UserError, match=message):
        Options(**fields)


@pytest.mark.parametrize("options", [Options(), Options(rows=5), Options(row_sizes=(2, 32))])
def test_every_number_of_rows_has_a_program(options):
    sizes = options.decode_sizes()
    assert sizes[-1] == options.rows and list(sizes) == sorted(set(sizes))
    assert all(options.rows_for(n) in sizes for n in range(1, options.rows + 1))
    assert Options(rows=5, batch_invariant=True).rows_for(1) == 5


@pytest.mark.parametrize("capacity", [64, 200, 5000])
def test_every_chunk_has_a_program_whose_table_holds_it(capacity):
    options = Options()
    tables = {size: options.tables(size, capacity) for size in options.chunks}
    for length in range(1, capacity, 3):
        start = 0
        while start < length:
            size = options.chunk_for(length - start)
            pages = options.table_for(start, size, capacity)
            assert pages in tables[size]
            assert pages * options.page >= start + size
            assert (pages * options.page == size) == (start == 0)
            start += size
