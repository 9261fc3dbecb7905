"""Serves a model over HTTP, as the OpenAI API has it, with a page at /.

To this machine only, unless --host says otherwise; then with --api_keys, or --open to everybody.
SIGTERM and Ctrl-C let requests under way end first; a second one ends them.
"""

from __future__ import annotations

import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from zaya_jax import options
from zaya_jax.errors import UserError

if TYPE_CHECKING:
    from zaya_jax.infer.engine import Engine

FLAGS = flags.FLAGS


def define_flags() -> None:
    options.model()
    flags.DEFINE_string("host", "127.0.0.1", "address to listen at")
    flags.DEFINE_integer("port", 8000, "port to listen at; 0 for any that is free")
    flags.DEFINE_string("name", None, "of the model in requests; that of its folder by default")
    flags.DEFINE_string("api_keys", None, "file of keys, `NAME KEY` or `KEY` a line")
    flags.DEFINE_boolean("open", False, "answer everybody who reaches the server, without a key")
    flags.DEFINE_integer("queue", 256, "sequences that may wait beside those that are computed")
    flags.DEFINE_integer("sequences", 128, "sequences of one request, prompts times n")
    flags.DEFINE_integer("per_key", None, "sequences that one API key may have under way")
    flags.DEFINE_boolean("share_prefixes", False, "share the cache of prompts between API keys")
    flags.DEFINE_integer("rsa_runs", 2, "runs of Markovian RSA at once; 0 for none")
    flags.DEFINE_float("body_mb", 4.0, "largest body of a request")
    flags.DEFINE_integer("max_tokens", None, "of a completion; by default what there is room for")
    flags.DEFINE_float("drain_seconds", 60.0, "for requests under way when the server is to end")
    flags.DEFINE_boolean("log_prompts", False, "write what is asked into the log")
    flags.DEFINE_boolean("warm_up", True, "compile everything before the first request")
    flags.DEFINE_string("chat_template", None, "Jinja file; the tokenizer's own by default")
    flags.DEFINE_integer("rows", 32, "sequences that are computed at once")
    flags.DEFINE_integer("capacity", None, "tokens of a request; the model's context by default")
    flags.DEFINE_float("pool_gb", 1.0, "memory of the cache")
    flags.DEFINE_integer("page", 64, "tokens of a page of the cache")
    flags.DEFINE_list("chunks", ["64", "256"], "lengths in which prompts are read")
    flags.DEFINE_integer("steps", 4, "tokens that a sequence may get before the host looks")
    flags.DEFINE_boolean("batch_invariant", False, "answers do not depend on what else is asked")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "precision; as stored by default")
    flags.DEFINE_string("cache_dtype", None, "of keys and values: int8; that of activations else")
    options.quantize()


def main(argv: list[str]) -> int:
    del argv
    path = options.require("model")
    try:
        import fastapi  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise UserError(
            f"serve needs {error.name}: pip install -r requirements-serve.txt"
        ) from error
    from zaya_jax.serve.settings import LOOPBACK, Settings, read_keys

    keys = read_keys(Path(FLAGS.api_keys)) if FLAGS.api_keys is not None else {}
    local = FLAGS.host in LOOPBACK
    if not (local or keys or FLAGS.open):
        raise UserError(
            f"--host={FLAGS.host}: everybody who reaches it could use the model: give "
            "--api_keys=FILE, or --open if that is meant"
        )
    settings = Settings(
        name=FLAGS.name or Path(path).resolve().name,
        keys=keys,
        local=local and not (keys or FLAGS.open),
        queue=FLAGS.queue,
        sequences=FLAGS.sequences,
        per_key=FLAGS.per_key,
        share_prefixes=FLAGS.share_prefixes,
        rsa=FLAGS.rsa_runs,
        body_bytes=int(FLAGS.body_mb * 2**20),
        max_tokens=FLAGS.max_tokens,
        drain_seconds=FLAGS.drain_seconds,
        log_prompts=FLAGS.log_prompts,
    )
    chunks = _numbers(FLAGS.chunks)
    from zaya_jax.infer import quantize

    scheme = quantize.of_flags(FLAGS)
    with _listen(FLAGS.host, FLAGS.port) as listener:
        # What takes long comes after what may be wrong with the command line.
        from zaya_jax.infer.engine import Engine, Options
        from zaya_jax.serve import run
        from zaya_jax.serve.form import Form
        from zaya_jax.serve.service import Service

        engine_options = Options(
            rows=FLAGS.rows,
            page=FLAGS.page,
            pool_bytes=int(FLAGS.pool_gb * 2**30),
            capacity=FLAGS.capacity,
            chunks=chunks,
            steps=FLAGS.steps,
            cache_dtype=FLAGS.cache_dtype,
            batch_invariant=FLAGS.batch_invariant,
        )
        loaded = quantize.load(path, scheme, param_dtype=FLAGS.dtype, activation_dtype=FLAGS.dtype)
        if kept := quantize.describe(loaded.params):
            print(kept, file=sys.stderr)
        form = Form(loaded, FLAGS.chat_template)
        if loaded.tokenizer is not None and not form.chats:
            print("note: no chat template fits the tokenizer; chats are plain text",
                  file=sys.stderr)  # fmt: skip
        context = loaded.model.context_length
        service = Service(Engine(loaded, engine_options), form, settings)
        del loaded  # the engine has its own, in the dtypes in which it computes
        print(_room(service.engine, FLAGS.capacity or context), file=sys.stderr)
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        print(f"{settings.name} at http://{shown}:{port} (the API under /v1)", flush=True)
        return run.serve(service, listener, warm_up=FLAGS.warm_up)


def _room(engine: Engine, wanted: int) -> str:
    """What the pool holds, and whether that is less than what was wanted of a request."""
    pages, page = engine.load.pages, engine.options.page
    told = f"room for {engine.capacity:,} tokens a request; {pages:,} pages of {page} tokens in all"
    if engine.capacity < wanted:
        told += f"; of a context of {wanted:,} that is what --pool_gb={FLAGS.pool_gb:g} holds"
    return told


def _listen(host: str, port: int) -> socket.socket:
    """A socket with that address.

    Raises:
      UserError: no such address, or it is taken.
    """
    where = f"--host={host} --port={port}"
    if not 0 <= port < 2**16:
        raise UserError(f"--port={port}: expected 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"{where}: {error.strerror or error}") from error
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        listener.close()
        raise UserError(f"{where}: {error.strerror or error}") from error
    return listener


def _numbers(words: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in words)
    except ValueError:
        raise UserError(f"--chunks={','.join(words)}: expected numbers") from None
