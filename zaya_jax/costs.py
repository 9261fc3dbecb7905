"""What a config costs: parameters, floating-point operations, and bytes of cache."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping

import jax

from zaya_jax.config import Experiment, Model
from zaya_jax.model import cache
from zaya_jax.model.attention import kind_of
from zaya_jax.model.functional import active_parameter_count, parameter_count

TOLERANCE = 0.02
"""Relative difference up to which the arms of a comparison count as matched."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """Of one experiment.

    Attributes:
      parameters: all of them; balancing biases are not among them.
      active_parameters: those that one token uses.
      flops_per_token: model FLOPs of training on one token, see `flops_per_token`.
      kv_bytes_per_token: that cached decoding keeps for each token, over all layers.
    """

    parameters: int
    active_parameters: int
    flops_per_token: float
    kv_bytes_per_token: int


def of(experiment: Experiment) -> Costs:
    """The costs of an experiment; nothing is allocated."""
    model = experiment.model
    return Costs(
        parameter_count(model),
        active_parameter_count(model),
        flops_per_token(experiment),
        kv_bytes_per_token(model),
    )


def flops_per_token(experiment: Experiment) -> float:
    """Model FLOPs of training on one token: what the computation needs, not what is recomputed.

    Two for each active parameter forward and four backward (arXiv 2204.02311, appendix B), two
    under LoRA, where the base gets no gradient. The tied embedding counts once, for the head; the
    skip class is not thought of. Attention: `score_flops` thrice.
    """
    weights = 2 * active_parameter_count(experiment.model)
    return weights * (2 if experiment.lora.rank else 3) + score_flops(experiment) * 3


def score_flops(experiment: Experiment) -> float:
    """FLOPs of attention itself in a forward pass, for one token, over all layers.

    Scores and values of the keys a query sees, in a sequence of one document, as the kind counts
    them (`Attention.score_flops`).
    """
    model, S = experiment.model, experiment.train.sequence_length
    a = model.attention

    def keys(span: str) -> float:
        seen = min(a.window or S, S) if span == "sliding" else S
        return seen - seen * (seen - 1) / (2 * S)  # the first ones see fewer

    spans = [keys(a.pattern[i % len(a.pattern)]) for i in range(model.num_layers)]
    return sum(kind_of(model).score_flops(model, seen) for seen in spans)


def kv_bytes_per_token(model: Model) -> int:
    """Bytes of keys and values that a cache grows by with every token, over all layers.

    CCA's state beside them is of constant size.
    """
    one = jax.eval_shape(lambda: cache.empty(model, batch=1, capacity=1))
    arrays = [array for layer in one.layers for array in (layer.k, layer.v)]
    return sum(math.prod(array.shape) * array.dtype.itemsize for array in arrays)


def mismatches(costs: Mapping[str, Costs], tolerance: float = TOLERANCE) -> Iterator[str]:
    """A line for each cost in which the arms of a comparison differ by more than `tolerance`.

    Args:
      costs: by the name of the arm.
      tolerance: largest accepted (largest - smallest) / smallest.
    """
    if not costs:
        return
    for field in dataclasses.fields(Costs):
        values = {name: getattr(cost, field.name) for name, cost in costs.items()}
        least, most = min(values, key=values.__getitem__), max(values, key=values.__getitem__)
        base = max(values[least], 1)
        if values[most] > base * (1 + tolerance):
            title = field.name.replace("_", " ")
            yield (
                f"arms are not matched in {title}: {least} has {values[least]:,.0f}, "
                f"{most} {values[most]:,.0f} ({values[most] / base - 1:.1%} more)"
            )
