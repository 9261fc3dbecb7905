"""What a device computes in a step, and how long it takes: a roofline of four resources.

    matrices    FLOPs / (peak of their dtype x share reached)
    memory      bytes / (bandwidth x share reached)
    links       bytes sent inside a node / (link x share reached), and latency
    network     bytes sent to other nodes / (network x share reached), and latency

Matrices and memory work side by side in each part of a step (layers, head, optimizer): the longer
one counts. The collectives' time is added, but for the share `overlap` of it that may hide. Nothing
of this has been measured; it ranks layouts and shows what a step waits for.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import jax.numpy as jnp

from zaya_jax import costs
from zaya_jax.optim import rule_of
from zaya_jax.plan import memory
from zaya_jax.plan.case import Case
from zaya_jax.plan.hardware import Hardware
from zaya_jax.plan.traffic import EXCHANGE, PERMUTE, RAGGED, REDUCE, Message


@dataclasses.dataclass(frozen=True)
class Work:
    """Of one device in a step.

    Attributes:
      model_flops: what the computation needs (`costs.flops_per_token`).
      flops: what is computed, by part; recomputation and Newton-Schulz among it.
      dtypes: of the operands of each part's products.
      bytes: that device memory moves, by part.
    """

    model_flops: float
    flops: Mapping[str, float]
    dtypes: Mapping[str, str]
    bytes: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class Time:
    """Seconds of a step.

    Attributes:
      parts: of layers, head and optimizer: (matrices, memory).
      links, network: of the collectives.
      seconds: of the whole.
    """

    parts: Mapping[str, tuple[float, float]]
    links: float
    network: float
    seconds: float


def work(case: Case) -> Work:
    """What a case computes; a pure function.

    Layers: costs' model FLOPs but for the head's; forward once more under remat (under `dots`
    attention and experts; what the kernels of the mix and the router do again, 6% of that, is left
    out). Head: 2 V D a token forward, twice that backward, and the logits once more. Optimizer:
    `newton_schulz`.
    """
    experiment, model = case.experiment, case.experiment.model
    tokens = case.tokens * case.microbatches
    needed = costs.flops_per_token(experiment) * tokens
    passes = 2 if experiment.lora.rank else 3
    forward_head = 2 * model.vocab_size * model.hidden_size * tokens
    layers = needed - passes * forward_head
    again = 0.0
    if model.remat == "full":
        again = layers / passes  # a third of it is the forward pass; half under LoRA
    elif model.remat == "dots":  # keeps products with matrices, but not kernels' results
        experts = 2 * 3 * model.hidden_size * model.expert_width * model.router.top_k
        again = tokens * (costs.score_flops(experiment) + experts * model.num_layers)
    narrow, wide = model.activation_dtype, _wider(model.activation_dtype, model.param_dtype)
    bf16 = experiment.optim.muon.bfloat16_products
    return Work(
        model_flops=needed,
        flops={
            "layers": layers + again,
            "head": (passes + 1) * forward_head,
            "optimizer": newton_schulz(case),
        },
        dtypes={"layers": narrow, "head": wide, "optimizer": "bfloat16" if bf16 else "float32"},
        bytes=_bytes(case),
    )


def newton_schulz(case: Case) -> float:
    """Of the matrices [a, b], a <= b, that a device orthogonalises: each of `iterations` times
    a^2 b + a^3 for one triangle of the two symmetric products, as the kernel has it, and 2 a^2 b
    for the whole one."""
    optim, total = case.experiment.optim, 0.0
    for leaf in case.leaves:
        if not leaf.trained or not rule_of(optim, leaf.declared).startswith("muon"):
            continue
        if optim.factors.matrix == 0:
            return 0.0
        *_, m, n = leaf.declared.shape
        count = leaf.whole // (m * n)
        axes = leaf.place.in_use + leaf.place.once
        ways = math.prod(case.sizes[axis] for axis in axes) if leaf.place.divided is not None else 1
        if rule_of(optim, leaf.declared) == "muon of halves":
            count, n = 2 * count, n // 2
        a, b = sorted((m, n))
        total += math.ceil(count / ways) * optim.muon.iterations * (3 * a * a * b + a**3)
    return total


def _bytes(case: Case) -> dict[str, float]:
    """Layers: what a layer keeps, written and read in each pass; its weights read in each pass and
    twice backward, gradients written. Head: the embedding for each chunk's products. Optimizer: the
    parameters, their gradients and the optimizer's state, read and written."""
    trained = [leaf for leaf in case.leaves if leaf.trained]
    inside = sum(leaf.whole * leaf.used_itemsize for leaf in case.leaves if leaf.layers)
    outside = sum(leaf.whole * leaf.used_itemsize for leaf in case.leaves if not leaf.layers)
    m, passes = case.microbatches, case.passes
    activations = case.tokens * case.experiment.model.num_layers * memory.kept(case)
    rest = sum(leaf.at_rest * leaf.itemsize for leaf in trained)
    return {
        "layers": m * ((2 * passes + 3) * activations + (passes + 3) * inside),
        "head": m * 6 * outside,
        "optimizer": 6.0 * rest + 2.0 * memory.optimizer(case),
    }


