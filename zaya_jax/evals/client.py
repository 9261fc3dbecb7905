"""The model under test, behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import dataclasses
import http.client
import json
import random
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from zaya_jax.answers.extract import THINK
from zaya_jax.errors import UserError

TRIES = 5
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be better the next time."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0


@dataclasses.dataclass(frozen=True)
class Sampling:
    """How answers are drawn; what is None is left to the server.

    Attributes:
      temperature: 0 is greedy.
      top_p: of nucleus sampling.
      max_tokens: most tokens of an answer.
      rsa: an object of the field of our server: answers come from Markovian RSA.
    """

    temperature: float | None = None
    top_p: float | None = None
    max_tokens: int | None = None
    rsa: Mapping[str, Any] | None = None


@dataclasses.dataclass(frozen=True)
class Answer:
    """What came back.

    Attributes:
      response: reasoning between think tags, and the text.
      finish: `stop`, `length` or what else the server says.
      tokens: generated, by the server's count; None if it does not say.
      seconds: that it took.
    """

    response: str
    finish: str
    tokens: int | None
    seconds: float


class ServerError(Exception):
    """A request that failed for good; says how."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A server and the model that it is to run.

    Attributes:
      url: up to and including `/v1`.
      model: its name there.
      key: sent as a bearer token, if there is one.
      timeout_seconds: of one request.
    """

    url: str
    model: str
    key: str | None = None
    timeout_seconds: float = 600.0

    @classmethod
    def open(
        cls, url: str, model: str | None, key: str | None = None, timeout_seconds: float = 600.0
    ) -> Server:
        """Looks whether a server is there, and which models it has.

        Args:
          url: with or without `/v1`.
          model: by default, the first that it names.

        Raises:
          UserError: no URL, nobody answers, or it does not have the model.
        """
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.netloc:
            raise UserError(f"--server={url}: expected a URL such as http://localhost:8000/v1")
        base = url.rstrip("/")
        base = base if base.endswith("/v1") else f"{base}/v1"
        server = cls(base, model or "", key, timeout_seconds)
        try:
            listed = [str(entry["id"]) for entry in server._send("/models")["data"]]
        except (ServerError, KeyError, TypeError) as error:
            raise UserError(f"--server={url}: it names no models: {error}") from None
        if model is None and not listed:
            raise UserError(f"--server={url}: it serves no model")
        if model is not None and listed and model not in listed:
            raise UserError(f"--server={url}: no model {model!r}; it has: {', '.join(listed)}")
        return dataclasses.replace(server, model=model or listed[0])

    def ask(self, prompt: str, sampling: Sampling, seed: int) -> Answer:
        """One answer to a prompt; tried again while the server is busy or away.

        Raises:
          ServerError: it failed for good.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "seed": seed,
            **{k: v for k, v in dataclasses.asdict(sampling).items() if v is not None},
        }
        started = time.monotonic()
        reply = self._send("/chat/completions", body)
        try:
            choice = reply["choices"][0]
            message = choice["message"]
            text = message.get("content") or ""
            reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
            tokens = (reply.get("usage") or {}).get("completion_tokens")
            finish = str(choice.get("finish_reason") or "unknown")
        except (KeyError, IndexError, TypeError, AttributeError) as error:
            raise ServerError(f"its reply is no chat completion: {error!r}") from None
        if reasoning:
            closed = THINK[1] if text or finish != "length" else ""
            text = f"{THINK[0]}{reasoning}{closed}{text}"
        seconds = time.monotonic() - started
        return Answer(text, finish, tokens if isinstance(tokens, int) else None, seconds)

    def _send(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        last = ""
        for attempt in range(TRIES):
            if attempt:
                wait = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (attempt - 1))
                time.sleep(wait * random.uniform(0.5, 1.0))
            request = urllib.request.Request(self.url + path, data, headers)
            try:
                with urllib.request.urlopen(request, timeout=self.timeout_seconds) as reply:
                    return json.load(reply)
            except urllib.error.HTTPError as error:
                last = f"status {error.code}: {_words(error)}"
                if error.code not in BUSY:
                    break
            except (OSError, http.client.HTTPException) as error:  # urllib's own among them
                last = str(getattr(error, "reason", error) or type(error).__name__)
            except ValueError as error:
                last = f"its reply is no JSON: {error}"
        raise ServerError(last)


def _words(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(500).decode("utf-8", "replace").strip()
    except OSError:
        return str(error.reason)
