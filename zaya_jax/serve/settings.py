"""What a server is told when it starts: names, limits, keys."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Mapping
from pathlib import Path

from zaya_jax.errors import UserError

LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclasses.dataclass(frozen=True)
class Settings:
    """Limits of a server, and whom it answers.

    name: of the model, as clients call it.
    keys: names by digest (`digest`) of the API keys; none lets everybody in.
    local: whether only requests that name this machine in their Host header are answered: without
      keys, a web page could otherwise reach the server under a name of its own (DNS rebinding).
    queue: sequences that may wait beside those that the engine computes.
    sequences: that one request may ask for, prompts times choices.
    per_key: sequences that one key may have under way; None for as many as there is room for.
    share_prefixes: whether requests of different keys share the cache of prompts. Then the time to
      a first token, and `cached_tokens`, tell whether somebody else has asked the same.
    rsa: runs of Markovian RSA at once.
    body_bytes: of a request.
    body_seconds: for a client to send its body.
    max_tokens: of a completion, whatever a request asks for; None for the engine's capacity.
    drain_seconds: for requests under way, once the server is told to stop.
    log_prompts: whether the log has what was asked.
    """

    name: str
    keys: Mapping[str, str] = dataclasses.field(default_factory=dict)
    local: bool = True
    queue: int = 256
    sequences: int = 128
    per_key: int | None = None
    share_prefixes: bool = False
    rsa: int = 2
    body_bytes: int = 4 * 2**20
    body_seconds: float = 30.0
    max_tokens: int | None = None
    drain_seconds: float = 60.0
    log_prompts: bool = False

    def __post_init__(self):
        for name, least in (
            ("queue", 0), ("sequences", 1), ("rsa", 0), ("body_bytes", 1), ("drain_seconds", 0),
        ):  # fmt: skip
            if getattr(self, name) < least:
                raise UserError(f"{name} = {getattr(self, name)}: expected at least {least}")
        for name in ("max_tokens", "per_key"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"{name} = {value}: expected at least 1")

    def owner(self, key: str) -> str | None:
        """The name that a key stands for; None if it is none of ours."""
        given = digest(key)
        found = None
        for known, name in self.keys.items():  # all of them: the time tells nothing
            if hmac.compare_digest(known, given):
                found = name
        return found


def digest(key: str) -> str:
    """SHA-256 (hex) of an API key: keys themselves are not kept."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).hexdigest()


def read_keys(path: Path) -> dict[str, str]:
    """API keys of a file, one a line, each with a name before it if one likes: `alice sk-...`.

    Empty lines and lines that begin with # are passed over.

    Returns:
      Names by digest; a key without a name is called by its line.

    Raises:
      UserError: the file cannot be read, holds no key, one shorter than 16 characters, or one
        twice.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--api_keys={path}: cannot be read: {error}") from error
    keys: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) > 2:
            raise UserError(f"--api_keys={path}, line {number}: expected `KEY` or `NAME KEY`")
        name = words[0] if len(words) == 2 else f"line {number}"
        if len(words[-1]) < 16:
            raise UserError(
                f"--api_keys={path}, line {number}: a key of {len(words[-1])} characters can be "
                "guessed; expected at least 16"
            )
        if digest(words[-1]) in keys:
            raise UserError(f"--api_keys={path}, line {number}: this key is there twice")
        keys[digest(words[-1])] = name
    if not keys:
        raise UserError(f"--api_keys={path}: holds no key")
    return keys
