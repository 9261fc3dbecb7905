"""From requests to completions: cached decoding of a batch on one device."""

from __future__ import annotations

import dataclasses
import functools
import time
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from pallas_kernels.quantized import Quantized
from zaya_jax.errors import UserError
from zaya_jax.infer import programs, sampler
from zaya_jax.infer.request import Answer, Completion, Request
from zaya_jax.infer.sampler import Filters, Sampling
from zaya_jax.load import Loaded
from zaya_jax.model.functional import declarations

PROMPT_STEP = 16
"""Prompts are padded to multiples of this, and long ones to larger steps: see `bucket`."""

CACHE_CHUNK = 256
"""The cache is allocated in multiples of this, and at least two: XLA's CPU compiler copies the
cache of a single row eight times a layer and step where one chunk of attention spans all of it."""

PATIENCE = 0.1
"""Seconds between two pieces of streamed text, if a token takes less."""

# These are read in the activation dtype only; the others also in the float32 parts of a layer.
CAST_ONCE = frozenset({"matrix", "embedding", "convolution"})


@dataclasses.dataclass
class Timing:
    """Seconds and tokens of everything a generator has done.

    compile_seconds: not in the other times.
    first_seconds: of the prefills, until the first token was on the host.
    decode_seconds, decode_tokens: of the tokens after the first.
    """

    compile_seconds: float = 0.0
    first_seconds: float = 0.0
    first_tokens: int = 0
    decode_seconds: float = 0.0
    decode_tokens: int = 0

    @property
    def tokens_per_second(self) -> float:
        """Of decoding; 0 if nothing was decoded."""
        return self.decode_tokens / self.decode_seconds if self.decode_seconds else 0.0


