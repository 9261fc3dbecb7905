"""Writes a Hugging Face folder anew in this code's layout, tensor by tensor.

Reads the native layout (transformers), the legacy one and the list-style configs of ZAYA1-base; the
layout is told from the tensors' names.
"""

from __future__ import annotations

import time

from absl import flags

from zaya_jax import options
from zaya_jax.hf.importer import import_folder
from zaya_jax.hf.names import JAX, LEGACY, NATIVE, places
from zaya_jax.model.functional import active_parameter_count, parameter_count

FLAGS = flags.FLAGS


def define_flags() -> None:
    options.from_("Hugging Face folder on this machine")
    options.out("new folder to write")
    options.json()
    flags.DEFINE_enum("layout", None, [NATIVE, LEGACY], "fail unless the tensors are in this one")
    flags.DEFINE_bool("overwrite", False, "replace an earlier import")


def main(argv: list[str]) -> None:
    """Imports, and says what."""
    del argv
    start = time.monotonic()
    source, out = options.require("from"), options.require("out")
    folder = import_folder(
        source, out, layout=FLAGS.layout, overwrite=FLAGS.overwrite, progress="import"
    )
    model = folder.model
    size = sum(header.data_bytes for header in folder.reader.headers.values())
    record = {
        "from": str(source),
        "out": str(out),
        "layout": folder.origin.layout,
        "tensors": len(places(model, JAX)),
        "parameters": parameter_count(model),
        "active_parameters": active_parameter_count(model),
        "dtype": model.param_dtype,
        "tokenizer": folder.tokenizer_dir is not None,
        "bytes": size,
        "seconds": round(time.monotonic() - start, 1),
    }
    print(
        f"{out}: {record['parameters']:,} parameters ({record['active_parameters']:,} active), "
        f"{record['tensors']} tensors in {model.param_dtype}, from the {record['layout']} layout, "
        f"{size / 1e9:.2f} GB in {record['seconds']} s"
    )
    if not folder.origin.headers:
        print(
            "its experts were quantized: they are written as the bfloat16 numbers they stand for; "
            f"to keep them as they are, give --model={source} to generate, solve or serve"
        )
    if folder.tokenizer_dir is None:
        print("there was no tokenizer.json: text needs one in the tokenizer/ of that folder")
    print(f"next: python launch.py generate --model={out} --prompt='Hello'")
    options.write_json(record)
