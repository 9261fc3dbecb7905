"""A tiny model in a folder, and servers that are started as a user starts them."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAME = "tiny"
CONTEXT = 1024
OPTIONS = (
    "--rows=4", "--page=32", "--chunks=64", "--steps=2", "--batch_invariant", "--pool_gb=0.01",
)  # fmt: skip


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    """Two layers of 32 channels and a tokenizer with ChatML's tokens, in Hugging Face layout."""
    import jax
    import jax.numpy as jnp
    import numpy as np

    from zaya_jax.config import Attention, Model, Router
    from zaya_jax.data.chat import SPECIAL_TOKENS
    from zaya_jax.data.tokenizer import train_bpe
    from zaya_jax.hf import write_folder
    from zaya_jax.model import functional

    place = tmp_path_factory.mktemp("models")
    texts = ["def f(x):\n    return x\n" * 30, '{"name": "value"}\n' * 30]
    tokenizer = train_bpe(texts, 320, SPECIAL_TOKENS)
    tokenizer.save(place / "tokenizer")
    model = Model(
        vocab_size=tokenizer.vocab_size,
        hidden_size=32,
        num_layers=2,
        expert_width=24,
        context_length=CONTEXT,
        pad_id=tokenizer.pad_id,
        eos_id=tokenizer.eos_id,
        bos_id=tokenizer.bos_id,
        attention=Attention(heads=4, kv_heads=2, head_dim=8),
        router=Router(experts=4, width=16),
        layers="unroll",
    )
    rng = np.random.default_rng(0)

    def spread(name, leaf):
        noise = rng.normal(size=leaf.shape)
        if name == "embedding":
            value = noise
        elif len(leaf.shape) == 1:
            value = 1 + 0.3 * noise
            if name.endswith(("mixer_scale", "temperature")):
                value = 4 * value  # else a token mostly repeats itself, through the tied head
        else:
            value = 1.5 * noise * leaf.shape[-2] ** -0.5
        return jnp.asarray(value, leaf.dtype)

    params, biases = jax.eval_shape(lambda: functional.init(model, jax.random.key(0)))
    params = {name: spread(name, leaf) for name, leaf in params.items()}
    biases = {
        name: jnp.zeros(leaf.shape, leaf.dtype).at[-1].set(-1) for name, leaf in biases.items()
    }
    return write_folder(model, params, biases, place / NAME, tokenizer_dir=place / "tokenizer")


@dataclasses.dataclass
class Running:
    """A server's process.

    url: of it. process: itself. log: its lines so far, the newest last.
    """

    url: str
    process: subprocess.Popen
    log: list[dict]

    def get(self, path: str, **headers: str) -> tuple[int, bytes]:
        return self.ask("GET", path, None, **headers)

    def post(self, path: str, body, **headers: str) -> tuple[int, dict]:
        """Sends JSON, or bytes as they are; the answer must be JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers.setdefault("Content_Type", "application/json")
        status, answer = self.ask("POST", path, data, **headers)
        return status, json.loads(answer)

    def ask(self, method: str, path: str, data: bytes | None, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self.url + path, data, method=method)
        for name, value in headers.items():
            request.add_header(name.replace("_", "-"), value)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()

    def stop(self, seconds: float = 30) -> int:
        """Ends it by SIGTERM; returns its exit status."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise


@contextmanager
def serving(model: Path, *options: str, ready: bool = True) -> Iterator[Running]:
    command = [sys.executable, "launch.py", "serve", f"--model={model}", "--port=0", *options]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ
    )
    raw: list[str] = []
    log: list[dict] = []

    def read() -> None:
        for line in process.stderr:
            raw.append(line)
            if line.startswith("{"):
                log.append(json.loads(line))

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        first = process.stdout.readline()
        if "http://" not in first:
            reader.join(5)
            raise RuntimeError("".join(raw))
        running = Running(first.split(" at ")[1].split()[0], process, log)
        deadline = time.monotonic() + 300
        while ready:
            try:
                if running.get("/ready")[0] == 200:
                    break
            except OSError:
                pass
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("".join(raw))
            time.sleep(0.05)
        yield running
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture(scope="session")
def serve() -> Callable[..., Iterator[Running]]:
    """`serving(model, *options)`, a context."""
    return serving


@pytest.fixture(scope="session")
def server(folder) -> Iterator[Running]:
    """A server that the tests of a session share."""
    with serving(folder, *OPTIONS) as running:
        yield running


@pytest.fixture(scope="session")
def options() -> tuple[str, ...]:
    """Shapes that compile fast."""
    return OPTIONS
