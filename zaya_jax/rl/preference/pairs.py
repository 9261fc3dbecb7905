"""Preference pairs: read, checked, divided, and made rows of token ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from zaya_jax.data.readers import objects
from zaya_jax.data.sources import function
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa.generator import Chat


class Pair(NamedTuple):
    """Two responses to the same conversation, of which the first is preferred."""

    messages: tuple[Mapping[str, str], ...]
    chosen: str
    rejected: str


class Encoded(NamedTuple):
    """A pair in token ids: the conversation and a response each, the end of the turn included."""

    chosen: list[int]
    rejected: list[int]


def of(source: str) -> list[Pair]:
    """The pairs of a file, or those that `package.module:function` makes.

    Raises:
      UserError: as `read_pairs`; no such file or function.
    """
    path = Path(source).expanduser()
    try:
        made = None if path.exists() else function(source)
    except ValueError as error:
        raise UserError(f"preference.pairs: {error}") from None
    if made is not None:
        return list(made())
    if not path.is_file():
        raise UserError(f"preference.pairs = {source!r}: no such file")
    return list(read_pairs(path))


def read_pairs(path: Path) -> Iterator[Pair]:
    """Pairs of a JSONL file (plain, .gz or .zst): `{prompt, chosen, rejected}` a line.

    `prompt` is a text, or a list of messages that ends with the user's. Empty lines are passed
    over.

    Raises:
      UserError: a line that is no such object, or whose responses are the same text; names file,
        line and field.
      FileNotFoundError: there is no such file.
    """
    for where, _, row in objects(path):
        pair = Pair(
            _messages(row.get("prompt"), where),
            _text(row.get("chosen"), f"{where}: chosen"),
            _text(row.get("rejected"), f"{where}: rejected"),
        )
        if pair.chosen.strip() == pair.rejected.strip():
            raise UserError(
                f"{where}: chosen and rejected are the same text: it teaches nothing; leave it out"
            )
        yield pair


def _messages(prompt: Any, where: str) -> tuple[Mapping[str, str], ...]:
    if isinstance(prompt, str):
        return ({"role": "user", "content": _text(prompt, f"{where}: prompt")},)
    if not isinstance(prompt, Sequence) or not prompt:
        raise UserError(f"{where}: prompt is {prompt!r:.60}; expected a text or a list of messages")
    messages = []
    for i, message in enumerate(prompt):
        place = f"{where}: prompt[{i}]"
        if not isinstance(message, Mapping) or message.get("role") not in (
            "system", "user", "assistant",
        ):  # fmt: skip
            raise UserError(f"{place}: expected {{role: system, user or assistant, content}}")
        content = _text(message.get("content"), f"{place}.content")
        messages.append({"role": message["role"], "content": content})
    if messages[-1]["role"] != "user":
        raise UserError(f"{where}: prompt ends with a message of {messages[-1]['role']}'s")
    return tuple(messages)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise UserError(f"{where} is {value!r:.60}; expected a text")
    return value


def divide(pairs: Sequence[Pair], heldout: float) -> tuple[list[Pair], list[Pair]]:
    """Pairs to learn from, and pairs that are held out: all pairs of a prompt are in one part.

    Args:
      heldout: share, of prompts, by their hashes: no seed, and other pairs change nothing.

    Raises:
      UserError: one of the parts is empty.
    """
    parts: tuple[list[Pair], list[Pair]] = ([], [])
    for pair in pairs:
        said = json.dumps([dict(message) for message in pair.messages], sort_keys=True)
        place = int.from_bytes(hashlib.sha256(said.encode()).digest()[:8], "big") / 2**64
        parts[place < heldout].append(pair)
    if not all(parts):
        raise UserError(
            f"{len(pairs)} pairs: {len(parts[0])} to learn from and {len(parts[1])} held out; give "
            "more pairs, or another preference.heldout_fraction"
        )
    return parts


def encode(chat: Chat, messages: Sequence[Mapping[str, str]], response: str) -> list[int]:
    """A conversation and a response to it, with the token that ends a turn."""
    prompt = chat.encode([dict(message) for message in messages])
    return [*prompt, *chat.tokenizer.encode(response), chat.end_id]


def rows(sequences: Sequence[Sequence[int]], length: int, pad_id: int) -> np.ndarray:
    """[N, length] int32, padded at the end."""
    found = np.full((len(sequences), length), pad_id, np.int32)
    for row, sequence in zip(found, sequences, strict=True):
        row[: len(sequence)] = sequence
    return found
