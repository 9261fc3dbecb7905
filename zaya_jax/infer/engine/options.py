"""The shapes in which the engine computes, and what it may hold at once."""

from __future__ import annotations

import dataclasses

from zaya_jax.errors import UserError

SMALLEST_TABLE = 4096
"""Tokens of the shortest table with which a prompt is gone on with. The keys and values of a whole
table are copied for a chunk: a longer one costs time, and more lengths cost compilations."""

CACHE_DTYPES = ("int8",)


@dataclasses.dataclass(frozen=True)
class Options:
    """Every number here is part of a compiled shape or a limit on the host; none changes a result
    beyond rounding, but `cache_dtype` rounds more.

    rows: requests that are computed at once; others wait.
    row_sizes: numbers of rows for which decoding is compiled; None for powers of four up to `rows`.
    page: tokens of a page.
    pages: pages of the pool, the one that is nobody's among them; None for `rows` full contexts, or
      what fits into `pool_bytes` if that is less.
    pool_bytes: see `pages`.
    capacity: tokens that one request may reach, prompt and completion; None for the model's context
      or the pool, whichever is less.
    chunks: lengths in which prompts are read, in ascending order; multiples of `page`.
    prefill_tokens: of prompts that one step reads, padding included, beside decoding; at least one
      chunk is read whatever this says.
    steps: tokens that one call of the decoding program may add to a row, where nothing waits for
      the host in between.
    top_logprobs: likeliest tokens that a request may ask for beside each chosen one.
    cache_dtype: in which keys and values are kept: None for the activation dtype, or `int8`, with a
      scale for each token and head, which changes results by what is rounded.
    batch_invariant: tokens and log-probabilities of a request are the same bits whatever else is in
      the batch. It costs the smaller shapes of decoding, and prefixes are shared in whole chunks
      of the longest length only.
    """

    rows: int = 32
    row_sizes: tuple[int, ...] | None = None
    page: int = 64
    pages: int | None = None
    pool_bytes: int = 2**30
    capacity: int | None = None
    chunks: tuple[int, ...] = (64, 256)
    prefill_tokens: int = 512
    steps: int = 4
    top_logprobs: int = 20
    cache_dtype: str | None = None
    batch_invariant: bool = False

    def __post_init__(self):
        def need(holds: bool, name: str, accepted: str) -> None:
            if not holds:
                raise UserError(f"engine: {name} = {getattr(self, name)!r}: expected {accepted}")

        need(self.rows >= 1, "rows", "at least 1")
        need(self.page >= 2, "page", "at least 2 tokens")
        need(self.pages is None or self.pages >= 2, "pages", "at least 2, or none")
        need(self.pool_bytes >= 1, "pool_bytes", "at least 1")
        need(self.capacity is None or self.capacity >= 2, "capacity", "at least 2, or none")
        fit = all(size >= self.page and size % self.page == 0 for size in self.chunks)
        rising = list(self.chunks) == sorted(set(self.chunks))
        need(bool(self.chunks) and fit and rising, "chunks", "ascending multiples of page")
        need(self.prefill_tokens >= 1, "prefill_tokens", "at least 1")
        need(self.steps >= 1, "steps", "at least 1")
        need(self.top_logprobs >= 1, "top_logprobs", "at least 1")
        need(self.cache_dtype in (None, *CACHE_DTYPES), "cache_dtype", "int8, or none")
        if self.row_sizes is not None:
            rising = list(self.row_sizes) == sorted(set(self.row_sizes))
            need(rising and self.row_sizes[-1:] == (self.rows,), "row_sizes", "ascending, to rows")
            need(self.row_sizes[0] >= 1, "row_sizes", "at least 1")

    def rows_for(self, count: int) -> int:
        """The number of rows of the program that decodes `count` sequences."""
        return next(size for size in self.decode_sizes() if size >= count)

    def decode_sizes(self) -> tuple[int, ...]:
        """The numbers of rows for which decoding is compiled."""
        if self.batch_invariant:
            return (self.rows,)
        if self.row_sizes is not None:
            return self.row_sizes
        return (*(4**i for i in range(self.rows.bit_length()) if 4**i < self.rows), self.rows)

    def chunk_for(self, remaining: int) -> int:
        """The length of the next chunk of a prompt of which so many tokens are left.

        The shortest that holds them if at most a quarter of it is padding, else the longest that
        they fill; a function of this number alone, whatever else is computed.
        """
        holds = [size for size in self.chunks if size >= remaining]
        if holds and 4 * remaining >= 3 * holds[0]:
            return holds[0]
        filled = [size for size in self.chunks if size <= remaining]
        return filled[-1] if filled else self.chunks[0]

    def table_for(self, start: int, size: int, capacity: int) -> int:
        """Pages of the table with which a chunk is read: those of the chunk alone if it begins a
        prompt, else as many as hold what is before it too, of a few sizes."""
        room = size
        if start > 0:
            room = SMALLEST_TABLE
            while room < start + size:
                room *= 4
            room = min(room, self.longest(capacity))
        return room // self.page

    def tables(self, size: int, capacity: int) -> tuple[int, ...]:
        """All numbers of pages that `table_for` gives for chunks of this length."""
        starts = range(0, capacity, self.page)
        return tuple(sorted({self.table_for(start, size, capacity) for start in starts}))

    def longest(self, capacity: int) -> int:
        """Tokens of the longest table: a chunk's padding may reach beyond the capacity."""
        return -(-(capacity + self.chunks[-1]) // self.page) * self.page
