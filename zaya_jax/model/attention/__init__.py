"""Attention kinds, picked by name: `cca` (ZAYA) and what it is compared with.

A kind is a subclass of `Attention` with a `__call__` and an `empty_cache`; docs/extending.md walks
through adding one.
"""

from __future__ import annotations

from zaya_jax.config.kinds import Kinds
from zaya_jax.config.schema import ATTENTION_KINDS
from zaya_jax.model.attention.base import Attention, Tokens
from zaya_jax.model.attention.cca import CCA
from zaya_jax.model.attention.gqa import GQA, MHA
from zaya_jax.model.attention.mla import MLA

__all__ = ["KINDS", "Attention", "Tokens"]

KINDS: Kinds[type[Attention]] = Kinds(
    "model.attention.kind", ATTENTION_KINDS, {"cca": CCA, "gqa": GQA, "mha": MHA, "mla": MLA}
)
