"""The device's side of the engine: weights, pool, compiled programs, and the arrays they take."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from zaya_jax.errors import UserError
from zaya_jax.infer import quantize, sampler
from zaya_jax.infer.engine import pool as pools
from zaya_jax.infer.engine import programs
from zaya_jax.infer.engine.live import Live
from zaya_jax.infer.engine.options import Options
from zaya_jax.infer.engine.scheduler import Chunk, Plan, Row
from zaya_jax.infer.engine.scheduler import Sequence as Scheduled
from zaya_jax.infer.generate import on_device
from zaya_jax.infer.sampler import Sampling
from zaya_jax.load import Loaded
from zaya_jax.model.functional import bias_declarations, declarations

# Engines of one model and one set of shapes share what is compiled.
_PREFILL = jax.jit(programs.prefill, static_argnames=("model", "top"), donate_argnames="pool")
_DECODE = jax.jit(programs.decode, static_argnames=("model", "top", "most"), donate_argnames="pool")


class Runner:
    """Carries out plans. What it returns may still be on its way: nothing here waits, but `park`.

    Attributes:
      loaded: the network, its parameters in the dtypes in which they are used.
      pages: of the pool.
      capacity: tokens that a sequence may reach.
    """

    def __init__(self, loaded: Loaded, options: Options):
        """Raises: UserError: see `pool.pages_of` and `pool.empty`."""
        model = loaded.model
        self.loaded, self._options = on_device(loaded), options
        context = min(options.capacity or model.context_length, model.context_length)
        self.pages = pools.pages_of(model, options, context)
        self.capacity = min(context, (self.pages - 1) * options.page)
        self._pool = pools.empty(model, self.pages, options.page, options.cache_dtype)
        self._table = -(-self.capacity // options.page)  # pages of a row

        self._stop_ids = np.array(sorted(loaded.stop_ids), np.int32)
        words = -(-model.vocab_size // 32)
        # What nobody reads while no row is bound, once for each number of rows.
        self._free = {n: jnp.zeros((n, words), jnp.uint32) for n in {1, *options.decode_sizes()}}

    def swap(self, params: Mapping[str, jax.Array], biases: Mapping[str, jax.Array]) -> None:
        """Puts copies of these in place of the weights, stored as those are; see `Engine.swap`."""
        model = self.loaded.model
        for what, new, old in (
            ("parameters", params, declarations(model)),
            ("biases", biases, bias_declarations(model)),
        ):
            missing, extra = sorted(set(old) - set(new)), sorted(set(new) - set(old))
            if missing or extra:
                raise UserError(f"swap: {what} without {missing[:3]}, and with {extra[:3]}")
            for name, value in new.items():
                as_now = what == "parameters" and value.shape == self.loaded.params[name].shape
                if not as_now and value.shape != old[name].shape:
                    raise UserError(
                        f"swap: {name} is {value.shape}; expected {old[name].shape}, as before"
                    )
        copied = dataclasses.replace(
            self.loaded,
            params={
                name: quantize.like(self.loaded.params[name], jax.tree.map(jnp.array, value))
                for name, value in params.items()
            },
            biases={name: jnp.array(value) for name, value in biases.items()},
        )
        self.loaded = on_device(copied)

    def warm_up(self) -> None:
        """Compiles every program that a step may need, by running it on nothing."""
        for size in self._options.chunks:
            for pages in self._options.tables(size, self.capacity):
                tokens, table = np.zeros(size + 1, np.int32), np.zeros((1, pages), np.int32)
                self._run_prefill(table, tokens, 0, 0, False, self._ask([], 1))
        for size in self._options.decode_sizes():
            self._run_decode(self._batch([], [], size), self._ask([], size))
        block = [0] * pools.MOVED
        self._pool = pools.write(self._pool, block, pools.read(self._pool, block))
        self.clear([])
        pools.routes(self._pool, block, 0)
        jax.block_until_ready(self._pool)

    def move(self, plan: Plan) -> None:
        """Parks and restores."""
        for sequence, pages in plan.parked:
            sequence.saved = pools.read(self._pool, pages)
        for sequence, pages in plan.restored:
            self._pool = pools.write(self._pool, pages, sequence.saved)
            sequence.saved = None

    def read(self, chunk: Chunk, live: Live) -> tuple[programs.Chosen, programs.Chosen]:
        """Reads a chunk: the choice [1] behind it, and the scores [size] of its tokens' successors;
        each means something only if the chunk is the last, or the request wants the prompt
        scored."""
        sequence, scored = chunk.sequence, live.request.score_prompt
        table = np.zeros((1, chunk.table), np.int32)
        pages = sequence.pages[: chunk.table]
        table[0, : len(pages)] = pages
        tokens = np.zeros(chunk.size + 1, np.int32)
        some = sequence.tokens[chunk.start : min(chunk.start + chunk.length + 1, sequence.prompt)]
        tokens[: len(some)] = some
        asked = self._ask([live] if chunk.last or scored else [], 1)
        return self._run_prefill(table, tokens, chunk.start, chunk.length, scored, asked)

    def decode(self, rows: Sequence[Row], live: Sequence[Live]) -> programs.Chosen:
        """Adds tokens to rows: the choices [steps, size], of which the first columns are theirs."""
        size = self._options.rows_for(len(rows))
        return self._run_decode(self._batch(rows, live, size), self._ask(live, size))

    def clear(self, pages: list[int]) -> None:
        """Zeros in these pages and in the one that is nobody's.

        What a row may not attend still has to be finite: numbers that are not would spread to
        whoever gets the pages next.
        """
        self._pool = pools.clear(self._pool, [pools.NOBODYS, *pages])

    def routes(self, sequence: Scheduled) -> np.ndarray:
        """[written, L, k] of a sequence, wherever its pages are."""
        if sequence.saved is not None:
            rows = np.concatenate([block.routes for block in sequence.saved])
            return rows.reshape(-1, *rows.shape[2:])[: sequence.written]
        count = -(-sequence.written // self._options.page)
        return pools.routes(self._pool, sequence.pages[:count], sequence.written)

    def _run_prefill(self, table, tokens, start: int, length: int, scored: bool, asked):
        self._pool, chosen, scores = _PREFILL(
            model=self.loaded.model,
            top=self._options.top_logprobs,
            params=self.loaded.params,
            biases=self.loaded.biases,
            pool=self._pool,
            table=table,
            tokens=tokens,
            start=np.int32(start),
            count=np.int32(length),
            scored=np.bool_(scored),
            asked=asked,
        )
        return chosen, scores

    def _run_decode(self, batch: programs.Batch, asked: programs.Asked) -> programs.Chosen:
        self._pool, chosen = _DECODE(
            model=self.loaded.model,
            top=self._options.top_logprobs,
            most=self._options.steps,
            params=self.loaded.params,
            biases=self.loaded.biases,
            pool=self._pool,
            batch=batch,
            stop_ids=self._stop_ids,
            asked=asked,
        )
        return chosen

    def _batch(self, rows: Sequence[Row], live: Sequence[Live], size: int) -> programs.Batch:
        batch = programs.Batch(
            table=np.zeros((size, self._table), np.int32),
            tokens=np.zeros(size, np.int32),
            lengths=np.zeros(size, np.int32),
            limits=np.zeros(size, np.int32),
            ends=np.zeros(size, bool),
        )
        for i, ((sequence, limit), one) in enumerate(zip(rows, live, strict=True)):
            batch.table[i, : len(sequence.pages)] = sequence.pages
            batch.tokens[i] = sequence.tokens[-1]
            batch.lengths[i] = sequence.written
            batch.limits[i] = limit
            batch.ends[i] = bool(one.answer.stop_ids)
        return batch

    def _ask(self, live: Sequence[Live], size: int) -> programs.Asked:
        """What these requests ask of the sampler, in a batch of `size` rows."""
        settings = [one.request.sampling for one in live] + [Sampling()] * (size - len(live))
        _, rows = sampler.batch(settings, self.loaded.model.vocab_size)
        bound = any(one.bound for one in live)
        allowed: Any = self._free[size]
        if bound:
            allowed = np.full(allowed.shape, 0xFFFFFFFF, np.uint32)
            for words, one in zip(allowed, live, strict=False):
                if one.bound:
                    one.allow(words)
        best = any(one.request.top_logprobs for one in live)
        return programs.Asked(rows, np.bool_(bound), allowed, np.bool_(best))
