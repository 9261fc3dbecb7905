"""Solves a problem by Markovian RSA: many rollouts, aggregated over rounds, then one answer.

Shows rounds, rollouts and answers as they come, and prints the answer at the end. With --trace the
run is logged, and goes on where it stopped if it is started again with the same options.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from absl import flags

from zaya_jax import options
from zaya_jax.answers import KINDS
from zaya_jax.errors import UserError
from zaya_jax.infer.rsa.settings import PRESETS, RECOMMENDED, SELECTIONS, Sampling, Settings

FLAGS = flags.FLAGS

NUMBERS = {
    "population": "N, rollouts of a stage",
    "candidates": "C, tails that a prompt shows; with 1, a rollout goes on from its own",
    "rounds": "T, rounds of aggregation; 0 is independent rollouts",
    "tail": "tau, tokens that are carried on of a rollout",
    "budget": "beta, most tokens of a rollout",
    "final_budget": "most tokens of a rollout of the last stage",
}


def define_flags() -> None:
    options.model()
    flags.DEFINE_string("prompt", None, "the problem; - reads it from the standard input")
    flags.DEFINE_string("prompt_file", None, "file with the problem")
    flags.DEFINE_string("system", None, "a system message that goes before it")
    flags.DEFINE_enum("preset", RECOMMENDED, list(PRESETS), "settings of the report")
    for name, meaning in NUMBERS.items():
        flags.DEFINE_integer(name, None, f"{meaning}; of the preset by default")
    flags.DEFINE_boolean("hybrid", False, "PaCoRe: show finished rollouts by their answers")
    flags.DEFINE_enum("selection", "majority", list(SELECTIONS), "how the answer is chosen")
    flags.DEFINE_string("verifier", None, "module:function(problem, response) -> score")
    flags.DEFINE_enum("kind", "auto", list(KINDS), "where an answer stands in a response")
    flags.DEFINE_float("temperature", 1.0, "0 is greedy; 1 draws from the model as it is")
    flags.DEFINE_integer("top_k", None, "keep the k most likely tokens")
    flags.DEFINE_float("top_p", 1.0, "keep the fewest tokens whose probabilities sum to p")
    flags.DEFINE_float("min_p", 0.0, "keep tokens at least this share as likely as the best")
    flags.DEFINE_string("template", None, "Jinja file of the aggregation prompt; ours by default")
    flags.DEFINE_string("chat_template", None, "Jinja file; the tokenizer's own by default")
    flags.DEFINE_string("trace", None, "log of the run, a JSON object a line; taken up again")
    flags.DEFINE_integer("batch", None, "rollouts that run together; N, up to 16, by default")
    flags.DEFINE_enum("dtype", None, ["float32", "bfloat16"], "precision; as stored by default")
    options.quantize()
    options.seed()
    options.json()


def main(argv: list[str]) -> int:
    del argv
    path = options.require("model")
    problem = _problem()
    conversation = [{"role": "user", "content": problem}]
    if FLAGS.system is not None:
        conversation.insert(0, {"role": "system", "content": FLAGS.system})
    settings = _settings()
    if (settings.selection == "verifier") != (FLAGS.verifier is not None):
        raise UserError("--selection=verifier and --verifier=module:function go together")

    # What needs jax comes after what may be wrong with the command line.
    from zaya_jax.answers.external import ExternalVerifier
    from zaya_jax.infer import quantize
    from zaya_jax.infer.rsa import algorithm
    from zaya_jax.infer.rsa.generator import Chat, LocalPolicy, capacity
    from zaya_jax.infer.rsa.trace import Trace
    from zaya_jax.infer.rsa.view import View
    from zaya_jax.load import pinned

    if FLAGS.trace is not None:
        path = pinned(path)  # a run may be trained further before the trace is taken up
    scheme = quantize.of_flags(FLAGS)
    loaded = quantize.load(path, scheme, param_dtype=FLAGS.dtype, activation_dtype=FLAGS.dtype)
    form = Chat(loaded, FLAGS.chat_template)
    if form.template is None:
        print("note: no chat template fits the tokenizer; prompts are plain text", file=sys.stderr)
    room = capacity(conversation, settings, form, loaded.model.context_length)
    batch = FLAGS.batch or min(settings.population, 16)
    model: dict[str, Any] = {
        "path": str(Path(path).resolve()),
        "step": loaded.source.step,
        "dtype": FLAGS.dtype,
        "tokenizer": loaded.require_tokenizer().sha256,
        "chat_template": None if form.template is None else form.template.sha256,
        "batch": batch,
    }
    if scheme is not None:
        model["quantize"] = dataclasses.asdict(scheme)
    with ExitStack() as stack:
        trace = None
        if FLAGS.trace is not None:
            about = algorithm.about(conversation, settings, model)
            trace = stack.enter_context(Trace(Path(FLAGS.trace), about))
            if trace.known:
                print(f"{len(trace.known)} rollouts are in --trace={FLAGS.trace}", file=sys.stderr)
        verifier = None
        if FLAGS.verifier is not None:
            verifier = stack.enter_context(ExternalVerifier(FLAGS.verifier, problem))
        result = algorithm.solve(
            LocalPolicy(loaded, form, batch=batch, capacity=room),
            conversation,
            settings,
            loaded.require_tokenizer(),
            trace=trace,
            observer=View(settings, sys.stderr),
            verifier=verifier,
        )
    _print(result.answers, result.chosen.answer, settings)
    record: dict[str, Any] = {"model": model, "conversation": conversation}
    options.write_json(record | {"settings": dataclasses.asdict(settings)} | result.as_json())
    return 0


def _settings() -> Settings:
    """The preset, with what was said otherwise."""
    changed: dict[str, Any] = {
        name: FLAGS[name].value for name in NUMBERS if FLAGS[name].value is not None
    }
    if "budget" in changed and "final_budget" not in changed:
        changed["final_budget"] = None  # a preset's would be out of proportion
    sampling = Sampling(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p)
    return dataclasses.replace(
        PRESETS[FLAGS.preset],
        **changed,
        hybrid=FLAGS.hybrid,
        selection=FLAGS.selection,
        kind=FLAGS.kind,
        sampling=sampling,
        template=FLAGS.template,
        seed=FLAGS.seed,
    )


def _print(answers: Sequence[str | None], answer: str | None, settings: Settings) -> None:
    """The answer to the standard output, where a program may read it."""
    if settings.selection == "none":
        for number, given in enumerate(answers):
            print(f"{number}\t{'' if given is None else given}")
    elif answer is not None:
        print(answer)


def _problem() -> str:
    """The text of --prompt, --prompt_file or the standard input.

    Raises:
      UserError: none or two of them, or one that cannot be read as UTF-8.
    """
    if (FLAGS.prompt is None) == (FLAGS.prompt_file is None):
        raise UserError("give one of --prompt=TEXT (- for the standard input), --prompt_file=FILE")
    try:
        if FLAGS.prompt_file is not None:
            return Path(FLAGS.prompt_file).read_text(encoding="utf-8")
        if FLAGS.prompt == "-":
            return sys.stdin.buffer.read().decode("utf-8")
        return FLAGS.prompt.encode("utf-8", "surrogateescape").decode("utf-8")
    except OSError as error:
        raise UserError(f"--prompt_file={FLAGS.prompt_file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"the prompt is not UTF-8 at byte {error.start}: {error.reason}") from error
