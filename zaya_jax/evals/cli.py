"""Scores a model on evaluation sets: avg@k and pass@k, with intervals.

The model under test is a run or a folder (--model), any server that speaks OpenAI's chat
completions (--server), or answers that were recorded before (--answers). What was answered lies in
--workdir, line by line: the same command goes on where it was stopped. --compare puts finished
evaluations side by side instead.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from absl import flags

from zaya_jax import options
from zaya_jax.errors import UserError
from zaya_jax.evals import ask, compare, contamination, local, record, scoring, sets
from zaya_jax.evals.client import Sampling, Server
from zaya_jax.rl.rewards.interface import Task
from zaya_jax.rl.rewards.score import Scorer

FLAGS = flags.FLAGS
SETTINGS, ANSWERS = "evaluation.json", "answers"
KEY = "OPENAI_API_KEY"
VERIFIER_SECONDS = 120.0
LONGEST_TIMEOUT = 1_000_000
"""Seconds; sockets take no more than some weeks."""


def define_flags() -> None:
    options.workdir()
    flags.DEFINE_list("tasks", None, "sets, such as humaneval,gpqa:gpqa.jsonl,math:aime.jsonl")
    flags.DEFINE_string(
        "server", None, "URL of the server to ask, such as http://localhost:8000/v1"
    )
    options.model()
    flags.DEFINE_list("serve", [], "flags of `launch.py serve` for --model, such as rows=64")
    flags.DEFINE_string("rsa", None, "answer with Markovian RSA: a preset, or {json: fields}")
    flags.DEFINE_string("served", None, "name of the model there; by default its first")
    flags.DEFINE_string("answers", None, "JSONL of {task, response} to score; asks nobody")
    flags.DEFINE_integer("samples", 1, "k: answers to each task")
    flags.DEFINE_integer("limit", None, "only so many tasks of each set, the first ones")
    flags.DEFINE_float("temperature", None, "of sampling; by default the server's")
    flags.DEFINE_float("top_p", None, "of nucleus sampling; by default the server's")
    flags.DEFINE_integer("max_tokens", None, "most tokens of an answer; by default the server's")
    flags.DEFINE_integer("concurrency", 8, "requests at a time")
    flags.DEFINE_float("timeout", None, "most seconds of an answer; by default there is no limit")
    flags.DEFINE_integer("verifiers", 2, "processes that score")
    flags.DEFINE_list("training", [], "files of training data that must not hold the prompts")
    flags.DEFINE_boolean("force", False, "go on where training data holds evaluation prompts")
    flags.DEFINE_list("compare", None, "directories of finished evaluations, to be put in a table")
    options.seed()
    options.json()


def main(argv: list[str]) -> int:
    del argv
    if FLAGS.compare:
        return _compare(FLAGS.compare)
    workdir = Path(options.require("workdir"))
    specs = options.require("tasks")
    if sum(each is not None for each in (FLAGS.model, FLAGS.server, FLAGS.answers)) != 1:
        raise UserError(
            "give one of --model=RUN and --server=URL, to ask a model, or --answers=FILE, to score "
            "what was answered"
        )
    rsa = local.rsa_of(FLAGS.rsa)
    if rsa is not None and FLAGS.answers is not None:
        raise UserError("--rsa is how a model answers, and --answers are there already")
    for name in ("samples", "concurrency", "verifiers"):
        if getattr(FLAGS, name) < 1:
            raise UserError(f"--{name}={getattr(FLAGS, name)}: expected at least 1")
    if FLAGS.timeout is not None and not 0 < FLAGS.timeout <= LONGEST_TIMEOUT:
        raise UserError(
            f"--timeout={FLAGS.timeout:g}: expected seconds above 0, {LONGEST_TIMEOUT:,} at most; "
            "without it there is no limit"
        )
    if FLAGS.answers is not None and len(specs) != 1:
        raise UserError(f"--answers={FLAGS.answers} is of one set; --tasks names {len(specs)}")

    whole = {spec: sets.load(spec) for spec in specs}
    chosen = {spec: tasks[: FLAGS.limit] for spec, tasks in whole.items()}
    overlaps = {spec: _overlaps(spec, tasks) for spec, tasks in chosen.items()}
    for tasks in chosen.values():
        scoring.require_sandbox(tasks)
    results = []
    with ExitStack() as stack:
        model = None if FLAGS.model is None else _pinned(FLAGS.model)
        server = _server(stack, model)
        asked = server.model if server is not None and model is None else model
        stack.enter_context(_held(workdir, specs, asked, rsa))
        for spec, tasks in chosen.items():
            if server is not None:
                answers = _asked(workdir, spec, tasks, server, rsa)
            else:
                answers = _recorded(tasks, whole[spec])
            with Scorer(processes=FLAGS.verifiers, seconds=VERIFIER_SECONDS) as scorer:
                result = scoring.score(spec, tasks, answers, scorer)
            results.append(dataclasses.replace(result, overlaps=overlaps[spec]))
            print(compare.summary(results[-1:]), flush=True)
            scores = {"tasks": specs, "results": [result.record() for result in results]}
            _write(workdir / compare.SCORES, scores)
    options.write_json(scores)
    return 0


def _overlaps(spec: str, tasks: Sequence[Task]) -> list[str]:
    """Tasks that are in --training.

    Raises:
      UserError: there are some, and no --force.
    """
    if not FLAGS.training:
        return []
    texts = (text for file in FLAGS.training for text in contamination.texts(Path(file)))
    prompts = {t.name: str(t.metadata.get(contamination.PROBLEM, t.prompt)) for t in tasks}
    found = contamination.check(texts, prompts, force=FLAGS.force, what=spec)
    return [each.name for each in found]


def _pinned(model: str) -> str:
    """Where a model's weights lie: of a run, those that are its newest now."""
    from zaya_jax.load import pinned  # which brings jax

    return str(pinned(model).resolve())


