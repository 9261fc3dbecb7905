"""Attention kinds, picked by name: `cca` (ZAYA) and what it is compared with.

A kind is a subclass of `Attention`; docs/extending.md tells how to add one.
"""

from __future__ import annotations

from zaya_jax.config import Model
from zaya_jax.config.kinds import ATTENTION_KINDS, find
from zaya_jax.errors import UserError
from zaya_jax.model.attention.base import Attention, Tokens

__all__ = ["Attention", "Tokens", "kind_of"]


def kind_of(model: Model) -> type[Attention]:
    """What `attention.kind` names.

    Raises:
      UserError: it is no `Attention`, or does not say how it computes and what it remembers.
    """
    kind = find(ATTENTION_KINDS, model.attention.kind)
    name = f"model.attention.kind = {model.attention.kind!r}"
    if not isinstance(kind, type) or not issubclass(kind, Attention):
        raise UserError(f"{name}: expected a subclass of zaya_jax.model.attention.Attention")
    for method in ("__call__", "empty_cache"):
        if getattr(kind, method) is getattr(Attention, method):
            raise UserError(f"{name}: it has no {method} of its own")
    return kind
