"""Compares our logits and greedy tokens with those of transformers, in float32 on the CPU.

The exit status is 1 if a difference exceeds what is allowed: the tolerance, or four times the
noise that transformers shows against itself, whichever is larger (at most 100 tolerances).
"""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from pathlib import Path

import numpy as np
from absl import flags

from zaya_jax import load, options
from zaya_jax.hf import verify
from zaya_jax.hf.exporter import write_folder
from zaya_jax.hf.folder import Folder, open_folder
from zaya_jax.hf.names import NATIVE
from zaya_jax.hf.oracle import Oracle, native_folder

FLAGS = flags.FLAGS

PROMPTS = (
    "The capital of France is",
    "def fibonacci(n):\n    ",
    "Once upon a time there was a small house at the edge of a wood, and in it lived",
)
RANDOM_LENGTHS = (1, 17, 48)


def define_flags() -> None:
    options.model()
    flags.DEFINE_string(
        "against", "same", "Hugging Face folder for transformers; same: the model itself"
    )
    flags.DEFINE_multi_string("prompt", [], "text to compare on; may be given several times")
    flags.DEFINE_integer("tokens", 32, "greedy tokens to compare", lower_bound=1)
    flags.DEFINE_float(
        "tolerance", verify.TOLERANCE, "allowed difference over the largest logit", lower_bound=0.0
    )
    flags.DEFINE_bool("noise", True, "measure float64 too; needs twice the memory")
    options.seed()
    options.json()


def main(argv: list[str]) -> int:
    """Prints the table; 0 if all prompts agree, else 1."""
    del argv
    path = options.require("model")
    loaded = load.load(path, param_dtype="float32", activation_dtype="float32")
    prompts = choose_prompts(loaded)
    verify.check_prompts(loaded.model, prompts, FLAGS.tokens)
    with oracle_folder(loaded) as folder:
        results = verify.verify(
            loaded.model,
            loaded.params,
            loaded.biases,
            Oracle(folder),
            prompts,
            new_tokens=FLAGS.tokens,
            tolerance=FLAGS.tolerance,
            noise=FLAGS.noise,
        )
    ok = all(result.ok for result in results)
    print(verify.table(results))
    print(
        "differences are relative to the largest logit; sdpa and float64: transformers with itself"
    )
    print("the same model" if ok else f"{sum(not r.ok for r in results)} prompts differ")
    options.write_json(
        {
            "model": path,
            "against": FLAGS.against,
            "ok": ok,
            "prompts": [dataclasses.asdict(r) | {"ok": r.ok} for r in results],
        }
    )
    return 0 if ok else 1


def choose_prompts(loaded: load.Loaded) -> dict[str, list[int]]:
    """Ids by label: the given texts, else some of ours; and drawn ids, which need no tokenizer."""
    texts = FLAGS.prompt or (PROMPTS if loaded.tokenizer is not None else ())
    prompts = {}
    for text in texts:
        ids = [loaded.start_id, *loaded.require_tokenizer().encode(text)]
        prompts[repr(text if len(text) <= 30 else text[:27] + "...")] = ids
    random = np.random.default_rng(FLAGS.seed)
    room = loaded.model.context_length - FLAGS.tokens
    for length in RANDOM_LENGTHS if not FLAGS.prompt else ():
        if length <= room:
            prompts[f"{length} drawn ids"] = random.integers(
                loaded.model.vocab_size, size=length
            ).tolist()
    return prompts


@contextlib.contextmanager
def oracle_folder(loaded: load.Loaded):
    """A native `Folder` for transformers: `--against`, or our own weights."""
    if FLAGS.against == "same" and loaded.source.kind == "run":
        with tempfile.TemporaryDirectory(prefix="zaya-verify-") as scratch:
            out = Path(scratch) / NATIVE
            yield open_folder(write_folder(loaded.model, loaded.params, loaded.biases, out))
        return
    path = loaded.source.path if FLAGS.against == "same" else Path(FLAGS.against).expanduser()
    folder: Folder = open_folder(path)
    with native_folder(folder) as native:
        yield native