class Generator:
    """Holds the weights and the compiled programs, and completes requests in batches.

    A completion does not depend on how many steps run between two looks of the host, and what is
    drawn for a request not on its neighbours (their number of rows may change the last bits of a
    logit; see `sampler`).

    Attributes:
      loaded: the network, its parameters in the dtypes in which they are used: whoever needs no
        others drops theirs, and each is held once.
    """

    def __init__(self, loaded: Loaded, *, batch: int = 1, capacity: int | None = None):
        """Args:
          loaded: the network; its layers must be in the form `unroll`.
          batch: rows that run together.
          capacity: tokens a row has room for, prompt and completion; None for the model's context.

        Raises:
          UserError: a batch or capacity below 1, or a capacity beyond the context.
        """
        context = loaded.model.context_length
        if batch < 1:
            raise UserError(f"batch = {batch}: expected at least 1")
        if capacity is not None and not 1 <= capacity <= context:
            raise UserError(
                f"capacity = {capacity}: expected 1 to model.context_length = {context}"
            )
        self.loaded = on_device(loaded)
        self.batch, self.capacity = batch, capacity or context
        self.timing = Timing()
        self._stop_ids = np.array(sorted(loaded.stop_ids), np.int32)
        self._compiled: dict[Any, Callable] = {}

    def generate(
        self,
        requests: Iterable[Request],
        on_text: Callable[[int, str], None] | None = None,
    ) -> list[Completion]:
        """Completes every request, `batch` at a time, in order.

        Args:
          requests: what to complete; all are checked before anything runs.
          on_text: called with a request's index and new text as soon as it is certain.

        Raises:
          UserError: a prompt that is too long, holds an id outside the vocabulary, or is text
            where there is no tokenizer; max_tokens below 1; an empty stop string; weights that
            give no finite logit.
        """
        answers = [Answer(self.loaded, request, self.capacity) for request in requests]
        for begin in range(0, len(answers), self.batch):

            def emit(column: int, text: str, begin: int = begin) -> None:
                if on_text is not None:
                    on_text(begin + column, text)

            self._run(answers[begin : begin + self.batch], emit, streaming=on_text is not None)
        return [answer.completion() for answer in answers]

    def _run(self, group: list[Answer], emit: Callable[[int, str], None], streaming: bool) -> None:
        counts = np.zeros(self.batch, np.int32)
        counts[: len(group)] = [len(answer.prompt) for answer in group]
        length = min(bucket(int(counts.max())), slots(self.capacity))
        tokens = np.zeros((self.batch, length), np.int32)
        for row, answer in zip(tokens, group, strict=False):
            row[: len(answer.prompt)] = answer.prompt
        idle = [Sampling()] * (self.batch - len(group))
        settings = [answer.request.sampling for answer in group] + idle
        filters, rows = sampler.batch(settings, self.loaded.model.vocab_size)

        weights = (self.loaded.params, self.loaded.biases)
        prompts = (*weights, tokens, counts, rows)
        prefill = self._program("prefill", filters, length, prompts)
        begun = time.perf_counter()
        state, chosen = prefill(*prompts)
        took = self._deliver(group, chosen, emit, begun)
        self.timing.first_seconds += took
        self.timing.first_tokens += len(group)

        steps = 1 if streaming else programs.MOST_STEPS
        while any(answer.remaining for answer in group):
            remaining = np.zeros(self.batch, np.int32)
            remaining[: len(group)] = [answer.remaining for answer in group]
            rest = (remaining, np.int32(steps), self._stop_ids, rows)
            arguments = (*weights, state, *rest)
            decode = self._program("decode", filters, 0, arguments)
            before = sum(len(answer.tokens) for answer in group)
            begun = time.perf_counter()
            state, chosen = decode(*arguments)
            took = self._deliver(group, chosen, emit, begun)
            self.timing.decode_seconds += took
            self.timing.decode_tokens += sum(len(answer.tokens) for answer in group) - before
            if streaming:
                steps = max(1, min(programs.MOST_STEPS, 2 * steps, int(PATIENCE * steps / took)))

    def _deliver(
        self,
        group: list[Answer],
        chosen: programs.Chosen,
        emit: Callable[[int, str], None],
        begun: float,
    ) -> float:
        """Hands the tokens of a call to their answers; returns the seconds since `begun`."""
        tokens, logprobs = np.asarray(chosen.tokens), np.asarray(chosen.logprobs)
        for column, answer in enumerate(group):
            for token, logprob in zip(tokens[:, column], logprobs[:, column], strict=True):
                if token < 0 or not answer.remaining:
                    break
                if text := answer.push(int(token), float(logprob)):
                    emit(column, text)
        return time.perf_counter() - begun

    def _program(self, name: str, filters: Filters, length: int, arguments: tuple) -> Callable:
        """The compiled program for these static arguments, compiled on first use."""
        key = (name, filters, length)
        if key not in self._compiled:
            begun = time.perf_counter()
            model = self.loaded.model
            if name == "prefill":
                room = slots(self.capacity)
                run = jax.jit(functools.partial(programs.prefill, model, filters, room))
            else:
                run = jax.jit(functools.partial(programs.decode, model, filters), donate_argnums=2)
            self._compiled[key] = run.lower(*arguments).compile()
            self.timing.compile_seconds += time.perf_counter() - begun
        return self._compiled[key]


def bucket(length: int) -> int:
    """The padded length of a prompt, so that few lengths are ever compiled.

    A multiple of PROMPT_STEP, and beyond 128 tokens one of eight lengths between two powers of two:
    less than an eighth is padding.
    """
    step = max(PROMPT_STEP, 1 << max((length - 1).bit_length() - 4, 0))
    return -(-length // step) * step


def slots(needed: int) -> int:
    """The capacity to allocate for a cache of `needed` tokens a row: see CACHE_CHUNK."""
    return CACHE_CHUNK * max(2, -(-needed // CACHE_CHUNK))


def on_device(loaded: Loaded) -> Loaded:
    """The network with its values on the device, those that every step would cast already cast."""
    declared = declarations(loaded.model)
    dtype = jnp.dtype(loaded.model.activation_dtype)

    def place(name: str, value: Any) -> Any:
        if isinstance(value, Quantized):
            return jax.tree.map(jnp.asarray, value)
        return jnp.asarray(value, dtype if declared[name].group in CAST_ONCE else None)

    return dataclasses.replace(
        loaded,
        params={name: place(name, value) for name, value in loaded.params.items()},
        biases={name: jnp.asarray(value) for name, value in loaded.biases.items()},
    )