def time_of(case: Case, hardware: Hardware, found: Work, sent: list[Message]) -> Time:
    """The roofline of a case."""
    parts = {
        name: (
            found.flops[name] / hardware.flops(found.dtypes[name]),
            found.bytes[name] / (hardware.bandwidth * hardware.bandwidth_reached),
        )
        for name in found.flops
    }
    links = network = 0.0
    for message in sent:
        inside, outside = seconds_of(message, case.sizes, hardware)
        links, network = links + inside, network + outside
    busy, talking = sum(max(pair) for pair in parts.values()), links + network
    hidden = min(hardware.overlap * talking, busy)
    return Time(parts, links, network, busy + talking - hidden)


def seconds_of(
    message: Message, sizes: Mapping[str, int], hardware: Hardware
) -> tuple[float, float]:
    """Of a message: (inside nodes, between nodes).

    A group of n devices of which w share a node. What all of a node's w devices need comes over
    their w NICs once and is passed on inside the node; of an exchange, every device's own part for
    other nodes goes through its own NIC. A permute waits for its slowest pair.
    """
    n = math.prod(sizes[axis] for axis in message.axes)
    w = neighbours(message.axes, sizes, hardware.node)
    own = message.bytes * message.live
    twice = 2 if message.kind == REDUCE else 1
    link = hardware.link * hardware.links_reached
    if not hardware.switched:
        link *= (min(w, hardware.node) - 1) / max(hardware.node - 1, 1)
    network = hardware.network * hardware.links_reached
    inside = outside = 0.0
    if message.kind == PERMUTE:
        pair = link if hardware.switched else link / max(w - 1, 1)
        inside, outside = (0.0, own / network) if n > w else (own / pair, 0.0)
    elif message.kind in (EXCHANGE, RAGGED):
        inside = own * (w - 1) / n / link if w > 1 else 0.0
        outside = own * (n - w) / n / network
    else:
        inside = twice * own * (w - 1) / w / link if w > 1 else 0.0
        outside = twice * own * (1 - w / n) / (w * network)
    steps = twice * message.count
    if n > w:
        outside += steps * hardware.network_latency * math.log2(max(n // w, 2))
    else:
        inside += steps * hardware.link_latency
    return inside, outside


def neighbours(axes: tuple[str, ...], sizes: Mapping[str, int], node: int) -> int:
    """Devices of a group that share a node; device i is the i-th of the mesh, and of node
    i // `node`."""
    found, stride = 1, 1
    for axis in reversed(list(sizes)):
        if axis in axes:
            room = max(node // stride, 1)  # positions along this axis within a node
            found *= math.gcd(sizes[axis], room)
        stride *= sizes[axis]
    return found


def _wider(a: str, b: str) -> str:
    return a if jnp.dtype(a).itemsize >= jnp.dtype(b).itemsize else b
