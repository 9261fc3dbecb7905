"""Bytes on one device, by part, and the largest sum of those that live at one time.

What lies between steps is exact: it follows from declarations and the table of axes. What a step
adds is a model of XLA's buffers, with the formulas below; docs/scale.md says how near it comes to
what compiled programs need. Bytes a number: s of activations, 4 of the residual stream (or s).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax.numpy as jnp

from zaya_jax.model.numerics import Numerics
from zaya_jax.optim import rule_of
from zaya_jax.plan.case import Case, Leaf
from zaya_jax.plan.traffic import key_heads

HEAD = 2**28
"""Bytes of the gradient of logits at one time (`pallas_kernels.cross_entropy.triton.LARGEST`)."""
WORKING = 1.0
"""A layer's backward pass holds, of what its forward pass made and the gradients of it, this many
times the former at its peak: as compiled programs have it (docs/scale.md)."""
BATCH = 5
"""Arrays of a batch, of 4 bytes a token (`zaya_jax.data.Batch`); of RL, 8 and the routes."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes on one device.

    Attributes:
      rest: what a step is given and gives back, by part.
      gradient, scatter, update: what the phases of a step hold beside that, by part: the backward
        pass, the way of gradients to rest, and the optimizer.
    """

    rest: Mapping[str, int]
    gradient: Mapping[str, int]
    scatter: Mapping[str, int]
    update: Mapping[str, int]

    @property
    def arguments(self) -> int:
        return sum(self.rest.values())

    @property
    def temporaries(self) -> int:
        return sum(self.peak.values())

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries

    @property
    def parts(self) -> dict[str, int]:
        """Those of the peak."""
        return {**self.rest, **self.peak}

    @property
    def peak(self) -> Mapping[str, int]:
        """The phase that holds most."""
        phases = self.gradient, self.scatter, self.update
        return max(phases, key=lambda parts: sum(parts.values()))


def memory(case: Case) -> Memory:
    """What a case needs; a pure function."""
    trained = [leaf for leaf in case.leaves if leaf.trained]
    used = sum(_copied(leaf) for leaf in trained)
    gradients = sum(leaf.at_rest * leaf.itemsize for leaf in trained)
    rest = {
        "parameters": sum(leaf.at_rest * leaf.itemsize for leaf in case.leaves),
        "optimizer": optimizer(case),
        "batch": batch(case),
    }
    if case.experiment.rl.tasks:  # summed over microbatches, by calls of one program
        rest["sums of gradients"] = gradients
    gradient = {
        "parameters in use": used,
        "gradients in use": gradients_in_use(case),
        "gathered by fsdp": gathered(case),
        "saved activations": saved(case),
        "a layer's work": working(case),
        "head": head(case),
    }
    scatter = {
        "gradients in use": gradients_in_use(case),
        "the same, as parameters": cast_gradients(case),
        "gradients": gradients,
    }
    # Clipped gradients, updates, and Muon's pieces; its whole matrices take the place of slices.
    update = {"gradients": gradients, "updates": gradients, "whole matrices": whole_matrices(case)}
    return Memory(rest, gradient, scatter, update)


def optimizer(case: Case) -> int:
    """Two moments under AdamW, a momentum under Muon (none where it is 0), in the parameters' dtype
    and where they lie."""
    optim = case.experiment.optim
    total = 0
    for leaf in case.leaves:
        if not leaf.trained or getattr(optim.factors, leaf.declared.group) == 0:
            continue
        slots = 2 if rule_of(optim, leaf.declared) == "adamw" else int(optim.muon.momentum != 0)
        total += slots * leaf.at_rest * leaf.itemsize
    return total


def batch(case: Case) -> int:
    """All microbatches of a step on a device."""
    if case.experiment.rl.tasks:
        layers = case.experiment.model.num_layers if case.experiment.rl.loss.replay else 0
        return case.tokens * (8 * 4 + layers)
    return case.tokens * case.microbatches * BATCH * 4


def _copied(leaf: Leaf) -> int:
    """Of a parameter, while the network computes: gathered, or cast to a narrower dtype, or both;
    nothing where it is used as it lies."""
    if leaf.place.once or leaf.narrowed:
        return leaf.in_use * leaf.used_itemsize
    return 0


def gradients_in_use(case: Case) -> int:
    """Of all parameters in use, in their dtype there; accumulated over microbatches, in the
    parameters' dtype, and the accumulator beside a microbatch's own."""
    trained = [leaf for leaf in case.leaves if leaf.trained]
    one = sum(leaf.in_use * leaf.used_itemsize for leaf in trained)
    if case.microbatches == 1:
        return one
    return one + sum(leaf.in_use * leaf.itemsize for leaf in trained)


def cast_gradients(case: Case) -> int:
    """Gradients of matrices in the parameters' dtype, if that is wider: XLA merges the collectives
    that scatter them, so that all are there at one time."""
    if case.microbatches > 1:  # they are accumulated in it
        return 0
    return sum(
        leaf.in_use * leaf.itemsize for leaf in case.leaves if leaf.trained and leaf.narrowed
    )


def gathered(case: Case) -> int:
    """Under `fsdp`: a layer's matrices whole and their gradients, or under `remat = none` every
    layer's; and the embedding whole, and its gradient."""
    inside = outside = 0
    layers = case.experiment.model.num_layers
    for leaf in case.leaves:
        if not leaf.place.in_use:
            continue
        size = leaf.whole * leaf.used_itemsize
        if not leaf.layers:
            outside += size * (1 + leaf.trained)
        elif case.experiment.model.remat == "none":
            inside += size * (1 + leaf.trained)
        else:  # a stack's share of one layer
            inside += size * (1 + leaf.trained) // layers
    return inside + outside


