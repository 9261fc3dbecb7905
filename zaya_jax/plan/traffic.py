"""What a step sends between devices: the table of docs/scale.md as formulas, each in one function.

A message's bytes are those of its buffer on one device: the larger of what goes in and what comes
out. `sent` says how many of them leave the device. XLA may merge messages of one kind (counts fall,
bytes do not) and adds some of a few numbers, for norms and sums, which are not here.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

from zaya_jax.optim import rule_of
from zaya_jax.plan.case import Case, Leaf

GATHER, SCATTER, REDUCE = "all-gather", "reduce-scatter", "all-reduce"
EXCHANGE, RAGGED, PERMUTE = "all-to-all", "ragged-all-to-all", "collective-permute"
MUON = "matrices for Muon"


@dataclasses.dataclass(frozen=True)
class Message:
    """Collectives of one purpose in a step.

    Attributes:
      what: for a person.
      kind: as XLA names it.
      axes: of the mesh, that its groups span.
      count: how many.
      bytes: of all of them together, of the buffer on one device.
      live: share of the buffer that holds something; less than 1 where a ragged exchange has room.
    """

    what: str
    kind: str
    axes: tuple[str, ...]
    count: int
    bytes: int
    live: float = 1.0

    def sent(self, sizes: Mapping[str, int]) -> float:
        """Bytes that leave a device, under the best algorithms: 1 - 1/n of the buffer, and twice
        that for an all-reduce, which is a reduce-scatter and an all-gather; a permute sends all."""
        n = math.prod(sizes[axis] for axis in self.axes)
        share = {PERMUTE: 1.0, REDUCE: 2 * (1 - 1 / n)}.get(self.kind, 1 - 1 / n)
        return self.bytes * self.live * share


def messages(case: Case) -> list[Message]:
    """All that a step sends, in the order in which it does."""
    return [
        message
        for part in (parameters, layers, segments, keys_and_values, halos, loads, tokens,
                     statistics, gradients, muon)
        for message in part(case)
        if message.count and message.bytes and message.axes
    ]  # fmt: skip


def parameters(case: Case) -> Iterator[Message]:
    """Parameters from rest to use: what `once` divides is gathered, in the dtype it is used in.

    Sum over parameters of (numbers in use) x (bytes of one in use); P of them, 2 P bytes.
    """
    for axes, leaves in _by_axes(case, "once").items():
        size = sum(leaf.in_use * leaf.used_itemsize for leaf in leaves)
        yield Message("parameters to use", GATHER, axes, len(leaves), size)


def gradients(case: Case) -> Iterator[Message]:
    """Gradients from use to rest, in the parameters' dtype: 4 P bytes; those of parameters of which
    several devices have a copy at rest are summed over these."""
    for axes, leaves in _by_axes(case, "once").items():
        size = sum(leaf.in_use * leaf.itemsize for leaf in leaves)
        yield Message("gradients to rest", SCATTER, axes, len(leaves), size)
    copies: dict[tuple[str, ...], int] = {}
    for leaf in _trained(case):
        axes = leaf.place.copies
        copies[axes] = copies.get(axes, 0) + leaf.at_rest * leaf.itemsize
    for axes, size in copies.items():
        yield Message("gradients of small parameters", REDUCE, axes, 1, size)


def layers(case: Case) -> Iterator[Message]:
    """A layer's matrices under `fsdp`: gathered forward, and again backward under remat; their
    gradients reduced. All m times: (passes) x 2 P m, and 2 P m bytes.

    The embedding is read by the first layer and by the head: XLA gathers it once for both, and
    reduces the sum of their gradients (on CPUs either of them). XLA may also merge what layer 0,
    which stands outside of the loop, gathers again: that is not thought of here.
    """
    m = case.microbatches
    for axes, leaves in _by_axes(case, "in_use", frozen=True).items():
        inside = [leaf for leaf in leaves if leaf.layers]
        outside = [leaf for leaf in leaves if not leaf.layers]
        for what, some, reads in (
            ("layers' matrices", inside, case.passes),
            ("the embedding", outside, 1),
        ):
            count = sum(max(leaf.layers, 1) for leaf in some)
            size = sum(leaf.whole * leaf.used_itemsize for leaf in some)
            yield Message(what, GATHER, axes, reads * m * count, reads * m * size)
            learnt = [leaf for leaf in some if leaf.trained]
            count = sum(max(leaf.layers, 1) for leaf in learnt)
            size = sum(leaf.whole * leaf.used_itemsize for leaf in learnt)
            yield Message(f"gradients of {what}", SCATTER, axes, m * count, m * size)


def tokens(case: Case) -> Iterator[Message]:
    """Tokens to experts and back, over `expert`, one turn a layer (loads within `parallel.room`).

    Of N = T k rows of D numbers: 2 forward, 2 again under remat, and 3 backward, of which two are
    one message (a token, and the gradient of its output): 2 D x 7 T L r bytes. r is `room` where a
    buffer has it: on both ways of a padded exchange, on the way out of a ragged one. The weights of
    the assignments travel along, a number a row.
    """
    if case.exchange is None:
        return
    model, exchange = case.experiment.model, case.exchange
    N = case.tokens * model.router.top_k
    room = exchange.ranks * exchange.capacity(N)
    ragged = exchange.kind == "ragged"
    kind, back = (RAGGED, N) if ragged else (EXCHANGE, room)
    L, m, s, D = model.num_layers, case.microbatches, case.activation_itemsize, model.hidden_size
    times = case.passes * L * m

    def message(what: str, count: int, out: int, home: int) -> Message:
        buffers = out * room + home * back
        live = (out + home) * N / buffers if ragged else 1.0
        return Message(what, kind, ("expert",), count, buffers * s, live)

    # Numbers a row: token and weight out, result back; token, gradient and weight out, two back.
    yield message("tokens to experts and back", 3 * times, times * (D + 1), times * D)
    yield message("the same, backward", 4 * L * m, L * m * (2 * D + 1), L * m * (D + 1))


def loads(case: Case) -> Iterator[Message]:
    """Every device tells the others of its axis `expert` the loads of E experts: E integers."""
    if case.exchange is None:
        return
    model = case.experiment.model
    times = case.passes * model.num_layers * case.microbatches
    size = case.exchange.ranks * model.router.experts * 4
    yield Message("loads of experts", GATHER, ("expert",), times, times * size)


def keys_and_values(case: Case) -> Iterator[Message]:
    """Keys and values of whole rows, over `context`: U = rows x length tokens of 2 K C numbers;
    forward, again under remat, and their gradients back: (passes) x 4 K C U L and 4 K C U L bytes.
    """
    n = case.sizes["context"]
    if n == 1:
        return
    model = case.experiment.model
    size = case.rows * case.length * 2 * key_heads(case) * model.attention.head_dim
    size *= case.activation_itemsize
    times = model.num_layers * case.microbatches
    axes = ("context",)
    yield Message("keys and values", GATHER, axes, case.passes * times, case.passes * times * size)
    yield Message("gradients of keys and values", SCATTER, axes, times, times * size)


def key_heads(case: Case) -> int:
    """Heads whose keys and values `attend` is given: all of them in `mha` and `mla`."""
    a = case.experiment.model.attention
    return a.heads if a.kind in ("mha", "mla") else a.kv_heads


def segments(case: Case) -> Iterator[Message]:
    """Which document each token of a row is of: an integer a token, over `context`, once a
    microbatch."""
    if case.sizes["context"] > 1:
        m, size = case.microbatches, case.rows * case.length * 4
        yield Message("documents of rows", GATHER, ("context",), m, m * size)


def halos(case: Case) -> Iterator[Message]:
    """What CCA's mix reads across the borders of chunks, over `context`: the last
    K0 + K1 - 2 latents of q and k and the last delayed value, of either chunk of R rows, forward,
    again under remat, and backward: (passes + 1) x 2 x 2 R L ((K0 + K1 - 2)(H + K) C + K C / 2).
    """
    model, a = case.experiment.model, case.experiment.model.attention
    if case.sizes["context"] == 1 or a.kind != "cca":
        return
    past = sum(a.conv_kernels) - len(a.conv_kernels)
    width = past * (a.heads + a.kv_heads) * a.head_dim + a.kv_heads * a.head_dim // 2
    times = 2 * (case.passes + 1) * model.num_layers * case.microbatches
    size = times * case.rows * width * case.activation_itemsize
    yield Message("halos", PERMUTE, ("context",), times, size)


def statistics(case: Case) -> Iterator[Message]:
    """Statistics of routing over all devices: of each layer the counts and mean probabilities of E
    experts and the skip class, and three means: L (2 E + 5) numbers."""
    wide = tuple(axis for axis, size in case.sizes.items() if size > 1)
    m, size = case.microbatches, case.experiment.model.num_layers * (2 * case.classes + 3) * 4
    yield Message("statistics of routing", REDUCE, wide, m, m * size)


def muon(case: Case) -> Iterator[Message]:
    """Slices of matrices for whole ones, and updates back, over the n devices that divide them.

    Of N matrices [a, b] that a device has slices of, it gets ceil(N / n) whole: the gradient, with
    Nesterov also the momentum, and the update back: 2 or 3 x ceil(N / n) a b x (bytes of one). That
    is 4 P / n each way, and more where n does not divide N.
    """
    optim = case.experiment.optim
    for axes, leaves in _by_axes(case, "all").items():
        moved = [leaf for leaf in leaves if rule_of(optim, leaf.declared).startswith("muon")]
        if optim.factors.matrix == 0:
            return
        size = sum(_whole_matrices(leaf, axes, case.sizes) * leaf.itemsize for leaf in moved)
        ways = 3 if optim.muon.momentum and optim.muon.nesterov else 2
        yield Message(MUON, EXCHANGE, axes, ways * len(moved), ways * size)


def _whole_matrices(leaf: Leaf, axes: tuple[str, ...], sizes: Mapping[str, int]) -> int:
    """Numbers of the whole matrices that a device gets."""
    a, b = leaf.declared.shape[-2:]
    n = math.prod(sizes[axis] for axis in axes)
    return math.ceil(leaf.whole // (a * b) / n) * a * b


def _trained(case: Case) -> list[Leaf]:
    return [leaf for leaf in case.leaves if leaf.trained]


def _by_axes(case: Case, which: str, frozen: bool = False) -> dict[tuple[str, ...], list[Leaf]]:
    """Trained parameters (or frozen ones too) by the axes that divide them: `once`, `in_use`, or
    `all` of both."""
    found: dict[tuple[str, ...], list[Leaf]] = {}
    for leaf in case.leaves if frozen else _trained(case):
        place = leaf.place
        axes = place.in_use + place.once if which == "all" else getattr(place, which)
        if axes and place.divided is not None:
            found.setdefault(axes, []).append(leaf)
    return found
