"""Prepares the data of a config offline: encoded once, to be trained on at any context length.

A source is a file, a folder, or one that is there wherever Python is: stdlib, stdlib-chat,
stdlib-docs, recall. What is told ends with the weights that data.mixture_schedule brings in.

A preparation that was ended, in whatever way, goes on with what is done when the command is given
again. Without --out the examples go where training would put them, into data.cache_dir.

With --pools nothing is prepared: rollouts become a JSONL of chats that teach a model to aggregate
(Markovian RSA), which is then a source like any other."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from absl import flags

from zaya_jax import options
from zaya_jax.config import Experiment
from zaya_jax.data import Prepared, aggregate, prepare, show
from zaya_jax.data.entries import MIXTURE
from zaya_jax.data.mistakes import as_user_errors
from zaya_jax.data.packing import JoinedRows, PackedRows
from zaya_jax.data.pipeline import tokenizer_of
from zaya_jax.errors import UserError

FLAGS = flags.FLAGS


def define_flags() -> None:
    """See `zaya_jax.options`."""
    options.config()
    options.out(
        "folder for the prepared data, to train from with --config.data.source=FOLDER; "
        "with --pools the JSONL to write"
    )
    flags.DEFINE_integer("workers", None, "processes that encode (default: one a core)")
    flags.DEFINE_integer("row", None, "show this row of the training data as text")
    flags.DEFINE_string("pools", None, "JSONL of rollouts to make aggregation examples of")
    flags.DEFINE_integer("tail", 4096, "with --pools: tokens shown of a rollout's reasoning")
    flags.DEFINE_bool("rl_tasks", False, "with --pools: make tasks of RL, not chats to imitate")
    flags.DEFINE_integer("candidates", 4, "with --rl_tasks: rollouts of a prompt; 1: its own")
    flags.DEFINE_bool("hybrid", False, "with --pools: show finished rollouts by their answers")
    options.json()


def main(argv: Sequence[str]) -> int:
    """Returns 0; mistakes raise."""
    # By name: this room lies below `load`, which reads a model section that the config leaves open.
    load = importlib.import_module("zaya_jax.load")
    experiment = load.experiment(options.require("config"))
    out = None if FLAGS.out is None else Path(FLAGS.out)
    data, train = experiment.data, experiment.train
    workers = _workers()
    tokenizer = load.tokenizer_for(experiment)
    if FLAGS.pools is not None:
        return _aggregate(experiment, tokenizer)
    if out is not None:
        _check_folder(out)
    with as_user_errors("data", out or data.cache_dir):
        prepared = prepare(
            data,
            vocab_size=experiment.model.vocab_size,
            sequence_length=train.sequence_length,
            batch_size=train.batch_size,
            seed=train.seed,
            tokenizer=tokenizer,
            out=out,
            workers=workers,
        )
    histograms = [show.histogram(lengths) for lengths in _lengths(prepared)]
    for line in show.summary(prepared.info, histograms):
        print(line)
    record = prepared.info.as_json()
    for name, counts in zip(record["sources"], histograms, strict=True):
        record["sources"][name]["lengths"] = counts
    if FLAGS.row is not None:
        text = _row(prepared, FLAGS.row)
        print(text)
        record["row"] = {"number": FLAGS.row, "text": text}
    options.write_json(record)
    if out is not None:
        print(f"done: {out}; train on it with --config.data.source={out}", file=sys.stderr)
    return 0


def _aggregate(experiment: Experiment, start: str | None) -> int:
    """Writes the aggregation examples of pools.

    Args:
        experiment: names the tokenizer that tails are counted by, or sources to train one on.
        start: the tokenizer of the weights to start from, if the config names none.
    """
    pools, out = Path(FLAGS.pools), Path(options.require("out"))
    if not out.name.endswith(".jsonl") or out.is_dir():
        raise UserError(f"--out={out}: with --pools expected a file to write, NAME.jsonl")
    if out.resolve() == pools.resolve():
        raise UserError(f"--out={out} is the file of --pools: give another name")
    settings = aggregate.Settings(FLAGS.candidates, tail=FLAGS.tail, hybrid=FLAGS.hybrid)
    with as_user_errors("data", out):
        tokenizer = tokenizer_of(experiment.data, experiment.model.vocab_size, start)
        if FLAGS.rl_tasks:
            seed = experiment.train.seed
            asked = aggregate.write_tasks(
                aggregate.read_pools(pools), out, tokenizer, settings, seed=seed
            )
            print(f"{asked.tasks:,} tasks, {asked.unanswered:,} pools without an answer left out")
            options.write_json(asked._asdict())
            print(f"done: {out}; a source of tasks: rl.tasks = (('{out}', 1.0),)", file=sys.stderr)
            return 0
        written = aggregate.write_examples(aggregate.read_pools(pools), out, tokenizer, settings)
    print(f"{written.examples:,} aggregation examples, {written.unfinished:,} unfinished left out")
    options.write_json(written._asdict())
    print(f"done: {out}; a source of chats: --config.data.source={out}", file=sys.stderr)
    return 0


def _workers() -> int:
    if FLAGS.workers is None:
        affinity = getattr(os, "sched_getaffinity", None)
        return len(affinity(0)) if affinity else os.cpu_count() or 1
    if FLAGS.workers < 0:
        raise UserError(f"--workers={FLAGS.workers}: expected 0 (this process) or more")
    return FLAGS.workers


def _check_folder(out: Path) -> None:
    """Refuses a folder that holds other things than prepared data."""
    if out.exists() and not out.is_dir():
        raise UserError(f"--out={out}: is a file, expected a folder")
    others = [
        path.name
        for path in (out.iterdir() if out.is_dir() else ())
        if path.name != MIXTURE and not (path.is_dir() and path.name[:1].isdigit())
    ]
    if others:
        raise UserError(
            f"--out={out} holds {others[0]!r}, which is no prepared data: give a new folder"
        )


def _lengths(prepared: Prepared) -> list[np.ndarray]:
    """Tokens of every training example, source by source."""
    rows = prepared.train.rows
    assert isinstance(rows, JoinedRows | PackedRows)
    parts = rows.parts if isinstance(rows, JoinedRows) else [rows]
    return [part.examples.table.lengths for part in parts]


def _row(prepared: Prepared, number: int) -> str:
    rows = prepared.train.rows
    if not 0 <= number < len(rows):
        raise UserError(f"--row={number}: there are rows 0 to {len(rows) - 1}")
    shown = show.row(rows.take(np.array([number])), prepared.tokenizer)
    return "\n".join([f"row {number} of {len(rows):,}:", *shown])
