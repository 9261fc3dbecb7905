"""Conversations as token ids: ChatML, thinking, tool calls, and loss on what the model says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from zaya_jax.data.example import Example, Think
from zaya_jax.data.tokenizer import Tokenizer

__all__ = ["Example", "Think", "encode"]


def encode(
    messages: Sequence[Mapping[str, Any]],
    tokenizer: Tokenizer,
    template: Any,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> Example:
    """Token ids of a conversation with the mask of what is learnt."""
    raise NotImplementedError
