"""Attention kinds, picked by name: `cca` (ZAYA) and what it is compared with.

A kind is a subclass of `Attention`; docs/extending.md tells how to add one.
"""

from __future__ import annotations

from zaya_jax.config import Model
from zaya_jax.config.kinds import ATTENTION_KINDS, find
from zaya_jax.model.attention.base import Attention, Tokens

__all__ = ["Attention", "Tokens", "kind_of"]


def kind_of(model: Model) -> type[Attention]:
    """What `attention.kind` names."""
    return find(ATTENTION_KINDS, model.attention.kind)