def _server(stack: ExitStack, model: str | None) -> Server | None:
    """The server to ask; one of our own inside the stack, for a model of this machine."""
    if model is not None:
        rows = max(FLAGS.concurrency, 1)
        own = [f"--rows={rows}", f"--rsa_runs={rows}", *(f"--{flag}" for flag in FLAGS.serve)]
        url = stack.enter_context(local.served(model, own))
        return Server.open(url, None, timeout_seconds=FLAGS.timeout)
    if FLAGS.server is not None:
        return Server.open(FLAGS.server, FLAGS.served, os.environ.get(KEY), FLAGS.timeout)
    return None


def _asked(
    workdir: Path,
    spec: str,
    tasks: Sequence[Task],
    server: Server,
    rsa: Mapping[str, Any] | None,
) -> record.Answers:
    return ask.collect(
        server,
        tasks,
        workdir / ANSWERS / f"{_file_name(spec)}.jsonl",
        samples=FLAGS.samples,
        sampling=Sampling(FLAGS.temperature, FLAGS.top_p, FLAGS.max_tokens, rsa),
        seed=FLAGS.seed,
        concurrency=FLAGS.concurrency,
        show=_show if sys.stderr.isatty() else None,
    )


def _recorded(tasks: Sequence[Task], whole: Sequence[Task]) -> record.Answers:
    """What --answers has to some tasks of a set; it may have answers to all of them."""
    file = Path(FLAGS.answers)
    if not file.is_file():
        raise UserError(f"--answers={file}: no such file")
    found = record.read(file, {task.name for task in whole})
    return {task.name: found[task.name] for task in tasks if task.name in found}


def _compare(names: Sequence[str]) -> int:
    results = {name: compare.read(Path(name)) for name in names}
    print(compare.table(results))
    options.write_json(
        {name: [each.record() for each in found.values()] for name, found in results.items()}
    )
    return 0


@contextmanager
def _held(
    workdir: Path, specs: Sequence[str], model: str | None, rsa: Mapping[str, Any] | None
) -> Iterator[None]:
    """Makes a directory, and keeps others from it inside the block.

    Raises:
      UserError: it cannot be written, another process is there, or it holds answers of another
        model or drawn in another way.
    """
    from zaya_jax.train import workdir as folders  # which brings jax

    mine: dict[str, Any] = {
        name: getattr(FLAGS, name)
        for name in ("answers", "limit", "temperature", "top_p", "max_tokens", "seed")
    }
    mine |= {"model": model, "rsa": None if rsa is None else dict(rsa)}
    mine["serve"] = sorted(FLAGS.serve) or None  # None is as if it were not there
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        lock = (workdir / folders.LOCK).open("a")
    except OSError as error:
        raise UserError(f"--workdir={workdir}: cannot write there: {error.strerror}") from None
    with folders.held(lock, f"another process evaluates in --workdir={workdir}"):
        file = workdir / SETTINGS
        theirs = json.loads(file.read_text()) if file.exists() else mine
        for name, value in mine.items():
            if theirs.get(name) != value:
                raise UserError(
                    f"--workdir={workdir} holds an evaluation with {name} {theirs.get(name)!r}, "
                    f"not {value!r}: give another directory"
                )
        _write(file, mine | {"tasks": list(specs)})
        yield


def _write(file: Path, content: Mapping[str, Any]) -> None:
    from zaya_jax.train import workdir as folders

    folders.write_json(file, content)


def _file_name(spec: str) -> str:
    plain = re.sub(r"[^\w.-]+", "_", spec)[-60:]
    return plain if plain == spec else f"{plain}-{zlib.crc32(spec.encode()):08x}"


def _show(done: int, of: int) -> None:
    print(f"\r{done} of {of} answers", end="\n" if done == of else "", file=sys.stderr, flush=True)
