"""Continues a prompt and streams the text to the terminal; what it took goes to stderr.

Greedy unless --temperature is above 0. With --samples the prompt is continued several times, as
one batch, with the seeds that follow --seed.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

from absl import flags

from zaya_jax import options
from zaya_jax.errors import UserError

FLAGS = flags.FLAGS

LARGEST_BATCH = 32


def define_flags() -> None:
    options.model()
    flags.DEFINE_string("prompt", None, "text to continue; - reads it from the standard input")
    flags.DEFINE_string("prompt_file", None, "file with the text to continue")
    flags.DEFINE_integer("max_tokens", 256, "longest completion, in tokens")
    flags.DEFINE_float("temperature", 0.0, "0 is greedy; 1 draws from the model as it is")
    flags.DEFINE_integer("top_k", None, "keep the k most likely tokens")
    flags.DEFINE_float("top_p", 1.0, "keep the fewest tokens whose probabilities sum to p")
    flags.DEFINE_float("min_p", 0.0, "keep tokens at least this share as likely as the best")
    flags.DEFINE_multi_string("stop", [], "end before this text; may be given several times")
    flags.DEFINE_integer("samples", 1, "number of completions")
    flags.DEFINE_enum(
        "dtype",
        None,
        ["float32", "bfloat16"],
        "precision of weights and activations; as stored by default",
    )
    options.quantize()
    options.seed()
    options.json()


def main(argv: list[str]) -> int:
    del argv
    path = options.require("model")
    prompt = _prompt()
    stop = tuple(_utf8(_bytes(text), "--stop") for text in FLAGS.stop)
    if FLAGS.samples < 1:
        raise UserError(f"--samples={FLAGS.samples}: expected at least 1")

    # What needs jax comes after what may be wrong with the command line.
    from zaya_jax.infer import quantize
    from zaya_jax.infer.generate import Generator
    from zaya_jax.infer.request import Request, encode
    from zaya_jax.infer.sampler import Sampling

    sampling = Sampling(FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.min_p, FLAGS.seed)
    scheme = quantize.of_flags(FLAGS)
    loaded = quantize.load(path, scheme, param_dtype=FLAGS.dtype, activation_dtype=FLAGS.dtype)
    if kept := quantize.describe(loaded.params):
        print(kept, file=sys.stderr)
    request = Request(prompt, FLAGS.max_tokens, sampling, stop)
    requests = [
        dataclasses.replace(request, sampling=dataclasses.replace(sampling, seed=sampling.seed + i))
        for i in range(FLAGS.samples)
    ]
    needed = len(encode(loaded, prompt)) + max(FLAGS.max_tokens, 1)
    generator = Generator(
        loaded,
        batch=min(FLAGS.samples, LARGEST_BATCH),
        capacity=min(needed, loaded.model.context_length),
    )
    del loaded  # the generator has its own, in the dtypes in which it computes
    alone = FLAGS.samples == 1
    completions = generator.generate(requests, _show if alone else None)
    for number, completion in enumerate(completions, 1):
        if alone:
            print()
        else:
            print(f"--- sample {number} of {FLAGS.samples} ({completion.finish})")
            print(completion.text)
    for note in completions[0].notes:
        print(f"note: {note}", file=sys.stderr)
    timing = generator.timing
    print(
        f"{completions[0].prompt_tokens} prompt tokens, first token after "
        f"{timing.first_seconds:.2f} s, then {timing.tokens_per_second:.1f} tokens/s "
        f"(and {timing.compile_seconds:.1f} s of compilation)",
        file=sys.stderr,
    )
    options.write_json(
        {
            "model": str(path),
            "prompt": prompt,
            "sampling": dataclasses.asdict(sampling),
            "completions": [dataclasses.asdict(completion) for completion in completions],
            "timing": dataclasses.asdict(timing) | {"tokens_per_second": timing.tokens_per_second},
        }
    )
    return 0


def _prompt() -> str:
    """The text of --prompt, --prompt_file or the standard input.

    Raises:
      UserError: none or two of them, or one that cannot be read as UTF-8.
    """
    if (FLAGS.prompt is None) == (FLAGS.prompt_file is None):
        raise UserError("give one of --prompt=TEXT (- for the standard input), --prompt_file=FILE")
    if FLAGS.prompt_file is not None:
        where = f"--prompt_file={FLAGS.prompt_file}"
        try:
            return _utf8(Path(FLAGS.prompt_file).read_bytes(), where)
        except OSError as error:
            raise UserError(f"{where}: {error.strerror}") from error
    if FLAGS.prompt == "-":
        return _utf8(sys.stdin.buffer.read(), "the standard input")
    return _utf8(_bytes(FLAGS.prompt), "--prompt")


def _bytes(argument: str) -> bytes:
    """What was typed: Python keeps bytes of the command line that are no UTF-8 as surrogates."""
    return argument.encode("utf-8", "surrogateescape")


def _utf8(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 at byte {error.start}: {error.reason}") from error


def _show(index: int, text: str) -> None:
    print(text, end="", flush=True)
