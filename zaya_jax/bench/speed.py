"""Speed beside transformers: prefill, training forward and backward, decoding.

Same weights, same tokens, same machine, one process; the two sides take turns. transformers runs
each measurement with the fastest of its experts implementations, sdpa attention, and for decoding
its own cache in a bare loop without `generate`'s bookkeeping.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import statistics
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import torch

from pallas_kernels.cross_entropy import cross_entropy
from zaya_jax.bench import machine, peer
from zaya_jax.config import Model
from zaya_jax.infer import programs
from zaya_jax.infer.generate import slots
from zaya_jax.infer.sampler import Sampling
from zaya_jax.infer.sampler import batch as batch_settings
from zaya_jax.model import cache as caches
from zaya_jax.model.functional import Biases, Params, declarations, merge

PEER_EXPERTS = ("eager", "grouped_mm", "batched_mm")
MOST_BATCHED = 64
"""Tokens of a call up to which batched_mm is tried: it gathers an expert's weights per token, which
for a prompt of 1,024 takes tens of gigabytes and was 40 times slower where it fitted."""


@dataclasses.dataclass(frozen=True)
class Measurement:
    """One line of the table.

    ours, theirs: median tokens/s. ratio: median over pairs. share: of the floor's speed that we
    reach, in `unit` (matmul FLOP/s, or bytes/s of the weights that had to be read).
    """

    name: str
    tokens: int
    ours: float
    theirs: float
    ratio: float
    pairs: int
    spread: tuple[float, float]
    peer_experts: str
    share: float
    unit: str


class Bench:
    """Both sides with the same weights.

    Raises:
      RuntimeError: the two sides do not agree on the logits, so that timing them means nothing.
    """

    def __init__(self, model: Model, seed: int = 0, pairs: int = 7):
        self.model, self.pairs = dataclasses.replace(model, layers="unroll"), pairs
        self.oracle = peer.torch_model(self.model, seed, attention="sdpa")
        self.params, self.biases = peer.from_torch(self.model, self.oracle)
        self.matmul_peak = machine.matmul_peak()
        self.bandwidth = machine.read_bandwidth()
        self.rng = np.random.default_rng(seed)
        self.gap = self._agree()

    def ids(self, batch: int, length: int) -> np.ndarray:
        """Random token ids."""
        return self.rng.integers(3, self.model.vocab_size, (batch, length))

    def _agree(self) -> float:
        ids = self.ids(1, 64)
        logits = jax.jit(lambda p, b, t: self._logits(p, b, t))(
            self.params, self.biases, jnp.asarray(ids)
        )
        with torch.no_grad():
            theirs = self.oracle(torch.tensor(ids)).logits.numpy()
        gap = float(np.abs(logits - theirs).max() / np.abs(theirs).max())
        if not gap < 1e-3:
            raise RuntimeError(f"the two sides disagree by {gap:.1e} of the largest logit")
        return gap

    def _logits(self, params: Params, biases: Biases, tokens: jax.Array) -> jax.Array:
        decoder = merge(self.model, params, biases)
        return decoder.logits(decoder(tokens).hidden)

    def best_peer(self, run: Callable[[], object], tokens_a_call: int) -> str:
        """The experts implementation with which transformers is fastest at `run`."""
        taken: dict[str, float] = {}
        for name in PEER_EXPERTS if tokens_a_call <= MOST_BATCHED else PEER_EXPERTS[:2]:
            self.oracle.set_experts_implementation(name)
            try:
                first = machine.seconds(run)
                slow = taken and first > 4 * min(taken.values())
                taken[name] = first if slow else min(machine.seconds(run) for _ in range(2))
            except (RuntimeError, NotImplementedError):  # not available for this device or dtype
                continue
        best = min(taken, key=lambda name: taken[name])
        self.oracle.set_experts_implementation(best)
        return best

    def _measure(
        self, name: str, tokens: int, ours, theirs, work: float, unit: str, steps: int = 1
    ) -> Measurement:
        best = self.best_peer(theirs, tokens // steps)
        taken = machine.interleave({"ours": ours, "theirs": theirs}, self.pairs)
        ratios = [t / o for o, t in zip(taken["ours"], taken["theirs"], strict=True)]
        median = statistics.median(taken["ours"])
        peak = self.matmul_peak if unit == "matmul FLOP/s" else self.bandwidth
        return Measurement(
            name=name,
            tokens=tokens,
            ours=tokens / median,
            theirs=tokens / statistics.median(taken["theirs"]),
            ratio=statistics.median(ratios),
            pairs=self.pairs,
            spread=(min(ratios), max(ratios)),
            peer_experts=best,
            share=work / median / peak,
            unit=unit,
        )

    def prefill(self, batch: int = 1, length: int = 1024) -> Measurement:
        """A prompt into the cache and the logits of its last token."""
        ids = self.ids(batch, length)
        tokens, model = jnp.asarray(ids), self.model

        @jax.jit
        def run(params, biases, tokens):
            decoder = merge(model, params, biases)
            out = decoder(tokens, cache=caches.empty(model, batch, length))
            return decoder.logits(out.hidden[:, -1]), out.cache

        given = torch.tensor(ids)

        def theirs():
            with torch.no_grad():
                return self.oracle(given, use_cache=True, logits_to_keep=1).logits.sum().item()

        flops = forward_flops(model, batch, length, head_tokens=batch)
        return self._measure(
            f"prefill {batch}x{length}",
            batch * length,
            lambda: run(self.params, self.biases, tokens),
            theirs,
            flops,
            "matmul FLOP/s",
        )

    def train(self, batch: int = 4, length: int = 512) -> Measurement:
        """Loss and the gradient of every parameter."""
        ids = self.ids(batch, length + 1)
        tokens, targets = jnp.asarray(ids[:, :-1]), jnp.asarray(ids[:, 1:])
        model = self.model

        @jax.jit
        def run(params, biases, tokens, targets):
            def loss(params):
                decoder = merge(model, params, biases)
                hidden, head = decoder.head(decoder(tokens).hidden)
                hidden = hidden.reshape(-1, model.hidden_size)
                op = model.ops.cross_entropy
                return -cross_entropy(hidden, head, targets.reshape(-1), implementation=op).mean()

            return jax.value_and_grad(loss)(params)

        given, wanted = torch.tensor(ids[:, :-1]), torch.tensor(ids[:, 1:])

        def theirs():
            self.oracle.zero_grad(set_to_none=True)
            logits = self.oracle(given, use_cache=False).logits
            loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), wanted.flatten())
            loss.backward()
            return loss.item()

        flops = 3 * forward_flops(model, batch, length, head_tokens=batch * length)
        return self._measure(
            f"train {batch}x{length}",
            batch * length,
            lambda: run(self.params, self.biases, tokens, targets),
            theirs,
            flops,
            "matmul FLOP/s",
        )

    def decode(self, batch: int, prompt: int = 64, calls: int = 2) -> Measurement:
        """Greedy single-token steps after a prompt, through the very programs of `generate`."""
        ids, model = self.ids(batch, prompt), self.model
        steps = calls * programs.MOST_STEPS
        filters, rows = batch_settings([Sampling(temperature=0.0)] * batch, model.vocab_size)
        capacity = slots(prompt + steps + 1)
        start = jax.jit(functools.partial(programs.prefill, model, filters, capacity))
        go = jax.jit(functools.partial(programs.decode, model, filters), donate_argnums=2)
        counts = jnp.full((batch,), prompt, jnp.int32)
        ready, _ = start(self.params, self.biases, jnp.asarray(ids), counts, rows)
        many = jnp.full((batch,), steps + 1, jnp.int32)
        never = jnp.array([-1], jnp.int32)

        live = jnp.ones((batch,), bool)
        one = jax.jit(functools.partial(programs.step, model, filters))
        routed = one(self.params, self.biases, ready, live, rows)[2].counts
        used = np.sum(np.asarray(routed)[:, : model.router.experts] > 0, axis=-1).mean()

        kept = rewindable(ready)
        state = ready

        def ours():
            nonlocal state
            state = rewind(state, kept)
            for _ in range(calls):
                each = jnp.int32(programs.MOST_STEPS)
                state, _ = go(self.params, self.biases, state, many, each, never, rows)
            return state.tokens

        self.oracle.set_experts_implementation("eager")
        with torch.no_grad():
            begun = self.oracle(torch.tensor(ids), use_cache=True)
        first = begun.logits[:, -1:].argmax(-1)

        def theirs():
            past, token = copy.deepcopy(begun.past_key_values), first  # copying is under 1 ms
            with torch.no_grad():
                for _ in range(steps):
                    out = self.oracle(token, past_key_values=past, use_cache=True)
                    token = out.logits[:, -1:].argmax(-1)
            return token.sum().item()

        read = weight_bytes(model, float(used)) + cache_bytes(model, batch, prompt + steps // 2)
        return self._measure(
            f"decode batch {batch}",
            batch * steps,
            ours,
            theirs,
            read * steps,
            "memory bytes/s",
            steps,
        )


def rewindable(state: programs.State) -> programs.State:
    """A copy of all but keys and values of `state`: what a step overwrites."""
    layers = tuple(layer._replace(k=None, v=None) for layer in state.cache.layers)
    small = state._replace(cache=dataclasses.replace(state.cache, layers=layers))
    return jax.tree.map(jnp.copy, small)


def rewind(state: programs.State, kept: programs.State) -> programs.State:
    """`state` as it was when `kept` was taken: later keys and values lie past the lengths."""
    small = jax.tree.map(jnp.copy, kept)  # decode is given its state to reuse
    layers = tuple(
        old._replace(k=now.k, v=now.v)
        for old, now in zip(small.cache.layers, state.cache.layers, strict=True)
    )
    return small._replace(cache=dataclasses.replace(small.cache, layers=layers))


def forward_flops(model: Model, batch: int, length: int, head_tokens: int) -> float:
    """Matmul FLOPs of a forward pass: chosen experts only, the causal half of attention only."""
    tokens, flops = batch * length, 0.0
    for d in declarations(model).values():
        size = float(np.prod(d.shape))
        if d.group == "embedding":
            flops += 2 * size * head_tokens
        elif "expert_mlp" in d.axes:
            flops += 2 * size * tokens * model.router.top_k / model.router.experts
        elif d.group in ("matrix", "convolution") and len(d.shape) > 1:
            flops += 2 * size * tokens
    a = model.attention
    return flops + 2 * model.num_layers * batch * length**2 * a.heads * a.head_dim


def weight_bytes(model: Model, experts_used: float) -> float:
    """Bytes of the weights that one decoding step reads, `experts_used` experts a layer."""
    total = 0.0
    for d in declarations(model).values():
        size = float(np.prod(d.shape)) * jnp.dtype(d.dtype).itemsize
        total += size * (experts_used / model.router.experts if "expert_mlp" in d.axes else 1.0)
    return total


def cache_bytes(model: Model, batch: int, length: int) -> float:
    """Bytes of keys and values that one decoding step reads."""
    a = model.attention
    size = jnp.dtype(model.activation_dtype).itemsize
    return 2.0 * model.num_layers * batch * length * a.kv_heads * a.head_dim * size
