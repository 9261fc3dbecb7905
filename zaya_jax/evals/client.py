"""The model under test, behind any server that speaks OpenAI's chat completions."""

from __future__ import annotations

import dataclasses
import email.utils
import http.client
import json
import random
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from typing import Any

from zaya_jax.answers.extract import THINK
from zaya_jax.errors import UserError
from zaya_jax.evals import connection

TRIES = 5
BUSY = (408, 425, 429, 500, 502, 503, 504)
"""Statuses that may be better the next time."""
LATER = (429, 503)
"""Of them, those after which a server may say when: that is waited out, and is no try."""
REFUSED = (400, 413, 422)
"""Statuses that are about what was asked: over the context, for one."""
FIRST_WAIT_SECONDS, LONGEST_WAIT_SECONDS = 0.5, 30.0
LONGEST_LATER_SECONDS = 3600.0
"""After which a server is asked again, whatever it said."""
LISTING_SECONDS = 60.0
"""Most seconds until a server has named its models."""


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
      refused: why the server would not answer; None if it did. It counts as wrong.
    """

    response: str
    finish: str
    tokens: int | None
    seconds: float
    refused: str | None = None


class ServerError(Exception):
    """A request that failed for good; says how."""


class Refused(ServerError):
    """The server will not answer this request; it may answer others."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A server and the model that it is to run.

    Attributes:
      url: up to and including `/v1`.
      model: its name there.
      key: sent as a bearer token, if there is one.
      timeout_seconds: most that an answer may take; None for any time. A connection must be made
        within `connection.CONNECT_SECONDS`.
    """

    url: str
    model: str
    key: str | None = None
    timeout_seconds: float | None = None

    @classmethod
    def open(
        cls,
        url: str,
        model: str | None,
        key: str | None = None,
        timeout_seconds: float | None = None,
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
            reply = server._send("/models", LISTING_SECONDS)
            listed = [str(entry["id"]) for entry in reply["data"]]
        except (ServerError, KeyError, TypeError) as error:
            raise UserError(f"--server={url}: it names no models: {error}") from None
        if model is None and not listed:
            raise UserError(f"--server={url}: it serves no model")
        if model is not None and listed and model not in listed:
            raise UserError(f"--server={url}: no model {model!r}; it has: {', '.join(listed)}")
        return dataclasses.replace(server, model=model or listed[0])

    def ask(
        self, prompt: str, sampling: Sampling, seed: int, stop: threading.Event | None = None
    ) -> Answer:
        """One answer to a prompt; tried again while the server is busy or away.

        Args:
          prompt: what the user says.
          sampling: how the answer is drawn.
          seed: of the draw.
          stop: when it is set, nothing is waited for any more before another try.

        Raises:
          Refused: the server will not answer that.
          ServerError: it failed for good.
        """
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "seed": seed,
            **{k: v for k, v in dataclasses.asdict(sampling).items() if v is not None},
        }
        started = time.monotonic()
        reply = self._send("/chat/completions", self.timeout_seconds, body, stop)
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

    def _send(
        self,
        path: str,
        timeout: float | None,
        body: Mapping[str, Any] | None = None,
        stop: threading.Event | None = None,
    ) -> Any:
        stop, tries = stop or threading.Event(), 0
        while True:
            try:
                return self._once(path, timeout, body)
            except _Again as again:
                failure, later = str(again), again.later
            if later is not None:  # those who were sent away together do not come back together
                wait = later + random.uniform(0.0, FIRST_WAIT_SECONDS)
            else:
                tries += 1
                longest = min(LONGEST_WAIT_SECONDS, FIRST_WAIT_SECONDS * 2 ** (tries - 1))
                wait = longest * random.uniform(0.5, 1.0)
            if tries == TRIES or stop.wait(wait):
                raise ServerError(failure)

    def _once(self, path: str, timeout: float | None, body: Mapping[str, Any] | None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(self.url + path, data, headers)
        try:
            with connection.opener().open(request, timeout=timeout) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            said = f"status {error.code}: {_words(error)}"
            if error.code in BUSY:
                after = error.headers.get("Retry-After") if error.code in LATER else None
                raise _Again(said, _seconds_of(after)) from None
            raise (Refused if error.code in REFUSED else ServerError)(said) from None
        except TimeoutError as error:  # none of connecting: that is an URLError
            said = str(error) if timeout is None else f"no answer within {timeout:g} s"
            raise _Again(said) from None
        except (OSError, http.client.HTTPException) as error:  # urllib's own among them
            said = str(getattr(error, "reason", error) or type(error).__name__)
            raise _Again(said) from None
        except ValueError as error:
            raise _Again(f"its reply is no JSON: {error}") from None


class _Again(Exception):
    """A try that failed, after which another may not; the server may have said when."""

    def __init__(self, words: str, later: float | None = None):
        super().__init__(words)
        self.later = later


def _words(error: urllib.error.HTTPError) -> str:
    try:
        return error.read(500).decode("utf-8", "replace").strip()
    except OSError:
        return str(error.reason)


def _seconds_of(after: str | None) -> float | None:
    """What a Retry-After says, seconds or a date; None if it is missing or neither."""
    if after is None:
        return None
    try:
        if after.strip().isdecimal():
            seconds = float(after)
        else:
            seconds = email.utils.parsedate_to_datetime(after).timestamp() - time.time()
    except (ValueError, OverflowError):
        return None
    return min(max(seconds, FIRST_WAIT_SECONDS), LONGEST_LATER_SECONDS)