def kept(case: Case) -> int:
    """Bytes a token that a layer makes on its way forward, and its backward pass reads:

    the stream before and after attention (2 D of 4 bytes), its norms (2 D); latents and what is
    mixed of them (2 (H + 2 K) C), the attention's result (H C and H of 4 bytes), its projection
    (D); the router's hidden layers (4 R) and probabilities; k rows sorted by expert of D, 2 F, F
    and D, and their sum (D).
    """
    model, a = case.experiment.model, case.experiment.model.attention
    s, D, C = case.activation_itemsize, model.hidden_size, a.head_dim
    attention = 2 * (a.heads + 2 * key_heads(case)) * C + a.heads * C + D
    router = model.router.width * 4 * s + 2 * 4 * case.classes
    experts = model.router.top_k * (2 * D + 3 * model.expert_width) + D
    return 2 * D * _stream(case) + (2 * D + attention + experts) * s + a.heads * 4 + router


def saved(case: Case) -> int:
    """Of all layers, until the backward pass comes to them. Under `full`, what goes into a layer:
    the stream (D) and the router's state (R of 4 bytes). Under `dots`, also what matrices give:
    (H + 2 K) C latents and the projection's D. Under `none`, all that `kept` counts."""
    model, a = case.experiment.model, case.experiment.model.attention
    state = model.router.width * 4 if model.router.kind == "mlp_eda" else 0
    each = model.hidden_size * _stream(case) + state
    if model.remat == "dots":
        latents = (a.heads + 2 * key_heads(case)) * a.head_dim + model.hidden_size
        each += latents * case.activation_itemsize
    elif model.remat == "none":
        each = kept(case) + state
    return case.tokens * model.num_layers * each


def working(case: Case) -> int:
    """Of one layer's backward pass: `WORKING` times what it keeps a token; and the keys and values
    of whole rows with their gradients, under `context`."""
    model = case.experiment.model
    found = WORKING * kept(case) * case.tokens
    if case.sizes["context"] > 1:
        width = 2 * key_heads(case) * model.attention.head_dim
        found += 3 * case.rows * case.length * width * case.activation_itemsize
    if case.exchange is not None:  # buffers of an exchange have room
        N = case.tokens * model.router.top_k
        more = case.exchange.ranks * case.exchange.capacity(N) / N - 1
        rows = 6 * model.hidden_size + 4 * model.expert_width
        found += more * N * rows * case.activation_itemsize
    return int(found)


def head(case: Case) -> int:
    """What the head reads, and its gradient (2 D a token, in the head's dtype), and the gradient of
    the logits, `HEAD` at most."""
    model = case.experiment.model
    size = max(jnp.dtype(model.param_dtype).itemsize, case.activation_itemsize)
    logits = min(case.tokens * model.vocab_size * size, HEAD)
    return 2 * case.tokens * model.hidden_size * size + logits


def whole_matrices(case: Case) -> int:
    """Muon's: of the largest leaf, what is traded for slices, in and out."""
    sizes = [
        leaf.at_rest * leaf.itemsize
        for leaf in case.leaves
        if leaf.trained and rule_of(case.experiment.optim, leaf.declared).startswith("muon")
    ]
    return 3 * max(sizes, default=0)


def _stream(case: Case) -> int:
    return jnp.dtype(Numerics.of(case.experiment.model).dtype("residual")).itemsize
